//! What pauses a destination, and what ends a pause.

use super::*;
use posthaste_core::ErrorKind;

fn key() -> KeyId {
    let key = posthaste_core::OrderKey::named("a").expect("a key");
    KeyId::of(&key, posthaste_core::Shard::default())
}

fn down() -> Error {
    Error::new(ErrorKind::Unreachable, "publish", "refused")
}

#[test]
fn an_outage_pauses_and_a_single_probe_reopens() {
    let mut outage = Outage::default();
    let start = Duration::from_secs(1);
    assert_eq!(outage.permit(start), Permit::All);
    outage.unavailable(&down(), start, 0.0);
    assert_eq!(outage.permit(start), Permit::Nothing);
    let until = outage.pause_ends().expect("a pause");
    assert_eq!(outage.permit(until), Permit::Probe(1));
    let call = outage.sent(1);
    assert_eq!(outage.permit(until), Permit::Nothing);
    outage.answered(call, 1);
    outage.succeeded(key(), (call, 0));
    assert_eq!(outage.permit(until), Permit::All);
    assert_eq!(outage.error(), None);
}

#[test]
fn pauses_grow_with_each_failed_probe_and_stay_bounded() {
    let mut outage = Outage::default();
    let mut now = Duration::ZERO;
    let mut pauses = Vec::new();
    for _ in 0..40 {
        outage.permit(now);
        outage.sent(1);
        outage.unavailable(&down(), now, 0.0);
        let until = outage.pause_ends().expect("a pause");
        pauses.push(until - now);
        now = until;
    }
    assert!(pauses.is_sorted());
    assert!(pauses.iter().all(|pause| *pause <= PAUSES.max_delay));
}

#[test]
fn retry_after_lengthens_the_pause_up_to_its_limit() {
    for (asked, expected) in [(20, 20), (100_000, 300)] {
        let mut outage = Outage::default();
        let error = down().with_retry_after(Duration::from_secs(asked));
        outage.unavailable(&error, Duration::ZERO, 0.0);
        assert_eq!(outage.pause_ends(), Some(Duration::from_secs(expected)));
    }
}

#[test]
fn an_answer_to_something_sent_before_the_outage_does_not_end_it() {
    let mut outage = Outage::default();
    let call = outage.sent(1);
    outage.unavailable(&down(), Duration::ZERO, 0.0);
    let until = outage.pause_ends().expect("a pause");
    for now in [Duration::ZERO, until] {
        outage.permit(now);
        outage.answered(call, 1);
        outage.succeeded(key(), (call, 0));
        assert!(outage.error().is_some());
    }
    assert_eq!(outage.permit(until), Permit::Probe(1));
}

#[test]
fn a_refusal_tells_that_it_is_back_only_if_the_destination_gave_it() {
    for (kind, permit) in
        [(ErrorKind::Rejected, Permit::All), (ErrorKind::TooLarge, Permit::Probe(1))]
    {
        let mut outage = Outage::default();
        outage.unavailable(&down(), Duration::ZERO, 0.0);
        let until = outage.pause_ends().expect("a pause");
        assert_eq!(outage.permit(until), Permit::Probe(1));
        let call = outage.sent(1);
        outage.answered(call, 1);
        outage.refused(call, kind);
        assert_eq!(outage.permit(until), permit);
    }
}

fn key_named(name: &str) -> KeyId {
    let key = posthaste_core::OrderKey::named(name).expect("a key");
    KeyId::of(&key, posthaste_core::Shard::default())
}

/// An event of a key of its own is answered so.
fn answered(outage: &mut Outage, number: u64, asked: Option<Duration>, now: Duration) {
    let event = posthaste_core::OutboxEvent::builder(uuid::Uuid::nil(), "t")
        .order_key(&*format!("key-{number}"))
        .payload(posthaste_core::Payload::json_text("{}").expect("JSON"))
        .build()
        .expect("an event");
    let id = key_named(&format!("key-{number}"));
    let held = crate::keys::key::Held { seq: 1, due: Duration::ZERO, destination: 0, event };
    let mut error = Error::new(ErrorKind::Throttled, "publish", "slow down");
    if let Some(asked) = asked {
        error = error.with_retry_after(asked);
    }
    let call = outage.sent(1);
    outage.answered(call, 1);
    outage.failed(Undecided { id, held, error, failed_at: now, sent: (call, 0) });
    outage.suspect(true, now, 1.0);
}

/// Who means it is hardly troubled; who does not, because all that failed was poison, is found out.
#[test]
fn who_asks_to_be_left_alone_is_tried_with_single_events_ever_more_rarely() {
    let minute = Duration::from_secs(60);
    let mut outage = Outage::default();
    let mut now = Duration::from_secs(1);
    for number in 0..OUTAGE_KEYS as u64 {
        answered(&mut outage, number, Some(minute), now);
    }
    let mut apart = Vec::new();
    for number in 100..110 {
        assert_eq!(outage.permit(now), Permit::Nothing);
        let from = outage.early_from().expect("an early probe");
        apart.push((from - now).as_millis());
        now = from;
        assert_eq!(outage.permit(now), Permit::Fresh(1));
        // Not all of a server's answers say for how long.
        answered(&mut outage, number, (number != 105).then_some(minute), now);
        let left = outage.pause_ends().expect("a pause") - now;
        assert!(left >= minute - EARLY_PROBES_APART_MAX, "{left:?}");
    }
    assert_eq!(apart, [250, 500, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]);
    now = outage.early_from().expect("an early probe");
    assert_eq!(outage.permit(now), Permit::Fresh(1));
    let call = outage.sent(1);
    outage.answered(call, 1);
    outage.succeeded(key_named("good"), (call, 0));
    assert_eq!(outage.permit(now), Permit::All, "the answers were their events' own");
}
