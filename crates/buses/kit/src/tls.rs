//! TLS of the clients, alike for all buses: whom they trust, and how they prove who they are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use posthaste_core::{Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The files of a client's TLS, all PEM.
#[derive(Debug, Default)]
pub struct TlsFiles<'a> {
    /// Authorities to trust instead of the machine's own.
    pub ca: &'a [PathBuf],
    /// The client's certificate and its key.
    pub identity: Option<(&'a Path, &'a Path)>,
}

impl TlsFiles<'_> {
    /// Reads the files, and the machine's authorities where none are given.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting and the file.
    pub fn client_config(&self, operation: &'static str) -> Result<ClientConfig> {
        let roots = self.roots(operation)?;
        let refuse = |error: rustls::Error| {
            Error::new(ErrorKind::Config, operation, "TLS cannot be set up").with_source(error)
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refuse)?
            .with_root_certificates(roots);
        let Some((cert, key)) = self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates(operation, "tls_cert_file", cert)?;
        let key_der = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unreadable(operation, "tls_key_file", key, error))?;
        builder.with_client_auth_cert(chain, key_der).map_err(|error| {
            let message = "tls_cert_file and tls_key_file do not belong together";
            Error::new(ErrorKind::Config, operation, message).with_source(error)
        })
    }

    fn roots(&self, operation: &'static str) -> Result<RootCertStore> {
        if self.ca.is_empty() {
            return machine_roots(operation).cloned();
        }
        let mut roots = RootCertStore::empty();
        for file in self.ca {
            for certificate in certificates(operation, "tls_ca_file", file)? {
                roots
                    .add(certificate)
                    .map_err(|error| unreadable(operation, "tls_ca_file", file, error))?;
            }
        }
        Ok(roots)
    }
}

/// The machine's own authorities, read once.
///
/// # Errors
/// [`ErrorKind::Config`] where there are none: nobody could be verified.
pub fn machine_roots(operation: &'static str) -> Result<&'static RootCertStore> {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        // What cannot be read of a bundle is no reason not to use the rest.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    });
    if roots.is_empty() {
        return Err(Error::new(
            ErrorKind::Config,
            operation,
            "this machine has no certificate authorities to verify a server by: install the package \
             ca-certificates, or set SSL_CERT_FILE or tls_ca_file",
        ));
    }
    Ok(roots)
}

/// A configuration that trusts nobody: for a client that never speaks TLS.
///
/// # Errors
/// [`ErrorKind::Config`] where TLS cannot be set up at all.
pub fn none(operation: &'static str) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            Error::new(ErrorKind::Config, operation, "TLS cannot be set up").with_source(error)
        })?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn certificates(
    operation: &'static str,
    setting: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|error| unreadable(operation, setting, file, error))?;
    if found.is_empty() {
        let message = format!("{setting}: there is no certificate in the file");
        return Err(
            Error::new(ErrorKind::Config, operation, message).with_context("path", file.display())
        );
    }
    Ok(found)
}

fn unreadable(
    operation: &'static str,
    setting: &'static str,
    file: &Path,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::new(ErrorKind::Config, operation, format!("{setting}: cannot be read as PEM"))
        .with_context("path", file.display())
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_file_is_named_with_its_setting() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        let missing = folder.path().join("missing.pem");
        for path in [&empty, &missing] {
            let ca = [path.clone()];
            let error = TlsFiles { ca: &ca, identity: None }.client_config("test").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = error.report();
            assert!(text.contains("tls_ca_file") && text.contains(".pem"), "{text}");
        }
    }
}
