//! Asks a server what it is, in its own protocol: an open port alone proves nothing.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::Url;

const TIMEOUT: Duration = Duration::from_secs(3);

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// It answers and can be used; the text says what it is.
    Ready(String),
    /// Something answers, but tests could not use it; the text says why.
    Unusable(String),
    /// Nothing answers.
    Absent(String),
}

impl Health {
    pub(crate) const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }
}

/// Opens a connection, and runs one exchange on it.
fn exchange(url: &Url, talk: impl FnOnce(&mut TcpStream) -> std::io::Result<Health>) -> Health {
    let address = match (url.host.as_str(), url.port).to_socket_addrs() {
        Ok(mut addresses) => addresses.next(),
        Err(error) => return Health::Absent(error.to_string()),
    };
    let Some(address) = address else { return Health::Absent("the host has no address".into()) };
    let mut stream = match TcpStream::connect_timeout(&address, TIMEOUT) {
        Ok(stream) => stream,
        Err(error) => return Health::Absent(error.to_string()),
    };
    let outcome = stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
        .and_then(|()| talk(&mut stream));
    outcome
        .unwrap_or_else(|error| Health::Unusable(format!("it does not speak as expected: {error}")))
}

/// Logs in, as far as that needs no password.
pub(crate) fn postgres(url: &Url) -> Health {
    exchange(url, |stream| {
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for (name, value) in [("user", url.user_or("root")), ("database", url.path_or("test"))] {
            for text in [name, value] {
                body.extend_from_slice(text.as_bytes());
                body.push(0);
            }
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&body)?;
        let mut version = String::from("PostgreSQL");
        loop {
            let (tag, body) = postgres_message(stream)?;
            match tag {
                b'R' if body.get(..4) != Some(&[0; 4]) => return Ok(password_wanted(url)),
                b'S' => {
                    if let Some(value) = body.strip_prefix(b"server_version\0") {
                        let value = String::from_utf8_lossy(value);
                        version = format!("PostgreSQL {}", value.trim_end_matches('\0'));
                    }
                }
                b'E' => return Ok(Health::Unusable(postgres_error(&body))),
                b'Z' => return Ok(Health::Ready(version)),
                _ => {}
            }
        }
    })
}

fn password_wanted(url: &Url) -> Health {
    if url.password.is_some() {
        Health::Ready("PostgreSQL, password not checked".into())
    } else {
        Health::Unusable(format!("it wants a password from {}", url.user_or("root")))
    }
}

/// One message: its tag, and its body without the length.
fn postgres_message(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if !(4..=65_536).contains(&length) {
        return Err(std::io::Error::other("not PostgreSQL's protocol"));
    }
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body)?;
    Ok((head[0], body))
}

/// The human text of an ErrorResponse: its field `M`.
fn postgres_error(body: &[u8]) -> String {
    body.split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"M"))
        .map_or_else(|| "it refused".into(), |text| String::from_utf8_lossy(text).into_owned())
}

/// Reads the `INFO` line that NATS sends first.
pub(crate) fn nats(url: &Url) -> Health {
    exchange(url, |stream| {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < 65_536 && stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        Ok(nats_info(&String::from_utf8_lossy(&line)))
    })
}

fn nats_info(line: &str) -> Health {
    let Some(json) = line.trim().strip_prefix("INFO ") else {
        return Health::Unusable("it is not NATS: no INFO line".into());
    };
    let info: serde_json::Value = match serde_json::from_str(json) {
        Ok(info) => info,
        Err(error) => return Health::Unusable(format!("its INFO line is not JSON: {error}")),
    };
    if info["jetstream"] == true {
        let version = info["version"].as_str().unwrap_or("of an unknown version");
        Health::Ready(format!("NATS {version} with JetStream"))
    } else {
        Health::Unusable("NATS without JetStream; start it with -js".into())
    }
}

/// Reads the greeting that MariaDB and MySQL send first.
pub(crate) fn mariadb(url: &Url) -> Health {
    exchange(url, |stream| {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        Ok(match head[4] {
            10 => Health::Ready("MariaDB or MySQL".into()),
            255 => Health::Unusable("it refuses connections from here".into()),
            _ => Health::Unusable("it is neither MariaDB nor MySQL".into()),
        })
    })
}

/// `PING`, answered by `PONG` or by a wish for a password.
pub(crate) fn redis(url: &Url) -> Health {
    exchange(url, |stream| {
        stream.write_all(b"PING\r\n")?;
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        Ok(match &head {
            b"+PONG" | b"-NOAU" => Health::Ready("Redis".into()),
            _ => Health::Unusable("it is not Redis".into()),
        })
    })
}

/// The AMQP 0-9-1 header, answered by `connection.start`.
pub(crate) fn rabbitmq(url: &Url) -> Health {
    exchange(url, |stream| {
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        let mut head = [0; 11];
        stream.read_exact(&mut head)?;
        let started = head[0] == 1 && head[7..] == [0, 10, 0, 10];
        Ok(if started {
            Health::Ready("RabbitMQ (AMQP 0-9-1)".into())
        } else {
            Health::Unusable("it does not speak AMQP 0-9-1".into())
        })
    })
}

/// An MQTT 3.1.1 `CONNECT`, answered by `CONNACK`.
pub(crate) fn mosquitto(url: &Url) -> Health {
    exchange(url, |stream| {
        stream.write_all(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")?;
        let mut head = [0; 4];
        stream.read_exact(&mut head)?;
        Ok(match head {
            [0x20, 2, _, 0] => Health::Ready("an MQTT broker".into()),
            [0x20, 2, _, code] => Health::Unusable(format!("MQTT refused: code {code}")),
            _ => Health::Unusable("it does not speak MQTT".into()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that says one thing to its first client, and its URL.
    fn server_that_says(answer: &'static [u8]) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer).unwrap();
            let mut rest = [0; 256];
            while matches!(stream.read(&mut rest), Ok(1..)) {}
        });
        Url::parse(&format!("test://root@127.0.0.1:{port}/test"), 0).unwrap()
    }

    #[test]
    fn nats_counts_only_with_jetstream() {
        let with = server_that_says(b"INFO {\"version\":\"2.9.10\",\"jetstream\":true} \r\n");
        assert_eq!(nats(&with), Health::Ready("NATS 2.9.10 with JetStream".into()));
        let without = server_that_says(b"INFO {\"version\":\"2.9.10\"} \r\n");
        assert!(matches!(nats(&without), Health::Unusable(why) if why.contains("JetStream")));
    }

    #[test]
    fn an_open_port_of_something_else_is_not_a_service() {
        for probe in [postgres, nats, mariadb, redis, rabbitmq, mosquitto] {
            let url = server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            assert!(matches!(probe(&url), Health::Unusable(_)), "{:?}", probe(&url));
        }
    }

    #[test]
    fn postgres_tells_refusal_password_and_login_apart() {
        let ready = server_that_says(
            b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\x0015.13\0Z\0\0\0\x05I",
        );
        assert_eq!(postgres(&ready), Health::Ready("PostgreSQL 15.13".into()));
        let password = server_that_says(b"R\0\0\0\x08\0\0\0\x03");
        assert!(matches!(postgres(&password), Health::Unusable(why) if why.contains("password")));
        let refused = server_that_says(b"E\0\0\0\x0eMno role\0\0");
        assert_eq!(postgres(&refused), Health::Unusable("no role".into()));
    }

    #[test]
    fn nothing_listening_is_absent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = Url::parse(&format!("nats://127.0.0.1:{port}"), 4222).unwrap();
        assert!(matches!(nats(&url), Health::Absent(_)));
    }
}
