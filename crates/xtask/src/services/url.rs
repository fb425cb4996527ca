//! The little of a URL that a probe needs.

use anyhow::{Context as _, Result};

/// `scheme://user:password@host:port/path`, all but the host optional. Nothing is decoded: test
/// servers have plain names.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    text: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: Option<String>,
}

impl Url {
    /// # Errors
    /// Without `://`, without a host, or with a port that is not one.
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self> {
        let (_, rest) = text.split_once("://").context("it has no scheme://")?;
        let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        let (credentials, server) = match authority.rsplit_once('@') {
            Some((credentials, server)) => (Some(credentials), server),
            None => (None, authority),
        };
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().context("its port is not a number")?),
            None => (server, default_port),
        };
        anyhow::ensure!(!host.is_empty(), "it names no host");
        let (user, password) =
            match credentials.map(|both| both.split_once(':').unwrap_or((both, ""))) {
                Some((user, password)) => {
                    (Some(user.to_owned()), Some(password).filter(|p| !p.is_empty()))
                }
                None => (None, None),
            };
        Ok(Self {
            text: text.to_owned(),
            user,
            password: password.map(str::to_owned),
            host: host.to_owned(),
            port,
            path: path.filter(|path| !path.is_empty()).map(str::to_owned),
        })
    }

    /// The user, or `default` where it names none.
    pub(crate) fn user_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.user.as_deref().unwrap_or(default)
    }

    /// The path without its slash, or `default` where there is none.
    pub(crate) fn path_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.path.as_deref().unwrap_or(default)
    }

    /// All of it, for handing on to tests. Not for showing: it may hold a password.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_and_passwords_not_shown() {
        let url = Url::parse("postgres://ann:secret@db.local:5433/shop?x=1", 5432).unwrap();
        assert_eq!((url.user_or("root"), url.path_or("test")), ("ann", "shop"));
        assert_eq!(url.to_string(), "db.local:5433");
        let bare = Url::parse("nats://127.0.0.1", 4222).unwrap();
        assert_eq!((bare.port, bare.user_or("root")), (4222, "root"));
    }

    #[test]
    fn what_is_not_a_url_is_refused() {
        for text in ["localhost:5432", "postgres://:5432/x", "postgres://host:port/x"] {
            assert!(Url::parse(text, 5432).is_err(), "{text}");
        }
    }
}
