//! A TCP proxy before a server, to break what lies between the two.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What one read takes at most.
const BUFFER_BYTES: usize = 64 * 1024;
/// What a slow connection carries each millisecond.
const SLOW_BYTES: usize = 1_024;

/// One way through a [`Proxy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What clients ask.
    ToServer,
    /// What the server answers.
    ToClient,
}

/// Carries bytes between clients and a server, until it is told otherwise. It runs within the
/// test, on its tokio runtime; its connections break when it is dropped.
///
/// ```
/// use posthaste_testkit::servers::{Direction, Proxy};
/// use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
/// use tokio::net::{TcpListener, TcpStream};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let server = TcpListener::bind("127.0.0.1:0").await?;
/// let proxy = Proxy::start(server.local_addr()?.to_string()).await;
/// let mut client = TcpStream::connect(proxy.address()).await?;
/// let (mut served, _) = server.accept().await?;
/// proxy.hold(Direction::ToClient);
/// client.write_all(b"a question").await?;
/// assert_eq!(served.read(&mut [0; 10]).await?, 10);
/// served.write_all(b"an answer that waits").await?;
/// proxy.pass();
/// assert_eq!(client.read(&mut [0; 9]).await?, 9);
/// # Ok(())
/// # }
/// ```
pub struct Proxy {
    address: SocketAddr,
    control: watch::Sender<Control>,
    accepting: JoinHandle<()>,
}

/// What becomes of the bytes that go one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Passing,
    Slow,
    Held,
    Lost,
}

#[derive(Debug, Clone, Copy)]
struct Control {
    to_server: Flow,
    to_client: Flow,
    is_refusing: bool,
    /// How often all connections were cut: a connection ends when it changes.
    cuts: u64,
}

impl Control {
    const fn flow(&self, direction: Direction) -> Flow {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
        }
    }

    const fn flow_mut(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }

    /// Whether what passes from now on would have a hole before it.
    fn has_lost(&self) -> bool {
        self.to_server == Flow::Lost || self.to_client == Flow::Lost
    }
}

impl Proxy {
    /// Listens on a port of 127.0.0.1 and carries what comes to `server`, a host and a port. The
    /// server is connected to once for each client, so it may start later, or again.
    ///
    /// # Panics
    /// Where no port can be had.
    pub async fn start(server: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port for a proxy");
        let address = listener.local_addr().expect("the address of a proxy");
        let passing = Control {
            to_server: Flow::Passing,
            to_client: Flow::Passing,
            is_refusing: false,
            cuts: 0,
        };
        let (control, state) = watch::channel(passing);
        let accepting = tokio::spawn(accept(listener, server.into(), state));
        Self { address, control, accepting }
    }

    /// Where clients connect, as host and port.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Resets every connection. New ones are carried, unless they are refused.
    pub fn cut(&self) {
        self.control.send_modify(|control| control.cuts += 1);
    }

    /// Resets new connections at once, until [`pass`](Self::pass). Those there are go on.
    pub fn refuse(&self) {
        self.control.send_modify(|control| control.is_refusing = true);
    }

    /// Carries nothing more in `direction` until [`pass`](Self::pass): not even the end of a
    /// connection. Bytes wait here or with their sender, as on a network that has gone silent.
    pub fn hold(&self, direction: Direction) {
        self.control.send_modify(|control| *control.flow_mut(direction) = Flow::Held);
    }

    /// Carries no more than a kilobyte each millisecond in `direction` until [`pass`](Self::pass), as a
    /// thin line does.
    pub fn slow(&self, direction: Direction) {
        self.control.send_modify(|control| *control.flow_mut(direction) = Flow::Slow);
    }

    /// Takes bytes in `direction` and drops them, until [`pass`](Self::pass): the sender believes
    /// that they are on their way.
    pub fn lose(&self, direction: Direction) {
        self.control.send_modify(|control| *control.flow_mut(direction) = Flow::Lost);
    }

    /// Carries everything again. What was held arrives now; after [`lose`](Self::lose), connections
    /// are reset, as they would be when the receiver meets bytes out of place.
    pub fn pass(&self) {
        self.control.send_modify(|control| {
            control.cuts += u64::from(control.has_lost());
            (control.to_server, control.to_client) = (Flow::Passing, Flow::Passing);
            control.is_refusing = false;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, server: String, state: watch::Receiver<Control>) {
    while let Ok((client, _)) = listener.accept().await {
        let now = *state.borrow();
        if now.is_refusing {
            reset(&client);
        } else {
            tokio::spawn(carry(client, server.clone(), now.cuts, state.clone()));
        }
    }
}

/// Carries one connection to its end: both sides closed, one side broke, or it was cut.
async fn carry(mut client: TcpStream, server: String, cuts: u64, state: watch::Receiver<Control>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return reset(&client) };
    // Small messages must not wait for others: that would be slower than without a proxy.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut cut = state.clone();
    let ended = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let asked = pump(client_reads, server_writes, Direction::ToServer, state.clone());
        let answered = pump(server_reads, client_writes, Direction::ToClient, state);
        tokio::select! {
            // Also when the proxy is gone.
            _ = cut.wait_for(|control| control.cuts != cuts) => Err(io::ErrorKind::BrokenPipe.into()),
            ended = async { tokio::try_join!(asked, answered) } => ended.map(|_| ()),
        }
    };
    if ended.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// Carries one way until its sender closes it; then closes it for the receiver, too.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    mut state: watch::Receiver<Control>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut has_hole = false;
    loop {
        unless_held(direction, &mut state).await?;
        let length = from.read(&mut buffer).await?;
        // It may have been held while this waited for bytes.
        match unless_held(direction, &mut state).await? {
            Flow::Lost if length > 0 => has_hole = true,
            // Whoever is to cut the connection may not have come to it yet.
            _ if has_hole => return Err(io::ErrorKind::BrokenPipe.into()),
            _ if length == 0 => return to.shutdown().await,
            Flow::Slow => {
                for piece in buffer[..length].chunks(SLOW_BYTES) {
                    to.write_all(piece).await?;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            _ => to.write_all(&buffer[..length]).await?,
        }
    }
}

async fn unless_held(
    direction: Direction,
    state: &mut watch::Receiver<Control>,
) -> io::Result<Flow> {
    let state = state.wait_for(|control| control.flow(direction) != Flow::Held).await;
    state.map(|control| control.flow(direction)).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Closes it with a reset instead of an orderly end, as soon as it is dropped.
fn reset(connection: &TcpStream) {
    let _ = connection.set_zero_linger();
}
