//! Whose configuration a file is that nobody named.
//!
//! A configuration can name any file as a secret and any address as a destination. Whoever can put
//! one where somebody else runs posthaste reads what that user may read.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{getegid, geteuid};

use crate::problem::Problem;

/// Whoever may have written a file, by the user and group that this process has.
#[derive(Debug, Clone, Copy)]
struct Caller {
    user: u32,
    group: u32,
}

/// Refuses a file that somebody else than the caller and root owns or may write.
///
/// # Errors
/// A problem that says whose it is. A file that is not there is none.
pub fn check(file: &Path) -> Result<(), Problem> {
    let caller = Caller { user: geteuid().as_raw(), group: getegid().as_raw() };
    let Some(why) = std::fs::metadata(file).ok().and_then(|found| distrusted(&found, caller))
    else {
        return Ok(());
    };
    let name = file.display();
    Err(Problem {
        path: String::new(),
        place: Some(name.to_string()),
        message: format!("the file in the working directory is not used: {why}"),
        help: format!(
            "name it with --config {name} if you trust it, or correct its owner and mode"
        ),
    })
}

fn distrusted(file: &Metadata, caller: Caller) -> Option<String> {
    let mode = file.mode();
    // Where every user has a group of their own, files are often open to it.
    let group_is_caller = file.gid() == caller.group || file.gid() == 0;
    if file.uid() != caller.user && file.uid() != 0 {
        Some(format!("it belongs to user {}", file.uid()))
    } else if mode & 0o002 != 0 || (mode & 0o020 != 0 && !group_is_caller) {
        Some(format!("others may write to it (mode {:04o})", mode & 0o7777))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_of_somebody_else_or_open_to_others_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("posthaste.toml");
        fs::write(&file, "").unwrap();
        let found = |mode| {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            fs::metadata(&file).unwrap()
        };
        let owner = found(0o644);
        let caller = Caller { user: owner.uid(), group: owner.gid() };
        assert_eq!(distrusted(&owner, caller), None);
        assert_eq!(distrusted(&found(0o664), caller), None, "the caller's own group");
        let why = distrusted(&found(0o666), caller).unwrap();
        assert!(why.contains("others may write"), "{why}");
        // Root's files are everyone's to trust: root makes it somebody else's.
        if owner.uid() == 0 {
            std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).unwrap();
        }
        let owner = found(0o644);
        let other = Caller { user: owner.uid() + 1, group: owner.gid() + 1 };
        assert!(distrusted(&owner, other).unwrap().contains("belongs to user"));
        let member = Caller { user: owner.uid(), group: owner.gid() + 1 };
        assert!(distrusted(&found(0o664), member).unwrap().contains("others may write"));
    }
}
