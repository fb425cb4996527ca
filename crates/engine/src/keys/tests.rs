//! What a key does, step by step.

use super::*;
use crate::keys::key::Unheld;
use posthaste_core::{OutboxEvent, Payload, Shard};
use uuid::Uuid;

const NOW: Duration = Duration::from_secs(100);

fn held(seq: Seq, key: &str) -> Held {
    let event = OutboxEvent::builder(Uuid::nil(), "t")
        .order_key(key)
        .payload(Payload::json_text("{}").expect("JSON"))
        .build()
        .expect("an event");
    Held { seq, due: Duration::ZERO, destination: 0, event }
}

fn id(key: &str) -> KeyId {
    KeyId::of(&OrderKey::named(key).expect("a key"), Shard::default())
}

fn is_held(keys: &Keys, id: KeyId, seq: Seq) -> bool {
    let waiting = keys.keys.get(&id).and_then(|key| key.waiting.as_ref());
    waiting.is_some_and(|waiting| waiting.iter().any(|held| held.seq == seq))
}

fn take(keys: &mut Keys, per_key: usize) -> Vec<Seq> {
    keys.take(0, 100, per_key, NOW).iter().map(|(_, held)| held.seq).collect()
}

#[test]
fn a_key_gives_its_events_in_order_and_waits_for_what_was_taken() {
    let mut keys = Keys::new(1);
    for seq in [3, 1, 2] {
        keys.admit(id("a"), held(seq, "a"), NOW);
    }
    keys.admit(id("b"), held(4, "b"), NOW);
    assert_eq!(take(&mut keys, 1), [1, 4]);
    assert_eq!(take(&mut keys, 1), [0; 0]);
    keys.release(id("a"), NOW);
    assert_eq!(take(&mut keys, 2), [2, 3]);
}

#[test]
fn a_parked_key_holds_nothing_and_reads_its_head_again_before_the_rest() {
    let mut keys = Keys::new(1);
    for seq in 1..=3 {
        keys.admit(id("a"), held(seq, "a"), NOW);
    }
    let (key, head) = keys.take(0, 1, 1, NOW).remove(0);
    let until = NOW + Duration::from_secs(1);
    keys.park_behind(key, &head, until);
    assert_eq!(keys.known.len(), 0);
    keys.release(key, NOW);
    keys.admit(key, held(4, "a"), NOW);
    assert!(!is_held(&keys, key, 4));
    assert_eq!((keys.held_events(), keys.stuck()), (0, 1));
    assert_eq!((take(&mut keys, 1), keys.next_catch_up(10)), (vec![], None));

    // What it waited for may have been mended meanwhile, so it is read again: it alone.
    keys.wake(until);
    assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(key, 1)])));
    keys.caught_up(key, &Unheld { first: 1, last: 1 }, None);
    keys.hold(key, held(1, "a"), until);
    let taken = keys.take(0, 10, 10, until);
    assert_eq!(taken.len(), 1);
    keys.release(key, until);
    let range = Unheld { first: 2, last: 4 };
    let name = OrderKey::named("a").expect("a key");
    assert_eq!(keys.next_catch_up(10), Some(CatchUp::Key { id: key, name, range: range.clone() }));
    // One more arrives while the fetch is under way.
    keys.admit(key, held(5, "a"), until);
    assert!(!is_held(&keys, key, 5));
    keys.caught_up(key, &range, None);
    for seq in 2..=4 {
        keys.hold(key, held(seq, "a"), until);
    }
    assert_eq!(keys.take(0, 10, 10, until).len(), 3);
    for _ in 0..3 {
        keys.release(key, until);
    }
    assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(key, 5)])));
}

