//! `posthaste run` into a webhook: the program, SQLite, and a receiver that speaks HTTP/1.1.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::common::{AGGREGATE, Cli};

/// A request as it came: its headers in lower case, and its body.
struct Request {
    headers: String,
    body: String,
}

/// Listens, answers each request with the next of `answers` and then with 204, and passes on what
/// came.
fn receiver(answers: Vec<&'static str>) -> (String, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    let mut answers = answers.into_iter();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = answers.next().unwrap_or("204 No Content");
            if serve(stream.unwrap(), answer, &sender).is_none() {
                return; // The test is over.
            }
        }
    });
    (url, requests)
}

fn serve(mut stream: TcpStream, answer: &str, sender: &Sender<Request>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut headers = String::new();
    while !headers.ends_with("\r\n\r\n") {
        reader.read_line(&mut headers).unwrap();
    }
    let headers = headers.to_lowercase();
    let length =
        headers.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    let body = String::from_utf8(body).unwrap();
    // The start-up check asks with OPTIONS; only what is posted counts.
    if headers.starts_with("post ") {
        sender.send(Request { headers, body }).ok()
    } else {
        Some(())
    }
}

fn configured(url: &str, more: &str) -> Cli {
    let cli = Cli::migrated();
    cli.write(
        "posthaste.toml",
        format!("[destinations.hook]\ntype = \"webhook\"\nurl = \"{url}\"\n{more}"),
    );
    cli
}

#[test]
fn events_are_posted_signed_and_counted_as_delivered() {
    let (url, requests) = receiver(Vec::new());
    let secret = "secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n";
    // A proxy of the machine's is not used.
    let cli = configured(&url, &format!("{secret}allow_private_addresses = true\n"))
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .env("http_proxy", "http://127.0.0.1:1");
    cli.publish("order.placed", r#"{"total":42}"#);
    cli.run(&["run", "--once"]).succeeded();
    let request = requests.try_recv().unwrap();
    assert_eq!(request.body, r#"{"total":42}"#);
    for expected in ["ce-type: order.placed", "webhook-signature: v1,", AGGREGATE] {
        assert!(request.headers.contains(expected), "{expected} is not in {}", request.headers);
    }
    assert_eq!(cli.pending(), 0);
}

#[test]
fn a_receiver_that_is_overloaded_costs_no_attempt_and_one_that_refuses_makes_a_dead_letter() {
    let (url, _requests) = receiver(vec!["503 Service Unavailable"; 2]);
    let cli = configured(&url, "allow_private_addresses = true\n");
    cli.publish("order.placed", "1");
    cli.run(&["run", "--drain"]).succeeded();
    assert_eq!(
        cli.json(&["events", "list", "--state", "delivered"])["events"][0]["retry_count"],
        0
    );

    let (url, _requests) = receiver(vec!["422 Unprocessable Content"; 2]);
    let cli = configured(&url, "allow_private_addresses = true\n");
    cli.publish("order.placed", "1");
    cli.run(&["run", "--drain"]).succeeded();
    let dead = cli.json(&["events", "list", "--state", "dead"]);
    assert_eq!(dead["events"][0]["dead_reason"], "rejected", "{dead}");
}

#[test]
fn a_private_address_is_refused_unless_allowed() {
    let (url, requests) = receiver(Vec::new());
    let cli = configured(&url, "");
    cli.publish("order.placed", "1");
    let ended = cli.run(&["run", "--once"]);
    assert!(ended.stderr.contains("allow_private_addresses"), "{ended:?}");
    assert!(requests.try_recv().is_err());
    assert_eq!(cli.pending(), 1);
}

/// As in a container that has the program and nothing else.
#[test]
fn a_machine_without_authorities_posts_in_the_clear_and_says_what_tls_needs() {
    let (url, requests) = receiver(Vec::new());
    let cli =
        configured(&url, "allow_private_addresses = true\n").env("SSL_CERT_FILE", "/dev/null");
    cli.publish("order.placed", "1");
    cli.run(&["run", "--once"]).succeeded();
    assert_eq!(requests.try_recv().unwrap().body, "1");

    let secure = "[destinations.hook]\ntype = \"webhook\"\nurl = \"https://example.com/hook\"\n";
    cli.write("posthaste.toml", secure);
    for command in [&["config", "check"][..], &["run", "--once"]] {
        cli.run(command).failed(78, &["destinations.hook", "ca-certificates", "SSL_CERT_FILE"]);
    }
}
