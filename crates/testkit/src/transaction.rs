//! The conformance suite of transactions: events with the data, or neither.

use std::time::Duration;

use anyhow::ensure;
use async_trait::async_trait;
use posthaste_core::{OutboxRepository, OutboxTransaction, UnitOfWork};
use uuid::Uuid;

use crate::report::{Suite, run_checks};
use crate::repository::pending_events;
use crate::{Report, RepositoryHarness, samples, skip};

/// Gives the suite units of work to check.
#[async_trait]
pub trait TransactionHarness: RepositoryHarness {
    /// The binding under test.
    type Transaction: OutboxTransaction;

    /// A unit of work on the database of `repository`.
    async fn begin(
        &self,
        repository: &Self::Repository,
    ) -> anyhow::Result<UnitOfWork<Self::Transaction>>;

    /// Whether two units may be open at once. Default: true.
    fn concurrent_units(&self) -> bool {
        true
    }

    /// Writes a row of the application's own through the unit's connection. Default: what needs it
    /// is skipped. Make the table in [`RepositoryHarness::fresh`].
    async fn write_row(
        &self,
        _connection: &mut <Self::Transaction as OutboxTransaction>::Connection,
        _id: Uuid,
    ) -> anyhow::Result<()> {
        Err(skip("the harness writes no data of its own"))
    }

    /// Whether the row is there, seen from outside the unit.
    async fn has_row(&self, _repository: &Self::Repository, _id: Uuid) -> anyhow::Result<bool> {
        Err(skip("the harness writes no data of its own"))
    }
}

/// Checks all that the documentation of [`UnitOfWork`] and [`OutboxTransaction`] promises.
pub async fn transaction_suite<H: TransactionHarness>(harness: &H) -> Report {
    let name = match harness.fresh().await {
        Ok(repository) => repository.capabilities().name,
        Err(_) => "a store that does not open",
    };
    let mut suite = Suite::new(format!("transaction suite on {name}"));
    run_checks!(suite, harness:
        commit_stores_all_events_in_the_order_given,
        rollback_stores_nothing,
        dropping_without_commit_stores_nothing,
        an_empty_unit_commits,
        events_are_invisible_before_commit,
        a_failing_store_rolls_back_everything,
        an_event_that_was_added_twice_fails_its_unit,
        two_thousand_events_fit_one_unit,
        two_open_units_do_not_see_each_other,
        concurrent_units_lose_nothing,
        data_and_events_are_committed_together,
        data_and_events_are_rolled_back_together,
        a_commit_wakes_who_waits_for_events,
    );
    suite.end()
}

async fn commit_stores_all_events_in_the_order_given<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = samples::events(10)?;
    let mut unit = harness.begin(&repository).await?;
    for event in &events {
        unit.add_event(event.clone());
    }
    unit.commit().await?;
    let found = samples::ids(&pending_events(&repository).await?);
    ensure!(found == samples::ids(&events), "other events, or another order");
    Ok(())
}

async fn rollback_stores_nothing<H: TransactionHarness>(harness: &H) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let mut unit = harness.begin(&repository).await?;
    unit.add_event(samples::event()?);
    unit.rollback().await?;
    expect_nothing_then_usable(harness, &repository).await
}

async fn dropping_without_commit_stores_nothing<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let mut unit = harness.begin(&repository).await?;
    unit.add_event(samples::event()?);
    drop(unit);
    expect_nothing_then_usable(harness, &repository).await
}

async fn an_empty_unit_commits<H: TransactionHarness>(harness: &H) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    harness.begin(&repository).await?.commit().await?;
    expect_nothing_then_usable(harness, &repository).await
}

async fn events_are_invisible_before_commit<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let mut unit = harness.begin(&repository).await?;
    unit.add_event(samples::event()?);
    let found = pending_events(&repository).await?.len();
    ensure!(found == 0, "{found} events are visible before commit");
    unit.commit().await?;
    ensure!(pending_events(&repository).await?.len() == 1, "a committed event is missing");
    Ok(())
}

async fn a_failing_store_rolls_back_everything<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = samples::event()?;
    repository.store(std::slice::from_ref(&event)).await?;
    let mut unit = harness.begin(&repository).await?;
    unit.add_event(samples::event()?);
    unit.add_event(event.clone());
    ensure!(unit.commit().await.is_err(), "a duplicate was stored");
    let found = samples::ids(&pending_events(&repository).await?);
    ensure!(found == [event.id()], "part of a failed unit was stored");
    let mut unit = harness.begin(&repository).await?;
    unit.add_event(samples::event()?);
    unit.commit().await?;
    Ok(())
}

async fn an_event_that_was_added_twice_fails_its_unit<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = samples::event()?;
    let mut unit = harness.begin(&repository).await?;
    unit.add_event(event.clone());
    unit.add_event(event);
    ensure!(unit.commit().await.is_err(), "the same event was stored twice");
    expect_nothing_then_usable(harness, &repository).await
}