#[test]
fn a_blocked_key_stays_until_unblocked_and_then_starts_at_the_dead_letter() {
    let mut keys = Keys::new(1);
    keys.admit(id("a"), held(1, "a"), NOW);
    keys.admit(id("a"), held(2, "a"), NOW);
    keys.admit(id("b"), held(3, "b"), NOW);
    let (key, _) = keys.take(0, 1, 1, NOW).remove(0);
    keys.block(key, 1);
    assert!(!is_held(&keys, key, 2));
    keys.release(key, NOW);
    assert_eq!(take(&mut keys, 1), [3], "another key flows");
    assert!(keys.next_catch_up(10).is_none());
    keys.unblock(key, &OrderKey::named("a").expect("a key"), None, 3, NOW);
    assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(key, 1)])));
    keys.caught_up(key, &Unheld { first: 1, last: 1 }, None);
    keys.catch_up_ended([key], NOW);
    assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(key, 2)])));
}

/// It may be revived: what comes later must not overtake it.
#[test]
fn a_key_with_nothing_behind_its_dead_letter_starts_there_too_unless_it_is_still_to_be_read() {
    for (hint, expected) in [(0, None), (1, Some(1))] {
        let mut keys = Keys::new(1);
        keys.block(id("a"), 1);
        keys.unblock(id("a"), &OrderKey::named("a").expect("a key"), None, hint, NOW);
        let catch_up = expected.map(|seq| CatchUp::At(vec![(id("a"), seq)]));
        assert_eq!(keys.next_catch_up(10), catch_up);
        keys.admit(id("a"), held(2, "a"), NOW);
        assert_eq!(is_held(&keys, id("a"), 2), catch_up.is_none());
    }
}

#[test]
fn keys_of_a_dead_destination_are_shelved_but_for_one_that_probes() {
    let mut keys = Keys::new(2);
    for (seq, key) in [(1, "a"), (2, "b"), (3, "b"), (4, "c")] {
        keys.admit(id(key), held(seq, key), NOW);
    }
    assert_eq!((keys.shelve(0, 1), keys.known.len()), (3, 1));
    keys.admit(id("b"), held(5, "b"), NOW);
    assert!(!is_held(&keys, id("b"), 5));
    assert_eq!((keys.held_events(), keys.shelved_count(0)), (1, 2));
    assert_eq!(take(&mut keys, 1), [1]);
    assert!(keys.next_catch_up(10).is_none());
    keys.unshelve(0, usize::MAX, NOW);
    assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(id("b"), 2), (id("c"), 4)])));
    for (key, first) in [("b", 2), ("c", 4)] {
        keys.caught_up(id(key), &Unheld { first, last: first }, None);
        keys.catch_up_ended([id(key)], NOW);
    }
    assert!(matches!(
        keys.next_catch_up(10),
        Some(CatchUp::Key { range: Unheld { first: 3, last: 5 }, .. })
    ));
}

#[test]
fn a_late_event_of_a_parked_key_goes_before_its_head() {
    let mut keys = Keys::new(1);
    keys.admit(id("a"), held(5, "a"), NOW);
    let (key, head) = keys.take(0, 1, 1, NOW).remove(0);
    keys.park_behind(key, &head, NOW + Duration::from_secs(1));
    keys.release(key, NOW);
    keys.admit(key, held(4, "a"), NOW);
    assert!(is_held(&keys, key, 4));
    assert_eq!(take(&mut keys, 10), [4]);
}

#[test]
fn delayed_events_are_not_kept_in_memory() {
    let mut keys = Keys::new(1);
    let due = NOW + Duration::from_secs(3600);
    let delayed = |seq| Held { due, ..held(seq, "a") };
    keys.admit(id("a"), delayed(1), NOW);
    assert!(!is_held(&keys, id("a"), 1));
    keys.admit(id("a"), held(2, "a"), NOW);
    assert!(!is_held(&keys, id("a"), 2));
    assert_eq!((keys.held_events(), keys.next_wake()), (0, Some(due)));
    keys.wake(due);
    assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(id("a"), 1)])));
}

#[test]
fn a_key_with_nothing_left_is_forgotten() {
    let mut keys = Keys::new(1);
    keys.admit(id("a"), held(1, "a"), NOW);
    take(&mut keys, 1);
    keys.release(id("a"), NOW);
    assert!(keys.keys.is_empty());
}
