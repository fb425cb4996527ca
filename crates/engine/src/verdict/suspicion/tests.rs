//! Whose fault a failure is, case by case.

use super::*;
use posthaste_core::{OutboxEvent, Payload, Shard};
use uuid::Uuid;

const NOW: Duration = Duration::from_secs(100);
const MINUTE: Duration = Duration::from_secs(60);

fn failure(key: usize, sent: Position, failed_at: Duration) -> Undecided {
    let event = OutboxEvent::builder(Uuid::nil(), "t")
        .order_key(&*format!("key-{key}"))
        .payload(Payload::json_text("{}").expect("JSON"))
        .build()
        .expect("an event");
    let held = Held { seq: 1, due: Duration::ZERO, destination: 0, event };
    let error = Error::new(ErrorKind::Failed, "publish", "no");
    let id = KeyId::of(held.event.order_key(), Shard::default());
    Undecided { id, held, error, failed_at, sent }
}

fn key(key: usize) -> KeyId {
    failure(key, (0, 0), NOW).id
}

/// `keys` fail, each in a call of its own.
fn fail(suspicion: &mut Suspicion, keys: Range<usize>, now: Duration) {
    for key in keys {
        let call = key as u64;
        suspicion.failed(failure(key, (call, 0), now), call + 1);
    }
}

/// What is decided while others are under way.
fn decide(suspicion: &mut Suspicion, now: Duration) -> Vec<Verdict> {
    decide_after(suspicion, None, now).into_iter().map(|(_, verdict)| verdict).collect()
}

fn decide_after(
    suspicion: &mut Suspicion,
    wait: Option<Duration>,
    now: Duration,
) -> Vec<(Undecided, Verdict)> {
    suspicion.decide(&Situation { now, wait, patience: 2 * MINUTE, random: 1.0 })
}

const AGAIN: Verdict = Verdict::Again(PAUSES.base_delay);

#[test]
fn distinct_keys_in_a_row_are_an_outage_and_one_key_often_is_none() {
    let mut suspicion = Suspicion::default();
    for _ in 0..100 {
        fail(&mut suspicion, 0..OUTAGE_KEYS - 1, NOW);
    }
    assert!(!suspicion.is_outage(NOW));
    fail(&mut suspicion, 100..101, NOW);
    assert!(suspicion.is_outage(NOW));
    assert_eq!(suspicion.take_excused().len(), 100 * (OUTAGE_KEYS - 1) + 1);
}

#[test]
fn events_that_chose_one_way_of_their_own_are_one_voice() {
    let mut suspicion = Suspicion::default();
    for key in 0..100 {
        let mut failure = failure(key, (key as u64, 0), NOW);
        failure.error = failure.error.about(Subject::Route);
        suspicion.failed(failure, key as u64 + 1);
    }
    assert!(!suspicion.is_outage(NOW));
}

#[test]
fn a_success_between_them_makes_it_none_even_one_that_was_under_way() {
    let mut suspicion = Suspicion::default();
    fail(&mut suspicion, 1..OUTAGE_KEYS, NOW);
    suspicion.succeeded(key(100), 0);
    fail(&mut suspicion, OUTAGE_KEYS..OUTAGE_KEYS + 1, NOW);
    assert!(!suspicion.is_outage(NOW));
    assert!(decide(&mut suspicion, NOW).is_empty(), "it may be older than the failures");
}

/// Healthy enough that a failure is the exception.
fn succeed_often(suspicion: &mut Suspicion, call: u64) {
    for _ in 0..u32::BITS {
        suspicion.succeeded(key(100), call);
    }
}

#[test]
fn a_success_sent_after_a_failure_was_known_proves_that_it_is_the_events_own() {
    let mut suspicion = Suspicion::default();
    suspicion.failed(failure(1, (4, 0), NOW), 7);
    suspicion.failed(failure(2, (5, 0), NOW), 8);
    suspicion.succeeded(key(100), 6);
    assert!(decide(&mut suspicion, NOW).is_empty());
    suspicion.succeeded(key(100), 7);
    assert_eq!(decide(&mut suspicion, NOW), [Verdict::Own]);
    assert_eq!(suspicion.undecided_count(), 1);
}

