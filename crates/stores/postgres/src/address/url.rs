//! The parts of a URL.

use percent_encoding::percent_decode_str;
use posthaste_core::Result;

use super::refuse;

/// What a URL is made of, decoded.
#[derive(Default)]
pub(super) struct UrlParts {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// Each with its port. None where the URL names no host.
    pub(super) hosts: Vec<(String, Option<u16>)>,
    pub(super) database: Option<String>,
    /// In the order given.
    pub(super) parameters: Vec<(String, String)>,
}

const HINT: &str = "a user or password with one of : / ? # [ ] @ needs it percent-encoded";

impl UrlParts {
    /// `postgres://user:password@host:port,host:port/database?name=value&…`.
    pub(super) fn read(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let Some(rest) = rest else {
            return refuse("a PostgreSQL URL has the form postgres://user@host:5432/database");
        };
        if rest.contains('#') {
            return refuse(format!("it has a #, which no address has; {HINT}"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.contains('@') {
            return refuse(format!("it has an @ behind the host; {HINT}"));
        }
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (login, hosts),
            None => ("", authority),
        };
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        Ok(Self {
            user: filled("user", user)?,
            password: password.map_or(Ok(None), |password| filled("password", password))?,
            hosts: read_hosts(hosts)?,
            database: filled("database", path.trim_start_matches('/'))?,
            parameters: read_parameters(query)?,
        })
    }
}

fn read_hosts(text: &str) -> Result<Vec<(String, Option<u16>)>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(read_host).collect()
}

fn read_host(text: &str) -> Result<(String, Option<u16>)> {
    // An IPv6 address has colons of its own.
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, rest))) if rest.is_empty() || rest.starts_with(':') => {
            (host, rest.strip_prefix(':'))
        }
        Some(_) => return refuse("host: a [ without its ]"),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match port.filter(|port| !port.is_empty()).map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return refuse(format!("port: not a whole number from 1 to 65535; {HINT}")),
    };
    Ok((decoded("host", host)?, port))
}

fn read_parameters(query: &str) -> Result<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((decoded("parameter", name)?, decoded("parameter", value)?)),
            None => refuse(format!("a parameter without a value; {HINT}")),
        })
        .collect()
}

fn filled(part: &str, text: &str) -> Result<Option<String>> {
    Ok(Some(decoded(part, text)?).filter(|text| !text.is_empty()))
}

fn decoded(part: &str, text: &str) -> Result<String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
        _ => refuse(format!("{part}: the percent-encoded text is not UTF-8")),
    }
}
