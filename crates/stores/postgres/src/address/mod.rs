//! Addresses: `postgres://…` and the `PG*` variables, read as libpq reads them.
//!
//! The driver's own reader passes over what it does not know, and logs it with its value. So all is
//! read here: a parameter is done, is known to change neither safety nor place, or is refused. What
//! reaches the driver is written anew, and nothing of an address is ever in a text but names.
//!
//! The forms are those of the PostgreSQL manual, "Connection URIs" and "Parameter Key Words"
//! (libpq-connect).

mod parameters;
mod url;

use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use posthaste_core::{Error, ErrorKind, Result};
use sqlx::postgres::PgConnectOptions;

use self::parameters::Given;
use self::url::UrlParts;

/// What an address says.
#[derive(Debug)]
pub(crate) struct Address {
    /// The servers, in the order in which they are tried; at least one.
    pub(crate) servers: Vec<PgConnectOptions>,
    /// Whether a server must take writes to be the right one.
    pub(crate) must_write: bool,
    /// The user that this process runs as, where it logs in as that one since none is named.
    pub(crate) own_user: Option<String>,
    /// Whether anything was said about TLS.
    pub(crate) names_ssl_mode: bool,
    /// The longest wait for a connection, where it is given.
    pub(crate) connect_timeout: Option<Duration>,
    /// Whether it says that a pooler in transaction mode stands between.
    pub(crate) transaction_pooler: bool,
}

/// Looks up a variable of the environment.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables of this process.
pub(crate) fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "read the database's address", why))
}

impl Address {
    /// Reads a URL, `None` for the `PG*` variables alone, which otherwise fill in what it leaves
    /// out.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], with the name of the part that is wrong and never a value.
    pub(crate) fn read(url: Option<&str>, environment: Environment<'_>) -> Result<Self> {
        let parts = url.map(UrlParts::read).transpose()?.unwrap_or_default();
        let given = Given::collect(&parts, environment)?;
        let mut driver = vec![
            ("user", parts.user.clone()),
            ("password", parts.password.clone()),
            ("dbname", parts.database.clone()),
        ];
        for name in ["user", "password", "dbname", "options"] {
            if let Some(value) = given.get(name) {
                driver.retain(|(known, _)| *known != name);
                driver.push((name, Some(value.to_owned())));
            }
        }
        let names_user = parts.user.is_some() || given.get("user").is_some();
        let own_user = (!names_user).then(own_user).transpose()?;
        driver.extend(own_user.clone().map(|user| ("user", Some(user))));
        let tls = Tls::read(&given)?;
        driver.extend([
            ("sslmode", tls.mode.clone()),
            ("sslrootcert", tls.root.clone()),
            ("sslcert", given.file("sslcert")?),
            ("sslkey", given.file("sslkey")?),
        ]);
        if given.get("sslcert").is_some() != given.get("sslkey").is_some() {
            return refuse("sslcert and sslkey belong together");
        }
        let hosts = hosts_of(&parts, &given)?;
        let servers = hosts.iter().map(|host| {
            let mut options = driver_options(&driver, host)?;
            if let Some(pem) = tls.system_authorities() {
                options = options.ssl_root_cert_from_pem(pem);
            }
            Ok(match search_path(&given) {
                Some(path) => options.options([("search_path", path)]),
                None => options,
            })
        });
        Ok(Self {
            servers: servers.collect::<Result<_>>()?,
            own_user,
            must_write: hosts.len() > 1 || given.must_write()?,
            names_ssl_mode: tls.mode.is_some(),
            connect_timeout: given.connect_timeout()?,
            transaction_pooler: given.get("pgbouncer") == Some("true"),
        })
    }
}

/// As libpq does where nobody names a user: that of this process. The driver would make up a name where
/// that one has none, as in a container that runs under a number.
fn own_user() -> Result<String> {
    whoami::username().or_else(|_| {
        refuse(
            "it names no user, and this process runs as one without a name: write \
             postgres://USER@HOST/DATABASE, or set PGUSER",
        )
    })
}

/// A server: `None` takes the default.
#[derive(Debug, Clone, Default, PartialEq)]
struct Host {
    /// A name, an address or the folder of a socket.
    name: Option<String>,
    port: Option<u16>,
}

