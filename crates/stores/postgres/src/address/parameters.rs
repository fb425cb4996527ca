//! The parameters of an address, by the names that libpq and others give them.

use std::collections::HashMap;
use std::time::Duration;

use posthaste_core::Result;

use super::url::UrlParts;
use super::{Environment, refuse};

/// A parameter, and what becomes of it.
struct Parameter {
    /// The first is the name it goes by here.
    names: &'static [&'static str],
    /// The variable that gives it where the URL does not.
    variable: Option<&'static str>,
    meaning: Meaning,
}

enum Meaning {
    /// It is done.
    Done,
    /// It changes neither whom one talks to, nor what is safe.
    WithoutEffect,
    /// As above for these values; for others refused, for this reason.
    Only(&'static [&'static str], &'static str),
    /// Refused, with what to do instead.
    Refused(&'static str),
}

use Meaning::{Done, Only, Refused, WithoutEffect};

const fn known(
    names: &'static [&'static str],
    variable: Option<&'static str>,
    meaning: Meaning,
) -> Parameter {
    Parameter { names, variable, meaning }
}

const NOT_CHECKED: &str =
    "posthaste cannot check that; sslmode=verify-full proves who the server is";

/// All that is known. What is not here is refused.
const PARAMETERS: &[Parameter] = &[
    known(&["host"], Some("PGHOST"), Done),
    known(&["hostaddr"], Some("PGHOSTADDR"), Done),
    known(&["port"], Some("PGPORT"), Done),
    known(&["user"], Some("PGUSER"), Done),
    // The driver takes these from their variables by itself.
    known(&["dbname"], None, Done),
    known(&["password"], None, Done),
    known(&["options"], None, Done),
    known(&["sslmode", "ssl-mode"], Some("PGSSLMODE"), Done),
    known(&["ssl"], None, Only(&["true"], "write sslmode=… instead")),
    known(&["sslrootcert", "ssl-root-cert", "ssl-ca"], Some("PGSSLROOTCERT"), Done),
    known(&["sslcert", "ssl-cert"], Some("PGSSLCERT"), Done),
    known(&["sslkey", "ssl-key"], Some("PGSSLKEY"), Done),
    known(&["target_session_attrs"], Some("PGTARGETSESSIONATTRS"), Done),
    known(&["connect_timeout"], Some("PGCONNECT_TIMEOUT"), Done),
    known(&["schema"], None, Done),
    known(&["currentSchema"], None, Done),
    known(&["pgbouncer"], None, Only(&["true", "false"], "write true or false")),
    known(
        &["service"],
        Some("PGSERVICE"),
        Refused("pg_service.conf is not read; write out what the service says"),
    ),
    known(
        &["sslpassword"],
        None,
        Refused(
            "a key with a password cannot be read; give one without, which only posthaste reads",
        ),
    ),
    known(
        &["channel_binding"],
        Some("PGCHANNELBINDING"),
        Only(
            &["prefer", "disable"],
            "the driver cannot bind to a channel; leave it out and say sslmode=verify-full, with \
             which the server proves by its certificate who it is",
        ),
    ),
    known(&["require_auth"], Some("PGREQUIREAUTH"), Refused(NOT_CHECKED)),
    known(&["requirepeer"], Some("PGREQUIREPEER"), Refused(NOT_CHECKED)),
    known(&["sslcrl"], Some("PGSSLCRL"), Refused(NOT_CHECKED)),
    known(&["sslcrldir"], Some("PGSSLCRLDIR"), Refused(NOT_CHECKED)),
    known(&["ssl_max_protocol_version"], Some("PGSSLMAXPROTOCOLVERSION"), Refused(NOT_CHECKED)),
    known(
        &["ssl_min_protocol_version"],
        Some("PGSSLMINPROTOCOLVERSION"),
        Only(
            &["TLSv1", "TLSv1.1", "TLSv1.2"],
            "TLS 1.2 is the least posthaste takes, and no setting",
        ),
    ),
    known(
        &["sslnegotiation"],
        Some("PGSSLNEGOTIATION"),
        Only(&["postgres"], "the driver cannot begin with TLS; leave it out"),
    ),
    known(
        &["gssencmode"],
        Some("PGGSSENCMODE"),
        Only(&["disable", "prefer"], "the driver knows no GSSAPI; use sslmode"),
    ),
    known(&["sslcertmode"], Some("PGSSLCERTMODE"), Only(&["allow"], "leave out sslcert instead")),
    known(&["passfile"], None, Refused("set PGPASSFILE instead")),
    known(&["replication"], None, Refused("posthaste needs an ordinary connection")),
    known(
        &["client_encoding"],
        None,
        Only(&["UTF8", "utf8", "UTF-8", "utf-8", "auto"], "posthaste speaks UTF-8"),
    ),
    known(&["connection_limit"], None, Refused("set database.max_connections instead")),
    known(&["pool_timeout"], None, Refused("say connect_timeout instead")),
    known(&["statement-cache-capacity"], None, WithoutEffect),
    known(&["application_name", "ApplicationName"], None, WithoutEffect),
    known(&["fallback_application_name"], None, WithoutEffect),
    known(&["keepalives"], None, WithoutEffect),
    known(&["keepalives_idle"], None, WithoutEffect),
    known(&["keepalives_interval"], None, WithoutEffect),
    known(&["keepalives_count"], None, WithoutEffect),
    known(&["tcp_user_timeout"], None, WithoutEffect),
    known(&["krbsrvname"], None, WithoutEffect),
    known(&["gsslib"], None, WithoutEffect),
    known(&["load_balance_hosts"], None, WithoutEffect),
    known(&["sslcompression"], None, WithoutEffect),
    known(&["sslsni"], None, WithoutEffect),
];