#[test]
fn where_many_fail_at_their_first_try_a_success_of_others_proves_nothing() {
    let mut suspicion = Suspicion::default();
    for round in 0..5 {
        let first = 10 * round;
        fail(&mut suspicion, first..first + 2, NOW);
        suspicion.succeeded(key(first + 2), first as u64 + 5);
    }
    let verdicts = decide(&mut suspicion, NOW);
    assert_eq!(verdicts, [AGAIN; 10], "they are tried again and count nothing");
}

#[test]
fn a_key_found_at_fault_is_so_again_in_the_same_way_and_says_nothing_against_the_destination() {
    let mut suspicion = Suspicion::default();
    fail(&mut suspicion, 0..3, NOW);
    succeed_often(&mut suspicion, 10);
    assert_eq!(decide(&mut suspicion, NOW), [Verdict::Own; 3]);

    fail(&mut suspicion, 0..3, NOW);
    assert!(!suspicion.has_evidence());
    assert_eq!(decide(&mut suspicion, NOW), [Verdict::Own; 3]);
    let other = Error::new(ErrorKind::Throttled, "publish", "busy");
    suspicion.failed(Undecided { error: other, ..failure(0, (20, 0), NOW) }, 21);
    assert!(decide(&mut suspicion, NOW).is_empty(), "another answer");

    suspicion.succeeded(key(0), 22);
    suspicion.take_excused();
    suspicion.failed(failure(0, (30, 0), NOW), 31);
    assert!(decide(&mut suspicion, NOW).is_empty(), "it succeeded since");
}

#[test]
fn among_probes_a_success_proves_what_was_sent_behind_it() {
    let mut suspicion = Suspicion::default();
    suspicion.failed(failure(1, (3, 0), NOW), 5);
    suspicion.failed(failure(2, (3, 2), NOW), 5);
    suspicion.probe_succeeded((3, 1), 3..5);
    // One more of the same probes is answered later; one was sent after the outage.
    suspicion.failed(failure(3, (4, 0), NOW), 6);
    suspicion.failed(failure(4, (5, 0), NOW), 6);
    let proven: Vec<Position> = decide_after(&mut suspicion, None, NOW)
        .into_iter()
        .map(|(failure, _)| failure.sent)
        .collect();
    assert_eq!(proven, [(3, 2), (4, 0)]);
}

#[test]
fn failures_of_long_ago_are_no_outage() {
    let mut suspicion = Suspicion::default();
    fail(&mut suspicion, 0..OUTAGE_KEYS, NOW);
    assert!(suspicion.is_outage(NOW + EVIDENCE_AGE_MAX));
    let later = NOW + EVIDENCE_AGE_MAX + Duration::from_secs(1);
    assert!(!suspicion.is_outage(later));
    fail(&mut suspicion, 0..OUTAGE_KEYS - 1, later);
    assert!(!suspicion.is_outage(later), "the key that is gone does not count");
}

#[test]
fn alone_an_event_is_tried_again_and_again_and_counts_only_when_patience_ends() {
    let mut suspicion = Suspicion::default();
    let (mut now, mut pauses) = (NOW, Vec::new());
    loop {
        fail(&mut suspicion, 0..1, now);
        assert!(decide_after(&mut suspicion, Some(VERDICT_WAIT), now).is_empty());
        now += VERDICT_WAIT;
        match decide_after(&mut suspicion, Some(VERDICT_WAIT), now)[0].1 {
            Verdict::Own => break,
            Verdict::Again(pause) => pauses.push(pause),
        }
        now += *pauses.last().expect("a pause");
    }
    assert!(pauses.is_sorted() && pauses.contains(&PAUSES.max_delay), "{pauses:?}");
    assert!((NOW + 2 * MINUTE..NOW + 3 * MINUTE).contains(&now), "{now:?}");
}

