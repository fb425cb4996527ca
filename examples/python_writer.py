#!/usr/bin/env python3
"""Writes events as any program can: plain INSERTs through SQLAlchemy.

It fills three columns of the contract and reads back a fourth, the id; all others have defaults.
Events are written in transactions of random length, a fifth of which roll back. The ids that were
committed are printed as JSON, so that they can be compared with what is delivered.

    python_writer.py --events 100 --seed 1 --database-url postgresql://root@127.0.0.1:5432/test
"""

import argparse
import json
import os
import random
import sys
import uuid

from sqlalchemy import Column, MetaData, String, Table, create_engine, insert
from sqlalchemy.dialects.postgresql import JSONB, UUID

AGGREGATES = 20
TRANSACTION_EVENTS_MAX = 10
ROLLED_BACK_SHARE = 0.2

# Not the table as it is, but what this program needs of it.
outbox_events = Table(
    "outbox_events",
    MetaData(),
    Column("id", UUID(as_uuid=True)),
    Column("aggregate_id", UUID(as_uuid=True), nullable=False),
    Column("event_type", String(100), nullable=False),
    Column("event_data", JSONB, nullable=False),
)


def main():
    arguments = parse_arguments()
    generator = random.Random(arguments.seed)
    aggregates = [
        uuid.UUID(int=generator.getrandbits(128), version=4) for _ in range(AGGREGATES)
    ]
    numbers = dict.fromkeys(aggregates, 0)
    engine = create_engine(sqlalchemy_url(arguments.database_url))
    committed, rolled_back, written = [], 0, 0
    with engine.connect() as connection:
        while written < arguments.events:
            length = min(
                generator.randint(1, TRANSACTION_EVENTS_MAX), arguments.events - written
            )
            before = dict(numbers)
            events = [
                make_event(generator.choice(aggregates), numbers)
                for _ in range(length)
            ]
            # Locks and data first, events last: then their order is the order of the locks.
            ids = connection.execute(
                insert(outbox_events).returning(outbox_events.c.id), events
            ).scalars()
            ids = [str(id) for id in ids]
            written += length
            if generator.random() < ROLLED_BACK_SHARE:
                connection.rollback()
                numbers = before
                rolled_back += length
            else:
                connection.commit()
                committed.extend(ids)
    json.dump({"committed": committed, "rolled_back": rolled_back}, sys.stdout)
    print()


def make_event(aggregate, numbers):
    """One event; `number` counts the committed events of its aggregate."""
    numbers[aggregate] += 1
    return {
        "aggregate_id": aggregate,
        "event_type": "order.changed",
        "event_data": {"number": numbers[aggregate], "note": "grüße"},
    }


def sqlalchemy_url(url):
    """Names the driver, which SQLAlchemy wants in the URL."""
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg"
    return scheme + separator + rest


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100, help="how many to write")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds write equal data")
    parser.add_argument(
        "--database-url",
        default=os.environ.get("DATABASE_URL"),
        help="where the outbox is (default: DATABASE_URL)",
    )
    arguments = parser.parse_args()
    if not arguments.database_url:
        parser.error("give --database-url or set DATABASE_URL")
    return arguments


if __name__ == "__main__":
    main()
