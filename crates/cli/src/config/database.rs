//! The address of the outbox.

use std::path::PathBuf;

use posthaste_config::secrets::redact_url;
use posthaste_config::value::Refusal;
use posthaste_postgres::PostgresOptions;

/// The file that is used when nothing names a database.
pub(crate) const DEFAULT_FILE: &str = "posthaste.db";

/// What other programs write before the name of a SQLite file.
const SQLITE_LIKE: [&str; 2] = ["sqlite", "file"];
/// Parameters of other clients that change nothing here.
const PARAMETERS: [&str; 2] = ["mode=rwc", "mode=rw"];

/// Which database holds the outbox.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Database {
    /// PostgreSQL at a URL, or where the `PG*` variables say.
    Postgres {
        /// `None` for the `PG*` variables.
        url: Option<String>,
    },
    /// A SQLite file.
    Sqlite {
        /// Its path.
        path: PathBuf,
    },
}

impl Database {
    /// `postgres` or `sqlite`.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Postgres { .. } => "postgres",
            Self::Sqlite { .. } => "sqlite",
        }
    }

    /// Its address without any secret.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Postgres { url: Some(url) } => redact_url(url),
            Self::Postgres { url: None } => {
                let part = |name: &str| std::env::var(name).unwrap_or_default();
                format!("postgres://{}/{} (from PG* variables)", part("PGHOST"), part("PGDATABASE"))
            }
            Self::Sqlite { path } => format!("sqlite:{}", path.display()),
        }
    }
}

/// Not derived: the URL may hold a password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address())
    }
}

/// Reads an address.
///
/// # Errors
/// A scheme that no store here understands, or no scheme at all.
pub(crate) fn parse(text: &str) -> Result<Database, Refusal> {
    let text = text.trim();
    let mend = || "write postgres://USER@HOST/DATABASE or sqlite:PATH".to_owned();
    if let Some(path) = text.strip_prefix("sqlite:") {
        return sqlite(path.strip_prefix("//").unwrap_or(path));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        // One letter is a drive.
        if let Some((scheme, _)) = text.split_once(':')
            && scheme.len() > 1
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
            && SQLITE_LIKE.iter().any(|known| scheme.to_ascii_lowercase().starts_with(known))
        {
            return Err((format!("{scheme}: is no form of an address"), mend()));
        }
        if [".db", ".sqlite", ".sqlite3"].iter().any(|ending| text.ends_with(ending)) {
            return Ok(Database::Sqlite { path: text.into() });
        }
        // Not repeated in the message: it may be a password, or hold one.
        return Err(("is not the address of a database".into(), mend()));
    };
    // SQLAlchemy names its driver here: postgresql+psycopg://, sqlite+aiosqlite://.
    match scheme.split('+').next().unwrap_or_default() {
        "postgres" | "postgresql" => {
            let url = (!rest.is_empty()).then(|| format!("postgres://{rest}"));
            let options = PostgresOptions { url: url.clone(), ..PostgresOptions::default() };
            match options.validate() {
                Ok(()) => Ok(Database::Postgres { url }),
                Err(error) => {
                    let text = error.report();
                    let why = text.strip_prefix(error.operation()).unwrap_or(&text);
                    Err((
                        format!("cannot be used{why}"),
                        "posthaste takes the URLs of libpq: see `posthaste config reference`"
                            .into(),
                    ))
                }
            }
        }
        "sqlite" => sqlite(rest),
        other => Err((
            format!("{other}:// is not a database that posthaste knows"),
            format!("{}; --database-url overrules all other places", mend()),
        )),
    }
}

fn sqlite(path: &str) -> Result<Database, Refusal> {
    let mend = || "write sqlite:PATH, with the path as it is".to_owned();
    let (path, parameters) = path.split_once('?').unwrap_or((path, ""));
    if path.is_empty() || path.contains(":memory:") {
        return Err((
            "names no file, and a database in memory ends with this process".into(),
            "write sqlite:PATH".into(),
        ));
    }
    if path.starts_with("file:") {
        return Err(("has two schemes, and would name a file called `file:…`".into(), mend()));
    }
    if is_percent_encoded(path) {
        return Err(("is percent-encoded, and nothing here decodes it".into(), mend()));
    }
    let unknown =
        parameters.split('&').find(|given| !given.is_empty() && !PARAMETERS.contains(given));
    if let Some(parameter) = unknown {
        // Not its value, which may be a secret.
        let name = parameter.split('=').next().unwrap_or_default();
        return Err((
            format!("has the parameter {name}, which means nothing here"),
            format!("{}; a path with a question mark cannot be named", mend()),
        ));
    }
    Ok(Database::Sqlite { path: path.into() })
}

/// Whether a client that decodes would take another file.
fn is_percent_encoded(path: &str) -> bool {
    path.as_bytes()
        .windows(3)
        .any(|part| part[0] == b'%' && part[1..].iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite_at(path: &str) -> Database {
        Database::Sqlite { path: path.into() }
    }

    #[test]
    fn addresses_of_both_databases_are_understood_in_their_usual_spellings() {
        let postgres = |url: &str| Database::Postgres { url: Some(url.into()) };
        for (text, expected) in [
            ("postgres://u:p@h/d", postgres("postgres://u:p@h/d")),
            ("postgresql://h/d", postgres("postgres://h/d")),
            ("postgresql+psycopg://h/d", postgres("postgres://h/d")),
            ("postgres://", Database::Postgres { url: None }),
            ("sqlite:a.db", sqlite_at("a.db")),
            ("sqlite://a.db?mode=rwc", sqlite_at("a.db")),
            ("sqlite:///var/a.db", sqlite_at("/var/a.db")),
            ("sqlite+aiosqlite://a.db", sqlite_at("a.db")),
            ("dir/a.db", sqlite_at("dir/a.db")),
            ("sqlite:100%.db", sqlite_at("100%.db")),
            ("C:/data/a.db", sqlite_at("C:/data/a.db")),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_form_that_would_make_another_file_is_refused() {
        for (bad, why) in [
            ("sqlite:a?b.db", "parameter b.db"),
            ("sqlite://a.db?mode=ro", "parameter mode"),
            ("sqlite:a.db?key=hunter2", "parameter key"),
            ("sqlite3:a.db", "sqlite3: is no form"),
            ("SQLITE:a.db", "SQLITE: is no form"),
            ("file:a.db", "file: is no form"),
            ("sqlite+aiosqlite:a.db", "sqlite+aiosqlite: is no form"),
            ("sqlite:file:a.db", "two schemes"),
            ("sqlite:///a%20b.db", "percent-encoded"),
            ("sqlite3://a.db", "sqlite3:// is not a database"),
        ] {
            let (told, help) = parse(bad).unwrap_err();
            assert!(told.contains(why), "{bad}: {told}");
            assert!(help.contains("sqlite:PATH"), "{bad}: {help}");
            assert!(!told.contains("hunter2") && !help.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn an_unknown_address_is_refused_without_being_repeated() {
        for bad in ["mysql://u:pw@h/d", "host=h password=pw", "sqlite::memory:", "sqlite:", "pw"] {
            let (why, help) = parse(bad).unwrap_err();
            assert!(!why.contains("pw"), "{why}");
            assert!(help.contains("sqlite:PATH"), "{help}");
        }
    }
}
