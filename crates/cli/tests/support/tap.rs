//! Every publish that reaches the broker, dropped as a repeat by JetStream or not.

use std::collections::HashSet;

use async_nats::{Client, Message};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Stream;
use super::stream::connect;

/// JetStream's answer to an event that it did not store, since another message came between that
/// event and the one that it names as its predecessor.
const OVERTAKEN: &[u8] = b"\"err_code\":10070";

/// Listens beside a stream. JetStream forgets ids after a tenth of a second at the earliest, and
/// two relays that deliver the same events at the same time repeat them faster than that.
pub(crate) struct Tap {
    stop: watch::Sender<()>,
    published: JoinHandle<Vec<(Uuid, String)>>,
    /// Where the answer to a publish went that was not stored.
    overtaken: JoinHandle<Vec<String>>,
}

impl Tap {
    /// Listens from the return of this call on, across restarts of the server.
    pub(crate) async fn on(stream: &Stream) -> Self {
        let client = connect(&stream.url).await.unwrap();
        let stop = watch::Sender::new(());
        let all = format!("{}.>", stream.name);
        let published = listen(&client, all, &stop, |message| {
            let headers = message.headers.expect("headers");
            let id = headers.get("ph-id").expect("an id").as_str().parse().unwrap();
            Some((id, message.reply.expect("an acknowledgement is asked for").to_string()))
        });
        let published = published.await;
        let overtaken = listen(&client, "_INBOX.>".to_owned(), &stop, |answer| {
            let is_overtaken =
                answer.payload.windows(OVERTAKEN.len()).any(|part| part == OVERTAKEN);
            is_overtaken.then(|| answer.subject.to_string())
        });
        let overtaken = overtaken.await;
        client.flush().await.unwrap();
        Self { stop, published, overtaken }
    }

    /// How many publishes were not the first one of their event, but for those that nobody gets.
    pub(crate) async fn repeats(self) -> usize {
        drop(self.stop);
        let overtaken: HashSet<String> = self.overtaken.await.unwrap().into_iter().collect();
        let mut published = self.published.await.unwrap();
        published.retain(|(_, reply)| !overtaken.contains(reply));
        let events: HashSet<&Uuid> = published.iter().map(|(id, _)| id).collect();
        published.len() - events.len()
    }
}

/// What `note` makes of the messages of a subject, until `stop` is gone.
async fn listen<T: Send + 'static>(
    client: &Client,
    subject: String,
    stop: &watch::Sender<()>,
    note: impl Fn(Message) -> Option<T> + Send + 'static,
) -> JoinHandle<Vec<T>> {
    let mut subscriber = client.subscribe(subject).await.unwrap();
    let mut stopped = stop.subscribe();
    tokio::spawn(async move {
        let mut noted = Vec::new();
        loop {
            let message = tokio::select! {
                message = subscriber.next() => message,
                _ = stopped.changed() => break,
            };
            noted.extend(note(message.expect("a client that reconnects")));
        }
        // What was on its way still counts.
        subscriber.drain().await.unwrap();
        while let Some(message) = subscriber.next().await {
            noted.extend(note(message));
        }
        noted
    })
}