fn hosts_of(parts: &UrlParts, given: &Given) -> Result<Vec<Host>> {
    let list = |name| given.get(name).map(|text| text.split(',').map(str::to_owned).collect());
    let by_name: Option<Vec<String>> = list("host");
    let by_address: Option<Vec<String>> = list("hostaddr");
    if let (Some(names), Some(addresses)) = (&by_name, &by_address)
        && names.len() != addresses.len()
    {
        return refuse("host and hostaddr must have as many entries");
    }
    let ports: Option<Vec<String>> = list("port");
    let port = |text: &String| match text.trim() {
        "" => Ok(None),
        text => match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => refuse("port: not a whole number from 1 to 65535"),
        },
    };
    let named = by_address.or(by_name);
    let mut hosts: Vec<Host> = match named {
        // What the URL says of ports stays with its hosts only.
        Some(names) => {
            names.into_iter().map(|name| Host { name: filled(name), port: None }).collect()
        }
        None => parts
            .hosts
            .iter()
            .map(|(name, port)| Host { name: filled(name.clone()), port: *port })
            .collect(),
    };
    if hosts.is_empty() {
        hosts.push(Host::default());
    }
    if let Some(ports) = ports {
        if ports.len() != 1 && ports.len() != hosts.len() {
            return refuse("port: give one, or as many as there are hosts");
        }
        for (position, host) in hosts.iter_mut().enumerate() {
            let text = ports.get(position).or_else(|| ports.first());
            if host.port.is_none() {
                host.port = text.map(port).transpose()?.flatten();
            }
        }
    }
    Ok(hosts)
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The driver's options for one server, by an address that has nothing but what it knows.
fn driver_options(
    parameters: &[(&'static str, Option<String>)],
    host: &Host,
) -> Result<PgConnectOptions> {
    let port = host.port.map(|port| port.to_string());
    let all = parameters.iter().map(|(name, value)| (*name, value.as_deref()));
    let all = all.chain([("host", host.name.as_deref()), ("port", port.as_deref())]);
    let pairs: Vec<String> = all
        .filter_map(|(name, value)| {
            Some(format!("{name}={}", utf8_percent_encode(value?, NON_ALPHANUMERIC)))
        })
        .collect();
    // No source: it might repeat a value.
    PgConnectOptions::from_str(&format!("postgres:///?{}", pairs.join("&")))
        .or_else(|_| refuse("the driver refuses it"))
}

/// How the server proves who it is.
struct Tls {
    mode: Option<String>,
    root: Option<String>,
    /// Whether to trust what the system trusts.
    by_system: bool,
}

impl Tls {
    fn read(given: &Given) -> Result<Self> {
        const MODES: [&str; 6] =
            ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
        let mut mode = given.get("sslmode").map(str::to_owned);
        if mode.as_deref().is_some_and(|mode| !MODES.contains(&mode)) {
            return refuse(format!("{}: give one of {}", given.name("sslmode"), MODES.join(", ")));
        }
        // As in JDBC's addresses, and as libpq takes them.
        if given.get("ssl").is_some() && mode.is_none() {
            mode = Some("require".into());
        }
        if given.get("sslrootcert") == Some("system") {
            if mode.as_deref().is_some_and(|mode| mode != "verify-full") {
                return refuse("sslrootcert=system needs sslmode=verify-full");
            }
            return Ok(Self { mode: Some("verify-full".into()), root: None, by_system: true });
        }
        let root = given.file("sslrootcert")?;
        // libpq: whoever names authorities wants them asked.
        if mode.as_deref() == Some("require") && root.is_some() {
            mode = Some("verify-ca".into());
        }
        let verifies = matches!(mode.as_deref(), Some("verify-ca" | "verify-full"));
        Ok(Self { by_system: verifies && root.is_none(), mode, root })
    }

    /// The authorities of this system, as PEM. The driver knows only its own list.
    fn system_authorities(&self) -> Option<Vec<u8>> {
        if !self.by_system {
            return None;
        }
        let mut pem = String::new();
        for certificate in rustls_native_certs::load_native_certs().certs {
            let text = STANDARD.encode(certificate);
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            pem.push_str(&text);
            pem.push_str("\n-----END CERTIFICATE-----\n");
        }
        (!pem.is_empty()).then(|| pem.into_bytes())
    }
}

/// Where the tables are: `schema` is Prisma's, one name; `currentSchema` JDBC's, a list.
fn search_path(given: &Given) -> Option<String> {
    let simple = |name: &str| {
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let one = |name: &str| if simple(name) { name.to_owned() } else { quoted(name) };
    given.get("schema").map(one).or_else(|| given.get("currentSchema").map(str::to_owned))
}

#[cfg(test)]
mod tests;
