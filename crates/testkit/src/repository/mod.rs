//! The conformance suite of repositories.

mod admin;
mod fetch;
mod lease;
mod odd;
mod settle;
mod store;
mod stuck_keys;
mod upkeep;

use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use posthaste_core::{
    OutboxAdmin, OutboxEvent, OutboxRepository, PendingEvent, PendingPage, PendingQuery,
    PendingSelection, Settlement, SettlementOutcome,
};

use crate::Report;
use crate::report::{Suite, run_checks};

/// Gives the suite repositories to check.
#[async_trait]
pub trait RepositoryHarness: Send + Sync {
    /// The repository under test. Clones share the outbox.
    type Repository: OutboxRepository + OutboxAdmin + Clone;

    /// A new, empty outbox that nothing else uses. Called once or more per check.
    async fn fresh(&self) -> anyhow::Result<Self::Repository>;

    /// The same outbox through new connections, as after a restart. Default: `None`, and what
    /// needs it is skipped. Required of a durable store.
    async fn reopen(
        &self,
        _repository: &Self::Repository,
    ) -> anyhow::Result<Option<Self::Repository>> {
        Ok(None)
    }

    /// Makes delivered events look `by` older than they are, and returns true. Default: false, and
    /// the suite cleans up with a retention of zero instead.
    ///
    /// For stores that drop history by the day.
    async fn age_delivered(
        &self,
        _repository: &Self::Repository,
        _by: Duration,
    ) -> anyhow::Result<bool> {
        Ok(false)
    }

    /// Why the check of this name is not to run, where it is not. It is reported as skipped.
    /// Default: `None`, and all run.
    fn skips(&self, _check: &str) -> Option<String> {
        None
    }
}

/// Checks all that the documentation of [`OutboxRepository`] and [`OutboxAdmin`] promises.
pub async fn repository_suite<H: RepositoryHarness>(harness: &H) -> Report {
    let (name, leases) = match harness.fresh().await {
        Ok(repository) => (repository.capabilities().name, repository.capabilities().leases),
        Err(_) => ("a store that does not open", false),
    };
    let mut suite = Suite::new(format!("repository suite on {name}"));
    run_checks!(suite, harness:
        store::stored_events_are_pending_in_the_order_given,
        store::all_fields_survive_storing,
        store::unicode_and_long_names_survive_storing,
        store::arbitrary_bytes_survive_storing,
        store::five_megabytes_survive_storing,
        store::storing_nothing_changes_nothing,
        store::a_duplicate_of_a_pending_event_stores_none_of_its_batch,
        store::five_thousand_events_are_stored_fetched_and_settled_at_once,
        store::concurrent_stores_lose_nothing,
        store::events_survive_reopening,
        odd::an_odd_event_is_refused_whole_or_comes_back_as_it_was,
        odd::no_store_takes_what_no_relay_could_tell_apart,
        odd::what_happened_to_an_event_before_is_not_stored,
        fetch::fetch_orders_by_place,
        fetch::fetch_keeps_to_events_max_and_says_that_there_are_more,
        fetch::fetch_stops_at_bytes_max_but_gives_at_least_one,
        fetch::fetch_forward_gives_gaps_and_what_follows_by_place,
        fetch::fetch_finds_events_at_places,
        fetch::fetch_finds_events_of_a_key,
        fetch::delayed_events_are_fetched_with_the_wait_that_is_left,
        fetch::heads_tell_of_what_is_undelivered_without_changing_it,
        fetch::watermark_covers_every_stored_event,
        fetch::a_store_wakes_who_waits_for_events,
        settle::delivered_events_are_no_longer_pending,
        settle::what_is_delivered_and_not_kept_is_gone,
        settle::only_what_is_pending_is_removed,
        settle::a_retry_stays_pending_with_its_count_error_and_wait,
        settle::a_dead_letter_stays_visible_and_is_not_fetched,
        settle::one_batch_may_hold_every_outcome,
        settle::settling_again_changes_nothing,
        settle::a_repeated_retry_does_not_count_twice,
        settle::a_settlement_with_another_id_changes_nothing,
        settle::any_error_text_can_be_settled,
        settle::settlements_survive_reopening,
        settle::dead_heads_are_paged_by_place,
        settle::failed_events_are_the_dead_letters_oldest_first,
        admin::find_event_finds_an_event_in_every_state,
        admin::list_filters_by_state,
        admin::list_filters_by_type_key_and_ids,
        admin::list_filters_by_time_and_place,
        admin::pages_go_on_through_what_is_delivered,
        admin::list_and_count_keep_to_their_limit,
        admin::retry_revives_a_dead_letter_at_its_old_place,
        admin::retry_makes_a_waiting_retry_due_at_once,
        admin::retry_and_discard_leave_what_does_not_match,
        admin::an_empty_list_of_ids_selects_nothing,
        admin::release_makes_what_waits_due_and_keeps_its_attempts,
        admin::reroute_changes_the_destination_and_nothing_else,
        admin::discard_removes_pending_and_dead_but_not_delivered,
        stuck_keys::a_key_with_a_dead_letter_is_listed_once,
        stuck_keys::a_key_that_waits_for_a_retry_is_listed_with_its_next_attempt,
        stuck_keys::stuck_keys_are_paged_by_place,
        stuck_keys::a_key_is_its_aggregates_or_its_own,
        stuck_keys::a_key_leaves_the_list_when_nothing_holds_it,
        upkeep::backlog_counts_each_phase,
        upkeep::backlog_of_an_empty_outbox_is_zero,
        upkeep::cleanup_removes_only_old_delivered_events,
        upkeep::check_and_maintain_may_be_repeated,
    );
    if leases {
        run_checks!(suite, harness:
            lease::a_relay_alone_leases_every_shard,
            lease::relays_share_evenly_once_the_surplus_is_given_back,
            lease::a_shard_taken_since_is_not_released_by_its_old_owner,
            lease::what_a_relay_leaves_is_free_at_once,
            lease::a_relay_that_is_leaving_gets_nothing_and_counts_for_nobody,
            lease::a_relay_that_does_not_renew_loses_its_shards,
            lease::a_relay_that_renews_late_keeps_what_nobody_took,
            lease::a_settlement_under_a_lease_that_is_over_changes_nothing,
            lease::a_forward_read_brings_the_keys_of_its_shards_only,
            lease::a_key_has_one_shard_and_keys_are_spread,
            lease::a_generation_of_a_shard_has_one_owner,
        );
    }
    suite.end()
}