/// What was given, by the name it goes by here.
pub(super) struct Given(HashMap<&'static str, (String, &'static str)>);

impl Given {
    /// From the URL, and from the environment what the URL leaves out.
    pub(super) fn collect(parts: &UrlParts, environment: Environment<'_>) -> Result<Self> {
        let mut given = HashMap::new();
        for (name, value) in &parts.parameters {
            let options = name.strip_prefix("options[").and_then(|rest| rest.strip_suffix(']'));
            if let Some(setting) = options {
                add_option(&mut given, setting, value);
                continue;
            }
            let found = PARAMETERS.iter().find(|known| known.names.contains(&name.as_str()));
            let Some(parameter) = found else { return refuse(unknown(name)) };
            if value.is_empty() {
                continue;
            }
            let written = parameter.names.iter().find(|known| *known == name);
            take(&mut given, parameter, value, written.copied().unwrap_or_default())?;
        }
        for parameter in PARAMETERS {
            let name = parameter.names[0];
            // A host of the URL's own leaves no room for another's port or address.
            let in_url = given.contains_key(name)
                || (name == "host" && !parts.hosts.is_empty())
                || (name == "user" && parts.user.is_some())
                || (name == "port" && parts.hosts.iter().any(|(_, port)| port.is_some()));
            let Some(variable) = parameter.variable.filter(|_| !in_url) else { continue };
            if let Some(value) = environment(variable) {
                take(&mut given, parameter, &value, variable)?;
            }
        }
        Ok(Self(given))
    }

    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(value, _)| value.as_str())
    }

    /// The parameter as it was written: its name or a variable's.
    pub(super) fn name<'a>(&'a self, name: &'a str) -> &'a str {
        self.0.get(name).map_or(name, |(_, written)| written)
    }

    /// A file that can be read.
    pub(super) fn file(&self, name: &str) -> Result<Option<String>> {
        let Some(path) = self.get(name) else { return Ok(None) };
        match std::fs::read(path) {
            Ok(_) => Ok(Some(path.to_owned())),
            Err(error) => refuse(format!("{}: the file cannot be read: {error}", self.name(name))),
        }
    }

    /// Whether a server must take writes to be the right one.
    pub(super) fn must_write(&self) -> Result<bool> {
        match self.get("target_session_attrs") {
            None | Some("any") => Ok(false),
            Some("read-write" | "primary") => Ok(true),
            Some("read-only" | "standby" | "prefer-standby") => refuse(format!(
                "{}: an outbox is written to; say read-write",
                self.name("target_session_attrs")
            )),
            Some(_) => refuse(format!(
                "{}: give any, read-write or primary",
                self.name("target_session_attrs")
            )),
        }
    }

    /// Whole seconds; none for what libpq takes as "no limit".
    pub(super) fn connect_timeout(&self) -> Result<Option<Duration>> {
        let Some(text) = self.get("connect_timeout") else { return Ok(None) };
        match text.trim().parse::<i32>() {
            Ok(seconds) => Ok(u64::try_from(seconds)
                .ok()
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs)),
            Err(_) => {
                refuse(format!("{}: not a whole number of seconds", self.name("connect_timeout")))
            }
        }
    }
}

fn take(
    given: &mut HashMap<&'static str, (String, &'static str)>,
    parameter: &Parameter,
    value: &str,
    written: &'static str,
) -> Result<()> {
    match &parameter.meaning {
        Done => {}
        WithoutEffect => return Ok(()),
        Only(values, _) if values.contains(&value) => {}
        Only(_, why) | Refused(why) => return refuse(format!("{written}: {why}")),
    }
    given.insert(parameter.names[0], (value.to_owned(), written));
    Ok(())
}

/// `options[name]=value`, the driver's own form: a setting of the session.
fn add_option(
    given: &mut HashMap<&'static str, (String, &'static str)>,
    setting: &str,
    value: &str,
) {
    let (options, _) = given.entry("options").or_insert_with(|| (String::new(), "options"));
    if !options.is_empty() {
        options.push(' ');
    }
    // A space ends a setting unless a backslash is before it.
    let escaped = value.replace('\\', "\\\\").replace(' ', "\\ ");
    options.push_str(&format!("-c {setting}={escaped}"));
}

/// What is not a word may be the rest of a password, and is not repeated.
fn unknown(name: &str) -> String {
    let is_word = name.len() <= 40
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if !is_word {
        return "a parameter that is not known; a password needs : / ? # [ ] @ and & percent-encoded"
            .into();
    }
    let names = PARAMETERS.iter().flat_map(|known| known.names);
    let near = names
        .map(|known| (strsim::jaro_winkler(&known.to_lowercase(), &name.to_lowercase()), known))
        .filter(|(score, _)| *score >= 0.85)
        .max_by(|(left, _), (right, _)| left.total_cmp(right));
    match near {
        Some((_, near)) => format!("unknown parameter {name}; did you mean {near}?"),
        None => format!("unknown parameter {name}; leave it out"),
    }
}
