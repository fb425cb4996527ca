//! What of libpq's forms is done, and what is refused.

use sqlx::postgres::PgSslMode;

use super::*;

fn read(url: &str) -> Result<Address> {
    Address::read(Some(url), &|_| None)
}

fn read_with(url: Option<&str>, environment: &[(&str, &str)]) -> Result<Address> {
    Address::read(url, &|name| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

/// `host:port` of each server; the folder for a socket.
fn servers(address: &Address) -> Vec<String> {
    let server = |options: &PgConnectOptions| match options.get_socket() {
        Some(folder) => format!("{}:{}", folder.display(), options.get_port()),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    address.servers.iter().map(server).collect()
}

#[test]
fn hosts_are_found_in_all_of_libpqs_forms() {
    for (url, expected) in [
        ("postgres://u:p@h:5433/d", &["h:5433"][..]),
        ("postgres://u@[::1]:5433/d", &["::1:5433"]),
        ("postgres://u@/d?host=/cloudsql/a:b:c", &["/cloudsql/a:b:c:5432"]),
        ("postgres:///d?host=h&port=5433", &["h:5433"]),
        ("postgres://%2Fvar%2Frun/d", &["/var/run:5432"]),
        ("postgres://h1:5433,h2/d", &["h1:5433", "h2:5432"]),
        ("postgres:///d?host=h1,h2&port=5433,5434", &["h1:5433", "h2:5434"]),
        ("postgres:///d?host=h1,h2&port=5433", &["h1:5433", "h2:5433"]),
        ("postgres://h/d?hostaddr=10.0.0.1", &["10.0.0.1:5432"]),
    ] {
        assert_eq!(servers(&read(url).unwrap()), expected, "{url}");
    }
    let address = read_with(None, &[("PGHOST", "h1,h2"), ("PGPORT", "5433")]).unwrap();
    assert_eq!(servers(&address), ["h1:5433", "h2:5433"]);
    let address = read_with(Some("postgres://h:5434/d"), &[("PGHOST", "x"), ("PGPORT", "1")]);
    assert_eq!(servers(&address.unwrap()), ["h:5434"]);
}

#[test]
fn the_place_is_what_schema_says() {
    let options = |url: &str| format!("{:?}", read(url).unwrap().servers[0]);
    assert!(options("postgres://h/d?schema=tenant7").contains("search_path=tenant7"));
    assert!(options("postgres://h/d?currentSchema=a,b").contains("search_path=a,b"));
    let quoted = options("postgres://h/d?schema=Tenant%207");
    assert!(quoted.contains("Tenant") && quoted.contains("search_path="), "{quoted}");
}

#[test]
fn of_several_hosts_the_one_that_takes_writes_is_meant() {
    assert!(read("postgres://h1,h2/d").unwrap().must_write);
    assert!(read("postgres://h/d?target_session_attrs=read-write").unwrap().must_write);
    assert!(!read("postgres://h/d").unwrap().must_write);
    assert!(read("postgres://h/d?target_session_attrs=standby").is_err());
}

#[test]
fn authorities_that_are_named_are_asked() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, "").unwrap();
    let address = read(&format!("postgres://h/d?sslmode=require&sslrootcert={}", ca.display()));
    assert!(matches!(address.unwrap().servers[0].get_ssl_mode(), PgSslMode::VerifyCa));
    let address = read("postgres://h/d?sslrootcert=system").unwrap();
    assert!(matches!(address.servers[0].get_ssl_mode(), PgSslMode::VerifyFull));
    assert!(read("postgres://h/d?sslrootcert=system&sslmode=require").is_err());
}

#[test]
fn what_concerns_safety_or_place_is_done_or_refused_and_no_value_is_repeated() {
    for (query, named) in [
        ("sslmodee=hunter2", "did you mean sslmode?"),
        ("sslMode=hunter2", "did you mean sslmode?"),
        ("passwd=hunter2", "did you mean password?"),
        ("sslmode=hunter2", "sslmode: give one of disable"),
        ("sslpassword=hunter2", "sslpassword: a key with a password"),
        ("service=hunter2", "service: pg_service.conf"),
        ("channel_binding=require&x=hunter2", "sslmode=verify-full"),
        ("sslrootcert=/no/hunter2", "sslrootcert: the file cannot be read"),
        ("sslcrl=hunter2", "sslcrl: posthaste cannot check"),
        ("target_session_attrs=hunter2", "target_session_attrs: give any"),
        ("connect_timeout=hunter2", "connect_timeout: not a whole number"),
        ("port=hunter2", "port: not a whole number"),
        ("hunter2", "a parameter without a value"),
        ("a@hunter2=1", "a parameter that is not known"),
    ] {
        let error = read(&format!("postgres://u:pw@h/d?{query}")).unwrap_err().report();
        assert!(error.contains(named), "{query}: {error}");
        assert!(!error.contains("hunter2") && !error.contains("pw@"), "{error}");
    }
    for url in [
        "postgres://u:p@ss/w#hunter2@h/d",
        "postgres://u:p/hunter2@h/d",
        "postgres://u:hunter2?x@h/d",
        "postgres://u:hunter2/d",
        "mysql://u:hunter2@h/d",
        "hunter2",
    ] {
        let error = read(url).unwrap_err();
        assert!(!error.report().contains("hunter2"), "{}", error.report());
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

#[test]
fn a_bad_variable_is_refused_by_its_name() {
    for (variable, value) in [
        ("PGSSLMODE", "bogus"),
        ("PGPORT", "abc"),
        ("PGSERVICE", "orders"),
        ("PGCHANNELBINDING", "require"),
        ("PGSSLROOTCERT", "/no/such/file"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGTARGETSESSIONATTRS", "standby"),
    ] {
        let error = read_with(Some("postgres://h/d"), &[(variable, value)]).unwrap_err().report();
        let expected = if variable == "PGPORT" { "port" } else { variable };
        assert!(error.contains(expected), "{variable}: {error}");
    }
    // What the URL says overrules the variable, and then nobody reads it.
    read_with(Some("postgres://h/d?sslmode=require"), &[("PGSSLMODE", "bogus")]).unwrap();
}

#[test]
fn where_no_user_is_named_it_is_the_one_of_the_process() {
    let user = |url, environment: &[(&str, &str)]| {
        let address = read_with(Some(url), environment).unwrap();
        (address.servers[0].get_username().to_owned(), address.own_user)
    };
    let named = |name: &str| (name.to_owned(), None);
    let variable = ("PGUSER", "of_variable");
    assert_eq!(user("postgres://u@h/d", &[variable]), named("u"));
    assert_eq!(user("postgres://u@h/d?user=v", &[variable]), named("v"));
    assert_eq!(user("postgres://h/d", &[variable]), named("of_variable"));
    let own = whoami::username().unwrap();
    assert_eq!(user("postgres://h/d", &[]), (own.clone(), Some(own)));
}

#[test]
fn what_changes_neither_is_taken() {
    let address = read(
        "postgresql://u@h/d?application_name=x&keepalives=1&connect_timeout=3&gssencmode=disable\
         &channel_binding=prefer&pgbouncer=true",
    )
    .unwrap();
    assert_eq!(address.connect_timeout, Some(Duration::from_secs(3)));
    assert!(address.transaction_pooler);
}

#[test]
fn user_password_and_database_arrive_as_they_were_meant() {
    let address = read("postgres://u%40x:p%3A%2F+@h/d%20d?options[work_mem]=1MB").unwrap();
    let shown = format!("{:?}", address.servers[0]);
    assert_eq!(address.servers[0].get_username(), "u@x");
    assert_eq!(address.servers[0].get_database(), Some("d d"));
    assert!(shown.contains("p:/+") && shown.contains("-c work_mem=1MB"), "{shown}");
}
