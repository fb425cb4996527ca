//! Reading a file that somebody named, which may be one without an end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// What a configuration may have: 20,000 destinations take over one MiB.
pub const CONFIGURATION_BYTES_MAX: u64 = 16 << 20;
/// What a secret may have.
pub const SECRET_BYTES_MAX: u64 = 64 << 10;
/// What certificates, keys and credentials may have: a system's list of authorities has some 250 kB.
pub const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;

/// The content of a file of at most `bytes_max`.
///
/// # Errors
/// The system's, and `FileTooLarge`.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One more tells that there is more.
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        let message = format!("it has over {} KiB", bytes_max >> 10);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_refused() {
        let error = read(Path::new("/dev/zero"), CONFIGURATION_BYTES_MAX).unwrap_err();
        assert_eq!(error.to_string(), "it has over 16384 KiB");
        assert_eq!(read(Path::new("/dev/null"), SECRET_BYTES_MAX).unwrap(), b"");
    }
}
