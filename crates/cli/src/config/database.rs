//! The address of the outbox.

use std::path::PathBuf;

use posthaste_postgres::PostgresOptions;

use super::secrets::redact_url;
use super::value::Refusal;

/// The file that is used when nothing names a database.
pub(crate) const DEFAULT_FILE: &str = "posthaste.db";

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
    // Parameters (`?mode=rwc`) are other clients' affair.
    let path = path.split('?').next().unwrap_or_default();
    if path.is_empty() || path.contains(":memory:") {
        return Err((
            "names no file, and a database in memory ends with this process".into(),
            "write sqlite:PATH".into(),
        ));
    }
    Ok(Database::Sqlite { path: path.into() })
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
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
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
