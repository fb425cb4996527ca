//! Logins that may do what their role says, and nothing else.

use uuid::Uuid;

use super::database::TestDatabase;

/// The roles of `migrate sql --roles` under names of the test's own, since roles are the server's.
pub(crate) struct OwnRoles<'d> {
    database: &'d TestDatabase,
    prefix: String,
}

impl<'d> OwnRoles<'d> {
    const ALL: [&'static str; 4] = ["writer", "relay", "operator", "migrator"];

    pub(crate) async fn create(database: &'d TestDatabase, sql: &str) -> Self {
        let roles = Self { database, prefix: format!("p{}_", Uuid::now_v7().simple()) };
        let rename =
            |sql: String, role: &&str| sql.replace(&format!("outbox_{role}"), &roles.name_of(role));
        let renamed = Self::ALL.iter().fold(sql.to_owned(), rename);
        // The table that is named as the role is.
        let renamed = renamed.replace(&format!("{}relays", roles.prefix), "outbox_relays");
        database.run(&renamed).await;
        roles
    }

    fn name_of(&self, role: &str) -> String {
        format!("{}{role}", self.prefix)
    }

    /// The address for a login that is this role, and nothing else.
    pub(crate) async fn login(&self, role: &str) -> String {
        let name = self.name_of(role);
        self.database.run(&format!("alter role {name} login")).await;
        let url = self.database.url();
        let (scheme, rest) = url.split_once("://").unwrap();
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        format!("{scheme}://{name}@{host}")
    }
}

impl Drop for OwnRoles<'_> {
    fn drop(&mut self) {
        for role in Self::ALL {
            let role = self.name_of(role);
            self.database.run_at_the_end(format!("drop owned by {role} cascade; drop role {role}"));
        }
    }
}
