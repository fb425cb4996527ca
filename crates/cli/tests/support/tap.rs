//! Every publish that reaches the broker, dropped as a repeat by JetStream or not.

use std::collections::HashSet;

use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Stream;

/// Listens beside a stream. JetStream forgets ids after a tenth of a second at the earliest, and
/// two relays that deliver the same events at the same time repeat them faster than that.
pub(crate) struct Tap {
    stop: oneshot::Sender<()>,
    listening: JoinHandle<Vec<Uuid>>,
}

impl Tap {
    /// Listens from the return of this call on, across restarts of the server.
    pub(crate) async fn on(stream: &Stream) -> Self {
        let client = async_nats::connect(&stream.url).await.unwrap();
        let mut subscriber = client.subscribe(format!("{}.>", stream.name)).await.unwrap();
        client.flush().await.unwrap();
        let (stop, mut stopped) = oneshot::channel();
        let listening = tokio::spawn(async move {
            let mut published = Vec::new();
            loop {
                let message = tokio::select! {
                    message = subscriber.next() => message,
                    _ = &mut stopped => break,
                };
                published.push(id_of(&message.expect("a client that reconnects")));
            }
            // What was on its way still counts.
            subscriber.drain().await.unwrap();
            while let Some(message) = subscriber.next().await {
                published.push(id_of(&message));
            }
            published
        });
        Self { stop, listening }
    }

    /// How many publishes were not the first one of their event.
    pub(crate) async fn repeats(self) -> usize {
        let _ = self.stop.send(());
        let published = self.listening.await.unwrap();
        let events: HashSet<&Uuid> = published.iter().collect();
        published.len() - events.len()
    }
}

fn id_of(message: &async_nats::Message) -> Uuid {
    let headers = message.headers.as_ref().expect("headers");
    headers.get("ph-id").expect("an id").as_str().parse().unwrap()
}
