"""Migrations: once, by one, and never onto a schema they don't know."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tallyboard_server.postgres.migrations import Migration, migrate, packaged_migrations
from tallyboard_server.startup import StartupError
from tests.postgres.support import rows


def test_runs_every_packaged_migration(database: str) -> None:
    assert migrate(database) == [migration.name for migration in packaged_migrations()]


def test_numbers_have_no_gaps() -> None:
    numbers = [migration.number for migration in packaged_migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_second_run_does_nothing(database: str) -> None:
    migrate(database)
    assert migrate(database) == []


def test_instances_that_start_together_run_each_migration_once(database: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        ran = list(threads.map(lambda _: migrate(database), range(4)))
    assert [name for names in ran for name in names] == [
        migration.name for migration in packaged_migrations()
    ]


def test_refuses_a_changed_migration(database: str) -> None:
    migrate(database, [Migration(1, "0001_first", "SELECT 1")])
    with pytest.raises(StartupError, match="0001_first was run with other contents"):
        migrate(database, [Migration(1, "0001_first", "SELECT 2")])


def test_refuses_a_newer_schema(database: str) -> None:
    first, second = Migration(1, "0001_first", "SELECT 1"), Migration(2, "0002_next", "SELECT 1")
    migrate(database, [first, second])
    with pytest.raises(StartupError, match="0002_next, which this version"):
        migrate(database, [first])


def test_a_migration_that_fails_leaves_nothing(database: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        migrate(database, [Migration(1, "0001_bad", "CREATE TABLE t (); SELECT * FROM nowhere")])
    assert rows(database, "SELECT to_regclass('t'), to_regnamespace('tallyboard')") == [
        (None, None)
    ]


def test_refuses_another_encoding(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP DATABASE IF EXISTS latin")
        conn.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    latin = database.replace(f"/{database.split('/')[3].split('?')[0]}?", "/latin?")
    with pytest.raises(StartupError, match="has the encoding LATIN1"):
        migrate(latin)
