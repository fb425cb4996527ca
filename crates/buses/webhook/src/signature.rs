//! Standard Webhooks signatures.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use posthaste_bus_kit::Secret;
use posthaste_core::{Error, ErrorKind, Result};
use sha2::Sha256;

/// What a secret begins with.
const SECRET_PREFIX: &str = "whsec_";

/// Signs with every configured secret.
#[derive(Clone)]
pub(super) struct Signer(Vec<Hmac<Sha256>>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} secrets)", self.0.len())
    }
}

impl Signer {
    /// # Errors
    /// [`ErrorKind::Config`] where a secret is not `whsec_` and the base64 of 24 to 64 bytes.
    pub(super) fn new(secrets: &[Secret]) -> Result<Self> {
        let key = |(position, secret): (usize, &Secret)| {
            let refuse = |why: &str| {
                let message = format!("secrets[{position}]: {why}");
                Error::new(ErrorKind::Config, "configure webhook", message)
            };
            let encoded = secret
                .expose()
                .strip_prefix(SECRET_PREFIX)
                .ok_or_else(|| refuse("a signing secret begins with whsec_"))?;
            let bytes =
                STANDARD.decode(encoded).map_err(|_| refuse("what follows whsec_ is no base64"))?;
            if !(24..=64).contains(&bytes.len()) {
                return Err(refuse("a signing secret has 24 to 64 bytes"));
            }
            Hmac::new_from_slice(&bytes).map_err(|_| refuse("the secret is no key"))
        };
        secrets.iter().enumerate().map(key).collect::<Result<_>>().map(Self)
    }

    /// Whether there is anything to sign with.
    pub(super) fn is_active(&self) -> bool {
        !self.0.is_empty()
    }

    /// The `webhook-signature` of a message: one signature per secret, separated by spaces.
    pub(super) fn sign(&self, id: &str, timestamp_seconds: i64, body: &[u8]) -> String {
        let sign = |key: &Hmac<Sha256>| {
            let mut mac = key.clone();
            mac.update(format!("{id}.{timestamp_seconds}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the Standard Webhooks reference libraries test themselves with.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn sign(secrets: &[&str]) -> String {
        let secrets: Vec<Secret> = secrets.iter().map(|secret| Secret::from(*secret)).collect();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        Signer::new(&secrets).unwrap().sign(id, 1_614_265_330, b"{\"test\": 2432232314}")
    }

    #[test]
    fn a_signature_is_that_of_the_published_example() {
        assert_eq!(sign(&[SECRET]), SIGNATURE);
    }

    #[test]
    fn every_secret_signs_so_that_one_can_replace_another() {
        let other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let signatures = sign(&[SECRET, other]);
        let (first, second) = signatures.split_once(' ').unwrap();
        assert_eq!(first, SIGNATURE);
        assert_eq!(second, sign(&[other]));
        assert_ne!(first, second);
    }

    #[test]
    fn a_secret_of_another_form_is_refused() {
        for secret in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAAA", "whsec_%%"] {
            let error = Signer::new(&[Secret::from(secret)]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
        }
        assert!(!Signer::new(&[]).unwrap().is_active());
    }
}