#[test]
fn what_is_said_of_the_destination_counts_when_it_is_said_still() {
    let mut suspicion = Suspicion::default();
    let lost = |call| Undecided {
        error: Error::new(ErrorKind::Timeout, "publish", "no answer"),
        ..failure(1, (call, 0), NOW)
    };
    suspicion.failed(lost(4), 5);
    suspicion.succeeded(key(100), 5);
    assert_eq!(decide(&mut suspicion, NOW), [AGAIN], "it was true, or it was lost");
    for (call, later, own) in [(6, Duration::ZERO, false), (8, SETTLES_WITHIN, true)] {
        suspicion.failed(lost(call), call + 1);
        suspicion.succeeded(key(100), call + 1);
        let decided = decide(&mut suspicion, NOW + later);
        assert_eq!(decided == [Verdict::Own], own, "{decided:?}");
    }
}

/// Nobody knows whether a receiver that says so of itself is down.
#[test]
fn alone_an_event_never_counts_what_is_said_of_the_destination() {
    for (kind, counts) in [(ErrorKind::Failed, true), (ErrorKind::Throttled, false)] {
        let mut suspicion = Suspicion::default();
        for now in [NOW, NOW + 60 * MINUTE] {
            let error = Error::new(kind, "publish", "no");
            suspicion.failed(Undecided { error, ..failure(0, (1, 0), now) }, 2);
            let decided = decide_after(&mut suspicion, Some(Duration::ZERO), now);
            let own = decided[0].1 == Verdict::Own;
            assert_eq!(own, counts && now > NOW, "{kind}");
        }
    }
}

/// Others were taken after it failed; then nothing more came.
#[test]
fn what_others_refuted_counts_when_patience_ends_whatever_was_said() {
    let mut suspicion = Suspicion::default();
    let busy = |now| Undecided {
        error: Error::new(ErrorKind::Throttled, "publish", "busy"),
        ..failure(0, (1, 0), now)
    };
    suspicion.failed(busy(NOW), 2);
    assert_eq!(suspicion.take_excused().len(), 1);
    suspicion.succeeded(key(100), 5);
    suspicion.failed(busy(NOW), 6);
    assert!(!suspicion.has_evidence(), "it is refuted");
    let wait = Some(Duration::ZERO);
    assert_eq!(decide_after(&mut suspicion, wait, NOW)[0].1, AGAIN);
    suspicion.failed(busy(NOW + 2 * MINUTE), 7);
    assert_eq!(decide(&mut suspicion, NOW + 2 * MINUTE), [Verdict::Own]);
}

#[test]
fn an_event_is_not_tried_again_before_the_time_that_was_asked_for() {
    let mut suspicion = Suspicion::default();
    let error = Error::new(ErrorKind::Throttled, "publish", "busy").with_retry_after(3 * MINUTE);
    suspicion.failed(Undecided { error, ..failure(0, (1, 0), NOW) }, 2);
    let decided = decide_after(&mut suspicion, Some(Duration::ZERO), NOW);
    assert_eq!(decided[0].1, Verdict::Again(3 * MINUTE));
}

/// A quiet destination's poison, which nothing else ever told of.
#[test]
fn keys_that_were_found_at_fault_when_patience_ended_speak_against_nobody() {
    let mut suspicion = Suspicion::default();
    let mut now = NOW;
    for _ in 0..2 {
        fail(&mut suspicion, 0..OUTAGE_KEYS - 1, now);
        decide_after(&mut suspicion, Some(Duration::ZERO), now);
        now += 2 * MINUTE;
    }
    assert!((0..OUTAGE_KEYS - 1).all(|number| suspicion.is_convicted(key(number))));
    now += EVIDENCE_AGE_MAX;
    fail(&mut suspicion, 0..OUTAGE_KEYS, now);
    assert!(!suspicion.is_outage(now), "one of them is new");
}
