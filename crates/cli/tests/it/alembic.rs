//! What docs/python.md says of alembic, with alembic.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::common::Cli;
use crate::common::database::TestDatabase;
use posthaste_testkit::servers::skip_test;

/// A service with one table and the outbox, and with a model of the outbox where it wants one.
const MODELS: &str = "
import uuid
from sqlalchemy import String, MetaData
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Shipment(Base):
    __tablename__ = 'shipments'
    id: Mapped[int] = mapped_column(primary_key=True)
";

const ENV: &str = "
import os
from alembic import context
from sqlalchemy import create_engine
from models import Base

target_metadata = Base.metadata
INCLUDE_OBJECT
with create_engine(os.environ['URL']).connect() as connection:
    CONFIGURE
    with context.begin_transaction():
        context.run_migrations()
";

/// The code block of the page that holds `part`.
fn block(part: &str) -> String {
    let page = include_str!("../../../../docs/python.md");
    let blocks = page.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.into_iter().find(|block| block.contains(part)).unwrap().to_owned()
}

/// `alembic check` in a folder with this `env.py`: it fails where alembic would propose a change.
fn check(cli: &Cli, python: &PathBuf, url: &str, env: &str, models: &str) -> Output {
    std::fs::create_dir_all(cli.path("migrations/versions")).unwrap();
    cli.write("alembic.ini", "[alembic]\nscript_location = migrations\n");
    cli.write("migrations/env.py", env).write("models.py", models);
    Command::new(python)
        .args(["-m", "alembic", "check"])
        .current_dir(cli.path(""))
        .env("URL", url.replacen("postgres://", "postgresql+psycopg://", 1))
        .env("PYTHONPATH", ".")
        .output()
        .unwrap()
}

#[tokio::test]
async fn alembic_leaves_the_outbox_alone_with_what_the_page_says() {
    let Some(python) = python() else { return };
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new().env("DATABASE_URL", &database.url());
    cli.run(&["migrate", "up"]).succeeded();
    database.run("create table shipments (id serial primary key)").await;

    let include_object = block("def include_object");
    let (function, configure) = include_object.split_once("\n\n").unwrap();
    let configure = configure.trim().replace('\n', " ");
    let env = ENV.replace("INCLUDE_OBJECT", function).replace("CONFIGURE", &configure);
    let with_model = format!("{MODELS}\n{}", block("class OutboxEvent"));
    for models in [MODELS, &with_model] {
        let checked = check(&cli, &python, &database.url(), &env, models);
        assert!(checked.status.success(), "{checked:?}");
    }

    // Without it, the tables would be dropped: the page does not warn of nothing.
    let bare = ENV.replace("INCLUDE_OBJECT", "").replace(
        "CONFIGURE",
        "context.configure(connection=connection, target_metadata=target_metadata)",
    );
    let checked = check(&cli, &python, &database.url(), &bare, MODELS);
    let told = String::from_utf8_lossy(&checked.stderr) + String::from_utf8_lossy(&checked.stdout);
    assert!(!checked.status.success() && told.contains("remove_table"), "{told}");
    assert!(told.contains("outbox_events"), "{told}");
}

/// The interpreter that has alembic.
fn python() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let mut folders = test.ancestors();
    let found = folders.find_map(|folder| {
        let python = folder.join("python-venv/bin/python");
        folder.join("python-venv/bin/alembic").exists().then_some(python)
    });
    if found.is_none() {
        skip_test("no Python environment with alembic; `cargo xtask test` makes one");
    }
    found
}
