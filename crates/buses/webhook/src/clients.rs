//! The HTTP client of the moment: connections have an age, and do not outlive time-outs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use posthaste_core::{Error, ErrorKind, Result};
use reqwest::Client;
use rustls::ClientConfig;

use super::address::PublicResolver;

/// The longest that new requests use the same connections. A name that has moved is followed then,
/// however well the old address answers.
const AGE_MAX: Duration = Duration::from_secs(60);
/// After so many time-outs in a row nothing more is sent over the same connections: over HTTP/2 all
/// requests share one, and it may lead to something that hangs.
const TIMEOUTS_MAX: u32 = 2;
/// How often a connection of HTTP/2 with requests under way is asked whether anybody is there, and
/// how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Makes clients and hands out the current one.
#[derive(Debug)]
pub(super) struct Clients {
    recipe: Recipe,
    current: Mutex<Current>,
}

/// What all clients of a bus have in common.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) tls: ClientConfig,
    pub(super) timeout: Duration,
    pub(super) idle_connections_max: usize,
    pub(super) addresses: Addresses,
}

/// Where the addresses of a name come from.
#[derive(Debug)]
pub(super) enum Addresses {
    /// The machine's own look-up.
    All,
    /// The same, without those that are not public.
    PublicOnly,
    #[cfg(test)]
    Given(&'static str, Vec<std::net::SocketAddr>),
}

#[derive(Debug)]
struct Current {
    client: Client,
    generation: u64,
    made: Instant,
    timeouts_in_a_row: u32,
}

impl Clients {
    /// # Errors
    /// [`ErrorKind::Config`] where no client can be made.
    pub(super) fn new(recipe: Recipe) -> Result<Self> {
        let client = recipe.client().map_err(|error| {
            Error::new(ErrorKind::Config, "configure webhook", "cannot set up the HTTP client")
                .with_source(error.without_url())
        })?;
        let current = Current { client, generation: 0, made: Instant::now(), timeouts_in_a_row: 0 };
        Ok(Self { recipe, current: Mutex::new(current) })
    }

    /// The client for the next request, and its number.
    pub(super) fn get(&self) -> (Client, u64) {
        self.get_at(Instant::now())
    }

    fn get_at(&self, now: Instant) -> (Client, u64) {
        let mut current = self.current();
        if now.duration_since(current.made) >= AGE_MAX || current.timeouts_in_a_row >= TIMEOUTS_MAX
        {
            // What went well once does not fail; if it does, the old one serves on.
            if let Ok(client) = self.recipe.client() {
                current.client = client;
                current.generation += 1;
            }
            (current.made, current.timeouts_in_a_row) = (now, 0);
        }
        (current.client.clone(), current.generation)
    }

    /// Takes into account that a request of the client with that number was answered, or was not in
    /// time.
    pub(super) fn note(&self, generation: u64, timed_out: bool) {
        let mut current = self.current();
        if current.generation == generation {
            current.timeouts_in_a_row =
                if timed_out { current.timeouts_in_a_row.saturating_add(1) } else { 0 };
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recipe {
    fn client(&self) -> reqwest::Result<Client> {
        // What the receiver says it did not process (GOAWAY, REFUSED_STREAM) the client sends again
        // by itself, as RFC 9113 §8.7 has it; nothing else.
        let mut builder = Client::builder()
            .user_agent(concat!("posthaste/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(self.tls.clone())
            .timeout(self.timeout)
            // The client divides it among the addresses of a name. So an address that drops packets
            // leaves time for the next one, and for the request.
            .connect_timeout(self.timeout / 2)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(self.idle_connections_max)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_INTERVAL);
        builder = match &self.addresses {
            Addresses::All => builder,
            Addresses::PublicOnly => builder.dns_resolver(PublicResolver),
            #[cfg(test)]
            Addresses::Given(name, addresses) => builder.resolve_to_addrs(name, addresses),
        };
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        let recipe = Recipe {
            tls: posthaste_bus_kit::tls::none("test").unwrap(),
            timeout: Duration::from_secs(1),
            idle_connections_max: 1,
            addresses: Addresses::All,
        };
        Clients::new(recipe).unwrap()
    }

    #[test]
    fn connections_have_an_age() {
        let clients = clients();
        let made = clients.current().made;
        assert_eq!(clients.get_at(made + AGE_MAX - Duration::from_millis(1)).1, 0);
        assert_eq!(clients.get_at(made + AGE_MAX).1, 1);
        assert_eq!(clients.get_at(made + AGE_MAX * 3 / 2).1, 1);
    }

    #[test]
    fn time_outs_in_a_row_end_the_use_of_a_connection() {
        let clients = clients();
        clients.note(0, true);
        clients.note(0, false);
        clients.note(0, true);
        assert_eq!(clients.get().1, 0);
        clients.note(0, true);
        assert_eq!(clients.get().1, 1);
        // Late ones say nothing of the new.
        clients.note(0, true);
        clients.note(0, true);
        assert_eq!(clients.get().1, 1);
    }

    /// Listens, and drops what comes: its queue is full, which is when Linux does so.
    #[cfg(target_os = "linux")]
    async fn silent() -> (tokio::net::TcpListener, Vec<tokio::net::TcpStream>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        let connect = || tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let patience = Duration::from_millis(300);
        while let Ok(connected) = tokio::time::timeout(patience, connect()).await {
            queued.push(connected.unwrap());
        }
        (listener, queued)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_address_that_drops_packets_leaves_time_for_the_next() {
        use std::io::{Read as _, Write as _};
        let (silent, _queued) = silent().await;
        let port = silent.local_addr().unwrap().port();
        let receiver = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = receiver.accept().unwrap();
            let _ = stream.read(&mut [0; 4_096]);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        });
        let addresses = [[127, 0, 0, 1], [127, 0, 0, 2]].map(|address| (address, port).into());
        let recipe = Recipe {
            tls: posthaste_bus_kit::tls::none("test").unwrap(),
            timeout: Duration::from_secs(4),
            idle_connections_max: 1,
            addresses: Addresses::Given("receiver.test", addresses.to_vec()),
        };
        let (client, _) = Clients::new(recipe).unwrap().get();
        let answer = client.post(format!("http://receiver.test:{port}/")).send().await.unwrap();
        assert_eq!(answer.status(), 204);
    }
}
