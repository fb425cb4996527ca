//! The suites can fail: each seeded defect is found by the check that is meant to find it.

use crate::defective_bus::{BusDefect, DefectiveBusHarness};
use crate::defective_repository::{RepositoryDefect, RepositoryHarnessWith};
use posthaste_testkit::{bus_suite, repository_suite};

async fn repository_defect_is_found(defect: RepositoryDefect, check: &'static str) {
    let harness = RepositoryHarnessWith { defect, only: Some(check) };
    let report = repository_suite(&harness).await;
    assert!(report.has_failed(check), "{defect:?} went through {check}\n{report}");
}

async fn bus_defect_is_found(defect: BusDefect, check: &str) {
    let report = bus_suite(&DefectiveBusHarness(defect)).await;
    assert!(report.has_failed(check), "{defect:?} went through {check}\n{report}");
}

#[tokio::test]
async fn defects_of_storing_are_found() {
    for (defect, check) in [
        (
            RepositoryDefect::StoresEventByEvent,
            "a_duplicate_of_a_pending_event_stores_none_of_its_batch",
        ),
        (RepositoryDefect::ForgetsHeaders, "all_fields_survive_storing"),
        (RepositoryDefect::LosesEverySeventhEvent, "concurrent_stores_lose_nothing"),
        (RepositoryDefect::MangleBytes, "arbitrary_bytes_survive_storing"),
    ] {
        repository_defect_is_found(defect, check).await;
    }
}

#[tokio::test]
async fn defects_of_fetching_are_found() {
    for (defect, check) in [
        (RepositoryDefect::FetchesBackwards, "fetch_orders_by_place"),
        (
            RepositoryDefect::IgnoresEventsMax,
            "fetch_keeps_to_events_max_and_says_that_there_are_more",
        ),
        (RepositoryDefect::IgnoresBytesMax, "fetch_stops_at_bytes_max_but_gives_at_least_one"),
        (RepositoryDefect::IgnoresUpTo, "fetch_finds_events_of_a_key"),
        (RepositoryDefect::HidesDelayed, "delayed_events_are_fetched_with_the_wait_that_is_left"),
        (RepositoryDefect::WatermarkLags, "watermark_covers_every_stored_event"),
    ] {
        repository_defect_is_found(defect, check).await;
    }
}

#[tokio::test]
async fn defects_of_settling_are_found() {
    for (defect, check) in [
        (RepositoryDefect::SettlesWhateverTheId, "a_settlement_with_another_id_changes_nothing"),
        (RepositoryDefect::SettlesAnew, "settling_again_changes_nothing"),
        (RepositoryDefect::CountsRetries, "a_repeated_retry_does_not_count_twice"),
        (RepositoryDefect::KeepsAll, "what_is_delivered_and_not_kept_is_gone"),
        (RepositoryDefect::RemovesTheDead, "only_what_is_pending_is_removed"),
        (RepositoryDefect::SettlesOnlyTheFirst, "one_batch_may_hold_every_outcome"),
        (RepositoryDefect::ForgetsSettlements, "delivered_events_are_no_longer_pending"),
        (RepositoryDefect::IgnoresDeadAfter, "dead_heads_are_paged_by_place"),
    ] {
        repository_defect_is_found(defect, check).await;
    }
}

#[tokio::test]
async fn defects_of_administration_and_upkeep_are_found() {
    for (defect, check) in [
        (RepositoryDefect::RevivesSilently, "retry_revives_a_dead_letter_at_its_old_place"),
        (RepositoryDefect::RetriesEverything, "retry_and_discard_leave_what_does_not_match"),
        (RepositoryDefect::TakesNoIdsForAny, "an_empty_list_of_ids_selects_nothing"),
        (RepositoryDefect::CleansUpTheDead, "cleanup_removes_only_old_delivered_events"),
        (RepositoryDefect::CleansUpNothing, "cleanup_removes_only_old_delivered_events"),
        (RepositoryDefect::CountsNoRetries, "backlog_counts_each_phase"),
        (RepositoryDefect::IgnoresTime, "list_filters_by_time_and_place"),
        (RepositoryDefect::ListsStuckKeysOnce, "stuck_keys_are_paged_by_place"),
        (RepositoryDefect::ForgetsWhatWaits, "a_key_with_a_dead_letter_is_listed_once"),
    ] {
        repository_defect_is_found(defect, check).await;
    }
}

#[tokio::test]
async fn a_repository_without_defect_passes() {
    let harness = RepositoryHarnessWith { defect: RepositoryDefect::None, only: None };
    repository_suite(&harness).await.assert_passed();
}

#[tokio::test]
async fn defects_of_publishing_are_found() {
    for (defect, check) in [
        (BusDefect::DropsAndSaysOk, "an_acknowledged_event_is_at_the_broker"),
        (BusDefect::SaysOkBeforeWriting, "an_acknowledged_event_is_at_the_broker"),
        (BusDefect::OneResultForTheBatch, "a_full_batch_gives_one_result_per_event"),
        (BusDefect::Reorders, "events_of_one_key_keep_their_order_within_a_call"),
        (BusDefect::ForgetsHeaders, "id_key_type_and_headers_arrive_intact"),
        (BusDefect::BodiesAsText, "bodies_arrive_intact"),
        (BusDefect::NewIdEachTime, "a_repeated_event_is_accepted_and_recognisable"),
        (BusDefect::OversizedFailsTheBatch, "an_oversized_event_fails_alone_and_for_good"),
        (BusDefect::OversizedIsTriedAgain, "an_oversized_event_fails_alone_and_for_good"),
        (BusDefect::BlamesTheEventForAnOutage, "an_unreachable_broker_is_nobodys_fault"),
    ] {
        bus_defect_is_found(defect, check).await;
    }
}

#[tokio::test]
async fn a_bus_without_defect_passes() {
    let report = bus_suite(&DefectiveBusHarness(BusDefect::None)).await;
    report.assert_passed();
    assert!(!report.to_string().contains("skipped"), "every check must have run\n{report}");
}
