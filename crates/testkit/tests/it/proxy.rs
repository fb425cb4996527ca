//! The proxy does to both sides what its methods say.

use std::io::ErrorKind;
use std::time::Duration;

use posthaste_testkit::servers::{Direction, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Long enough for bytes to arrive on one machine; what is held must not arrive, ever.
const A_WHILE: Duration = Duration::from_millis(200);

struct Fixture {
    proxy: Proxy,
    listener: TcpListener,
}

impl Fixture {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).await;
        Self { proxy, listener }
    }

    /// A client, and its connection as the server has it.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.proxy.address()).await.unwrap();
        (client, self.listener.accept().await.unwrap().0)
    }
}

async fn assert_carried(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).await.unwrap();
    let mut arrived = vec![0; text.len()];
    within(to.read_exact(&mut arrived)).await.unwrap();
    assert_eq!(arrived, text.as_bytes());
}

async fn assert_silent(connection: &mut TcpStream) {
    let read = tokio::time::timeout(A_WHILE, connection.read_u8()).await;
    assert!(read.is_err(), "something arrived: {read:?}");
}

async fn assert_reset(connection: &mut TcpStream) {
    let error = within(connection.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// What hangs fails.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("an end")
}

#[tokio::test]
async fn bytes_and_the_end_of_a_side_are_carried_both_ways() {
    let fixture = Fixture::start().await;
    let (mut client, mut server) = fixture.connect().await;
    assert_carried(&mut client, &mut server, "a question").await;
    assert_carried(&mut server, &mut client, "an answer").await;
    client.shutdown().await.unwrap();
    assert_eq!(within(server.read_u8()).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_carried(&mut server, &mut client, "the other side may still speak").await;
}

#[tokio::test]
async fn a_cut_resets_both_sides_and_new_connections_pass() {
    let fixture = Fixture::start().await;
    let (mut client, mut server) = fixture.connect().await;
    assert_carried(&mut client, &mut server, "before").await;
    fixture.proxy.cut();
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
    let (mut client, mut server) = fixture.connect().await;
    assert_carried(&mut client, &mut server, "after").await;
}

#[tokio::test]
async fn refusing_resets_new_connections_and_leaves_the_others() {
    let fixture = Fixture::start().await;
    let (mut client, mut server) = fixture.connect().await;
    fixture.proxy.refuse();
    let mut refused = TcpStream::connect(fixture.proxy.address()).await.unwrap();
    assert_reset(&mut refused).await;
    assert_carried(&mut client, &mut server, "still there").await;
    fixture.proxy.pass();
    let (mut client, mut server) = fixture.connect().await;
    assert_carried(&mut client, &mut server, "again").await;
}

#[tokio::test]
async fn what_is_held_one_way_arrives_when_it_may_pass() {
    let fixture = Fixture::start().await;
    let (mut client, mut server) = fixture.connect().await;
    assert_carried(&mut client, &mut server, "before").await;
    fixture.proxy.hold(Direction::ToClient);
    server.write_all(b"answer").await.unwrap();
    assert_carried(&mut client, &mut server, "questions go on").await;
    assert_silent(&mut client).await;
    fixture.proxy.pass();
    let mut arrived = [0; 6];
    within(client.read_exact(&mut arrived)).await.unwrap();
    assert_eq!(&arrived, b"answer");
}

#[tokio::test]
async fn what_is_lost_one_way_never_arrives_and_its_connection_ends() {
    let fixture = Fixture::start().await;
    let (mut client, mut server) = fixture.connect().await;
    fixture.proxy.lose(Direction::ToClient);
    server.write_all(b"answer").await.unwrap();
    assert_carried(&mut client, &mut server, "questions go on").await;
    assert_silent(&mut client).await;
    fixture.proxy.pass();
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_resets_its_clients() {
    let Fixture { proxy, listener } = Fixture::start().await;
    drop(listener);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_reset(&mut client).await;
}