/// A limit on bytes that no check meets unless it means to.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The first page of all pending events.
async fn page<R: OutboxRepository>(
    repository: &R,
    selection: PendingSelection,
    events_max: usize,
    bytes_max: usize,
) -> anyhow::Result<PendingPage> {
    let query = PendingQuery { leases: None, selection, events_max, bytes_max };
    Ok(repository.fetch_pending(&query).await?)
}

/// All that is after the start.
const fn everything() -> PendingSelection {
    PendingSelection::Forward { gaps: Vec::new(), after: 0 }
}

/// Every pending event, by place.
pub(crate) async fn pending<R: OutboxRepository>(
    repository: &R,
) -> anyhow::Result<Vec<PendingEvent>> {
    Ok(page(repository, everything(), 10_000, BYTES_MAX).await?.events)
}

/// Every pending event's value, by place.
pub(crate) async fn pending_events<R: OutboxRepository>(
    repository: &R,
) -> anyhow::Result<Vec<OutboxEvent>> {
    Ok(pending(repository).await?.into_iter().map(|pending| pending.event).collect())
}

/// Stores one event and reads it back.
async fn stored<R: OutboxRepository>(
    repository: &R,
    event: &OutboxEvent,
) -> anyhow::Result<PendingEvent> {
    repository.store(std::slice::from_ref(event)).await?;
    let found = pending(repository).await?.into_iter().find(|found| found.event.id() == event.id());
    found.context("a stored event is not pending")
}

fn settlement(event: &PendingEvent, outcome: SettlementOutcome) -> Settlement {
    Settlement { lease: None, seq: event.seq, id: event.event.id(), outcome }
}

fn retry_after(delay: Duration, retry_count: u32) -> SettlementOutcome {
    SettlementOutcome::Retry { retry_count, delay, error: "publish: it failed".into() }
}

fn dead() -> SettlementOutcome {
    SettlementOutcome::Dead { retry_count: 3, reason: "retries_exhausted", error: "no".into() }
}