async fn two_thousand_events_fit_one_unit<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = samples::series(Uuid::now_v7(), 2_000)?;
    let mut unit = harness.begin(&repository).await?;
    for event in &events {
        unit.add_event(event.clone());
    }
    unit.commit().await?;
    let found = samples::ids(&pending_events(&repository).await?);
    ensure!(found == samples::ids(&events), "other events, or another order");
    Ok(())
}

async fn two_open_units_do_not_see_each_other<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    if !harness.concurrent_units() {
        return Err(skip("the store has one writer at a time"));
    }
    let repository = harness.fresh().await?;
    let (first, second) = (samples::event()?, samples::event()?);
    let mut unit = harness.begin(&repository).await?;
    unit.add_event(first.clone());
    let mut other = harness.begin(&repository).await?;
    other.add_event(second.clone());
    other.commit().await?;
    let found = samples::ids(&pending_events(&repository).await?);
    ensure!(found == [second.id()], "the wrong unit's events are visible");
    unit.commit().await?;
    let found = samples::ids(&pending_events(&repository).await?);
    ensure!(found.len() == 2 && found.contains(&first.id()), "a unit's event is lost");
    Ok(())
}

async fn concurrent_units_lose_nothing<H: TransactionHarness>(harness: &H) -> anyhow::Result<()> {
    const UNITS: usize = 20;
    let repository = harness.fresh().await?;
    let units = (0..UNITS).map(|number| {
        let repository = repository.clone();
        async move {
            let events = samples::series(Uuid::now_v7(), 3)?;
            let mut unit = harness.begin(&repository).await?;
            for event in &events {
                unit.add_event(event.clone());
            }
            tokio::task::yield_now().await;
            // Every fourth one changes its mind.
            if number % 4 == 0 {
                unit.rollback().await?;
                return anyhow::Ok(Vec::new());
            }
            unit.commit().await?;
            Ok(samples::ids(&events))
        }
    });
    let committed = futures_util::future::try_join_all(units).await?;
    let found = samples::ids(&pending_events(&repository).await?);
    let expected: usize = committed.iter().map(Vec::len).sum();
    ensure!(found.len() == expected, "{} events found, {expected} committed", found.len());
    for ids in committed {
        let kept: Vec<_> = found.iter().filter(|id| ids.contains(id)).copied().collect();
        ensure!(kept == ids, "a unit's events are lost or in another order");
    }
    Ok(())
}

async fn data_and_events_are_committed_together<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let row = Uuid::now_v7();
    let mut unit = harness.begin(&repository).await?;
    harness.write_row(unit.connection(), row).await?;
    unit.add_event(samples::event()?);
    ensure!(!harness.has_row(&repository, row).await?, "the row is visible before commit");
    unit.commit().await?;
    ensure!(harness.has_row(&repository, row).await?, "the row is lost");
    ensure!(pending_events(&repository).await?.len() == 1, "the event is lost");
    Ok(())
}

async fn data_and_events_are_rolled_back_together<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = samples::event()?;
    repository.store(std::slice::from_ref(&event)).await?;
    let row = Uuid::now_v7();
    let mut unit = harness.begin(&repository).await?;
    harness.write_row(unit.connection(), row).await?;
    // The event is a duplicate, so the store fails, and the data must go with it.
    unit.add_event(event);
    ensure!(unit.commit().await.is_err(), "a duplicate was stored");
    ensure!(!harness.has_row(&repository, row).await?, "data was committed without its event");
    let mut unit = harness.begin(&repository).await?;
    harness.write_row(unit.connection(), row).await?;
    unit.add_event(samples::event()?);
    drop(unit);
    ensure!(!harness.has_row(&repository, row).await?, "data of a dropped unit is there");
    ensure!(pending_events(&repository).await?.len() == 1, "an event of a dropped unit is there");
    Ok(())
}

async fn a_commit_wakes_who_waits_for_events<H: TransactionHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    if !repository.capabilities().wakes {
        return Err(skip("the store has no wake-up"));
    }
    let waiting = repository.clone();
    let mut woken = tokio::spawn(async move { waiting.wait_for_events().await });
    // A wake-up is a hint, so one commit may go unnoticed, but not a hundred.
    for _ in 0..100 {
        let mut unit = harness.begin(&repository).await?;
        unit.add_event(samples::event()?);
        unit.commit().await?;
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(100), &mut woken).await {
            return Ok(ended?);
        }
    }
    woken.abort();
    anyhow::bail!("nobody was woken")
}

/// Nothing was stored, and the next unit works: no connection is left inside a transaction.
async fn expect_nothing_then_usable<H: TransactionHarness>(
    harness: &H,
    repository: &H::Repository,
) -> anyhow::Result<()> {
    let found = pending_events(repository).await?.len();
    ensure!(found == 0, "{found} events were stored");
    let mut unit = harness.begin(repository).await?;
    unit.add_event(samples::event()?);
    unit.commit().await?;
    let found = pending_events(repository).await?.len();
    ensure!(found == 1, "{found} events after one more unit with one event");
    Ok(())
}
