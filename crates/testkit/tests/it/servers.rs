//! The private servers do to clients what their methods say.

use std::time::Duration;

use posthaste_testkit::servers::{NatsCluster, NatsServer, PgBouncer, PostgresServer, SmallDisk};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a NATS server says first; `None` while it says nothing.
async fn greeting(client: &mut TcpStream, patience: Duration) -> Option<String> {
    let mut begin = [0; 5];
    let read = tokio::time::timeout(patience, client.read_exact(&mut begin)).await;
    read.ok().map(|read| {
        read.unwrap();
        String::from_utf8(begin.to_vec()).unwrap()
    })
}

#[tokio::test]
async fn a_frozen_nats_server_takes_connections_and_says_nothing_until_it_thaws() {
    let Some(nats) = NatsServer::start("").await else { return };
    nats.freeze();
    let mut client = TcpStream::connect(nats.address()).await.unwrap();
    assert_eq!(greeting(&mut client, Duration::from_millis(200)).await, None);
    nats.thaw();
    let said = greeting(&mut client, Duration::from_secs(30)).await;
    assert_eq!(said.as_deref(), Some("INFO "));
}

#[tokio::test]
async fn a_killed_nats_server_cuts_its_connections_and_comes_back_at_the_same_address() {
    let Some(mut nats) = NatsServer::start("").await else { return };
    let address = nats.address();
    let mut client = TcpStream::connect(&address).await.unwrap();
    nats.kill();
    nats.kill();
    let mut rest = Vec::new();
    // The end, or a reset; never a wait.
    let _ =
        tokio::time::timeout(Duration::from_secs(30), client.read_to_end(&mut rest)).await.unwrap();
    assert!(TcpStream::connect(&address).await.is_err());
    nats.restart().await;
    assert_eq!(nats.address(), address);
    assert!(TcpStream::connect(&address).await.is_ok());
}

#[tokio::test]
async fn a_nats_server_has_jetstream_unless_it_is_not_wanted() {
    let Some(with) = NatsServer::start("").await else { return };
    let Some(without) = NatsServer::start_without_jetstream("").await else { return };
    for (server, expected) in [(with, true), (without, false)] {
        let mut client = TcpStream::connect(server.address()).await.unwrap();
        let mut info = [0; 4_096];
        let length = client.read(&mut info).await.unwrap();
        let info = String::from_utf8_lossy(&info[..length]);
        assert_eq!(info.contains("\"jetstream\":true"), expected, "{info}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_what_it_logged() {
    let Some(_) = NatsServer::start("").await else { return };
    let started = tokio::spawn(async { NatsServer::start("no_such_setting: {").await.is_some() });
    let panic = started.await.unwrap_err().into_panic();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("the private server ended"), "{message}");
    assert!(message.contains("Parse error"), "{message}");
}

/// What PostgreSQL answers to the protocol's first message: `R` asks for no more, `E` refuses.
async fn answer(port: u16) -> Option<u8> {
    let parameters = b"user\0root\0database\0postgres\0\0";
    let mut message = u32::try_from(8 + parameters.len()).unwrap().to_be_bytes().to_vec();
    message.extend(196_608_u32.to_be_bytes());
    message.extend(parameters);
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    client.write_all(&message).await.ok()?;
    client.read_u8().await.ok()
}

#[tokio::test]
async fn a_killed_postgres_refuses_connections_and_a_restarted_one_takes_them_at_once() {
    let Some(mut server) = PostgresServer::start(&[]).await else { return };
    assert_eq!(answer(server.port()).await, Some(b'R'));
    server.kill();
    server.kill();
    assert_eq!(answer(server.port()).await, None);
    for _ in 0..3 {
        server.restart().await;
        assert_eq!(answer(server.port()).await, Some(b'R'));
    }
}

/// A server that outlived a part of itself would refuse to start on the same data.
#[tokio::test]
async fn a_postgres_that_lost_all_its_processes_at_once_comes_back_with_its_data() {
    let Some(mut server) = PostgresServer::start(&[]).await else { return };
    let mut client = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    client.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'N', "there is a process for this connection");
    server.kill_all();
    server.kill_all();
    let rest = tokio::time::timeout(Duration::from_secs(30), client.read_u8()).await.unwrap();
    assert!(rest.is_err(), "the connection's process has ended, too");
    assert_eq!(answer(server.port()).await, None);
    server.restart().await;
    assert_eq!(answer(server.port()).await, Some(b'R'));
}

#[tokio::test]
async fn a_standby_and_a_pooler_answer_beside_their_server() {
    let Some(server) = PostgresServer::start(&["max_connections=30"]).await else { return };
    let standby = server.standby().await;
    assert_ne!(standby.port(), server.port());
    assert_eq!(answer(standby.port()).await, Some(b'R'));
    let Some(pooler) = PgBouncer::start(&server).await else { return };
    let url = pooler.url("postgres");
    let port = url.strip_prefix("postgres://root@127.0.0.1:").unwrap().split('/').next().unwrap();
    assert_eq!(answer(port.parse().unwrap()).await, Some(b'R'));
}

#[test]
fn a_disk_that_is_full_refuses_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let file = disk.path().join("file");
    std::fs::write(&file, [0; 10_000]).unwrap();
    disk.fill(64);
    let refused = std::fs::write(disk.path().join("other"), vec![0; 1_000_000]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    disk.make_room();
    std::fs::write(disk.path().join("other"), vec![0; 1_000_000]).unwrap();
    assert_eq!(std::fs::read(&file).unwrap().len(), 10_000, "what was there stays");
}

#[tokio::test]
async fn a_data_folder_on_a_disk_of_its_own_and_a_standby_that_is_promoted_are_servers() {
    let Some(disk) = SmallDisk::mount() else { return };
    let Some(mut server) = PostgresServer::start_on(&disk, &[]).await else { return };
    assert!(disk.path().join("data/base").exists());
    let mut standby = server.standby().await;
    let address = server.port();
    server.kill();
    standby.restart_at(address).await;
    standby.promote();
    assert_eq!(answer(address).await, Some(b'R'));
}

#[tokio::test]
async fn a_server_that_is_cut_off_from_its_cluster_still_answers_its_clients() {
    let Some(cluster) = NatsCluster::start_recent(3).await else { return };
    let first = cluster.urls(1).split(',').next().unwrap().replace("nats://", "");
    cluster.cut_off(1);
    let mut client = TcpStream::connect(&first).await.unwrap();
    assert_eq!(greeting(&mut client, Duration::from_secs(10)).await.unwrap(), "INFO ");
    cluster.heal();
    assert_eq!(cluster.urls(0).split(',').count(), 3);
}
