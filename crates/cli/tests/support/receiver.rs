//! A webhook's receiver, whose answer goes by the type of the event.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// What it does with an event.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    Status(u16),
    /// 204, after a while.
    Slow(Duration),
    /// The connection is closed instead.
    Reset,
}

/// Takes what no reply of its own is given for. Gone when dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    /// When each event was taken.
    taken: Arc<Mutex<HashMap<Uuid, SystemTime>>>,
    replies: Arc<HashMap<&'static str, Reply>>,
    serving: Option<JoinHandle<()>>,
}

impl Receiver {
    /// With a reply for each of these types.
    pub(crate) async fn start(replies: &[(&'static str, Reply)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut receiver = Self {
            address: listener.local_addr().unwrap(),
            taken: Arc::default(),
            replies: Arc::new(replies.iter().copied().collect()),
            serving: None,
        };
        receiver.serve(listener);
        receiver
    }

    /// Refuses connections from now on, and ends those that are open.
    pub(crate) async fn stop(&mut self) {
        let serving = self.serving.take().expect("a receiver that serves");
        serving.abort();
        let _ = serving.await;
    }

    /// Ends a [`stop`](Self::stop).
    pub(crate) async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    pub(crate) fn taken(&self) -> HashMap<Uuid, SystemTime> {
        self.taken.lock().unwrap().clone()
    }

    fn serve(&mut self, listener: TcpListener) {
        let (taken, replies) = (Arc::clone(&self.taken), Arc::clone(&self.replies));
        self.serving = Some(tokio::spawn(async move {
            // Connections end with the task that accepts them.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (taken, replies) = (Arc::clone(&taken), Arc::clone(&replies));
                connections.spawn(async move {
                    let service = service_fn(|request| answer(request, &taken, &replies));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    // One that was reset ends with an error.
                    let _ = connection.await;
                });
            }
        }));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    taken: &Mutex<HashMap<Uuid, SystemTime>>,
    replies: &HashMap<&'static str, Reply>,
) -> Result<Response<String>, std::io::Error> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let reply = header("ce-type").and_then(|event_type| replies.get(event_type));
    let status = match reply {
        Some(Reply::Reset) => return Err(std::io::ErrorKind::ConnectionReset.into()),
        Some(Reply::Status(status)) => *status,
        Some(Reply::Slow(delay)) => {
            tokio::time::sleep(*delay).await;
            204
        }
        None => 204,
    };
    if let Some(id) = header("ce-id").and_then(|id| id.parse().ok())
        && status == 204
    {
        taken.lock().unwrap().entry(id).or_insert_with(SystemTime::now);
    }
    Ok(Response::builder().status(status).body(String::new()).unwrap())
}
