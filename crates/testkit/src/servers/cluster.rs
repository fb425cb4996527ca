//! NATS servers that are one cluster, and the network between them.

use super::{NatsServer, Proxy, free_port};
use crate::servers::Direction;

/// Nowhere: servers that hear of each other's addresses must not find a way around the proxies.
const NOWHERE: &str = "127.0.0.1:1";

/// Recent NATS servers with JetStream that are one cluster. Each reaches each other one through a
/// [`Proxy`], so that one of them can be cut off from its peers while clients reach it.
pub struct NatsCluster {
    servers: Vec<NatsServer>,
    links: Vec<Link>,
}

/// One server's way to another one.
struct Link {
    ends: [usize; 2],
    proxy: Proxy,
}

impl NatsCluster {
    /// Starts so many servers, named `server0` and on. It takes them some seconds to agree on a
    /// leader, and until then they create no stream. `None` as for [`NatsServer::start_recent`].
    ///
    /// # Panics
    /// As [`NatsServer::start_recent`].
    pub async fn start_recent(size: usize) -> Option<Self> {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let (mut servers, mut links) = (Vec::new(), Vec::new());
        for (number, port) in ports.iter().enumerate() {
            let mut routes = Vec::new();
            for peer in (0..size).filter(|peer| *peer != number) {
                let proxy = Proxy::start(format!("127.0.0.1:{}", ports[peer])).await;
                routes.push(format!("nats://{}", proxy.address()));
                links.push(Link { ends: [number, peer], proxy });
            }
            let routes = routes.join(", ");
            let config = format!(
                "server_name: server{number}\n\
                 cluster {{ name: test, listen: \"127.0.0.1:{port}\", advertise: \"{NOWHERE}\", \
                 routes: [{routes}] }}"
            );
            servers.push(NatsServer::start_recent(&config).await?);
        }
        Some(Self { servers, links })
    }

    /// The servers, by number.
    pub fn servers(&mut self) -> &mut [NatsServer] {
        &mut self.servers
    }

    /// Where clients connect: all servers, that with the number `first` before the others, with
    /// commas between.
    #[must_use]
    pub fn urls(&self, first: usize) -> String {
        let size = self.servers.len();
        let urls: Vec<String> =
            (0..size).map(|number| self.servers[(first + number) % size].url()).collect();
        urls.join(",")
    }

    /// Lets nothing pass between the server and its peers until [`heal`](Self::heal). Their
    /// connections stay, as on a network that has gone silent.
    pub fn cut_off(&self, server: usize) {
        for link in self.links.iter().filter(|link| link.ends.contains(&server)) {
            link.proxy.hold(Direction::ToServer);
            link.proxy.hold(Direction::ToClient);
        }
    }

    /// Lets everything pass again, also what waited.
    pub fn heal(&self) {
        self.links.iter().for_each(|link| link.proxy.pass());
    }
}
