//! When the reader looks, and what it asks first.

use super::*;

const ROOM: (usize, usize) = (10, 1_000);
const MS: Duration = Duration::from_millis(1);

/// A reader with a watermark, that reads forward from `now` on.
fn reading(now: Duration) -> Reader {
    let mut reader = Reader::new(100 * MS);
    reader.watermark_at = now + Duration::from_secs(3_600);
    reader
}

fn looks(reader: &mut Reader, now: Duration) -> bool {
    let operation = reader.next_operation(now, ROOM, &Leases::new(None), &mut Keys::new(1));
    operation.is_some_and(|operation| matches!(operation, Operation::Fetch { .. }))
}

/// A look may have taken its snapshot before the commit that it is woken for.
#[test]
fn a_wake_during_a_look_leads_to_another() {
    let now = Duration::from_secs(1);
    let mut reader = reading(now);
    for (woken, any_new) in [(true, false), (true, true), (false, true), (false, false)] {
        assert!(looks(&mut reader, now));
        if woken {
            reader.wake(now);
        }
        reader.forward_read(&[1], false, any_new, now);
        assert_eq!(looks(&mut reader, now), woken, "something new: {any_new}");
        reader.asked_at = None;
        reader.poll_at = now;
    }
}

/// Looks, and says how long it waits then.
fn wait_after(reader: &mut Reader, now: Duration, took: Duration, any_new: bool) -> Duration {
    assert!(looks(reader, now));
    reader.forward_read(&[], false, any_new, now + took);
    reader.poll_at - (now + took)
}

#[test]
fn a_wake_ends_the_wait_and_has_it_look_often() {
    let mut reader = reading(Duration::ZERO);
    reader.news_at = Duration::ZERO;
    let now = Duration::from_secs(60);
    reader.poll_at = now;
    assert_eq!(wait_after(&mut reader, now, MS, false), 100 * MS);
    assert!(!looks(&mut reader, now + 2 * MS));
    reader.wake(now + 2 * MS);
    assert_eq!(wait_after(&mut reader, now + 2 * MS, MS, false), 2 * MS);
}

#[test]
fn the_longer_nothing_comes_the_rarer_it_looks() {
    let came_at = Duration::from_secs(1);
    let mut reader = reading(came_at);
    let mut wait = |now, any_new| wait_after(&mut reader, now, Duration::ZERO, any_new);
    let mut now = came_at + wait(came_at, true);
    let mut looked = 0;
    while now < came_at + Duration::from_secs(1) {
        let until_next = wait(now, false);
        assert!(until_next <= ((now - came_at) / 4).max(REST.0), "at {now:?}");
        now += until_next;
        looked += 1;
    }
    assert_eq!(wait(now, false), 100 * MS);
    assert!((20..50).contains(&looked), "{looked} looks within a second");
    assert_eq!(wait(now + 100 * MS, true), REST.0);
}

#[test]
fn a_busy_database_is_asked_less_often_and_a_distant_one_all_the_same() {
    let mut reader = reading(Duration::ZERO);
    for (took, expected) in [(0, REST.0), (1, 2 * MS), (2, 4 * MS), (50, 5 * MS)] {
        let now = reader.poll_at;
        assert_eq!(wait_after(&mut reader, now, took * MS, true), expected, "{took} ms");
    }
}

/// Otherwise it would read on from where it was in a database that may be another one.
#[test]
fn after_a_failure_it_asks_first_whether_the_database_is_the_same() {
    let mut reader = Reader::new(Duration::from_millis(100));
    let mut keys = Keys::new(1);
    let now = Duration::from_secs(1);
    let leases = Leases::new(None);
    let mut next =
        |reader: &mut Reader| reader.next_operation(now, ROOM, &leases, &mut keys).unwrap();

    assert_eq!(next(&mut reader), Operation::Watermark);
    let mark = Watermark { high: 7, revision: 1, ..Watermark::default() };
    reader.watermark_read(&mark, now);
    let _: Vec<_> = reader.dead_letters.page_read(&[], |_| true, now);
    let forward = |operation: &Operation| matches!(operation, Operation::Fetch { .. });
    assert!(forward(&next(&mut reader)), "no watermark is due");
    reader.failed();
    assert_eq!(next(&mut reader), Operation::Watermark);
    reader.watermark_read(&mark, now);
    assert!(forward(&next(&mut reader)));
}
