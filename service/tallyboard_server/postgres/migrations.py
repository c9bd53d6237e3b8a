"""Brings the schema `tallyboard` to what this program needs, by numbered SQL files.

A file that was run is never changed: its checksum is kept in tallyboard.schema_migrations.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, LiteralString

import psycopg

from tallyboard_server.postgres.locks import MIGRATIONS, lock_for_transaction
from tallyboard_server.postgres.pool import BoundedConnection, connect
from tallyboard_server.startup import StartupError

OLDEST_POSTGRES: Final = 14
# Seconds: a migration may rewrite a table, and other instances wait for it.
MIGRATION_TIMEOUT: Final = 600.0

_BOOKKEEPING: Final = """
    CREATE SCHEMA IF NOT EXISTS tallyboard;
    CREATE TABLE IF NOT EXISTS tallyboard.schema_migrations (
        number integer PRIMARY KEY,
        name text NOT NULL,
        checksum text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


@dataclass(frozen=True)
class Migration:
    """One SQL file: its number, its name without `.sql`, its text and the text's SHA-256."""

    number: int
    name: str
    sql: LiteralString

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hexadecimal digits."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def packaged_migrations() -> list[Migration]:
    """The migrations that this program brings, by number."""
    folder = resources.files(__package__) / "sql"
    names = sorted(file.name for file in folder.iterdir())
    return [
        Migration(int(match[1]), name.removesuffix(".sql"), (folder / name).read_text())
        for name in names
        if (match := re.fullmatch(r"([0-9]{4})_\w+\.sql", name))
    ]


def migrate(conninfo: str, migrations: list[Migration] | None = None) -> list[str]:
    """Runs what is missing, all or nothing, and gives the names of what it ran.

    Any number of instances may call it at once: one runs the migrations, the others wait for it.

    Args:
        conninfo: where Postgres is.
        migrations: instead of those that the program brings.

    Raises:
        StartupError: the schema is newer than the program, a migration was changed after it ran,
            the server is too old or its encoding is not UTF-8.
        psycopg.Error: Postgres is away or refused a statement.
    """
    wanted = packaged_migrations() if migrations is None else migrations
    with connect(conninfo, name="tallyboard migrations") as conn:
        _check_server(conn)
        conn.answer_timeout = MIGRATION_TIMEOUT
        conn.execute("SET LOCAL statement_timeout = 0")
        lock_for_transaction(conn, MIGRATIONS, MIGRATION_TIMEOUT)
        missing = _missing(conn, wanted)
        for migration in missing:
            conn.execute(migration.sql)
            conn.execute(
                "INSERT INTO tallyboard.schema_migrations (number, name, checksum)"
                " VALUES (%s, %s, %s)",
                (migration.number, migration.name, migration.checksum),
            )
    return [migration.name for migration in missing]


def _check_server(conn: BoundedConnection) -> None:
    version = conn.info.server_version // 10_000
    if version < OLDEST_POSTGRES:
        raise StartupError(
            f"Postgres is version {version}; Tallyboard needs {OLDEST_POSTGRES} or newer."
        )
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StartupError(
            f"The Postgres database {conn.info.dbname} has the encoding {encoding}; names need "
            "UTF8. Create the database with ENCODING 'UTF8'."
        )


def _missing(conn: psycopg.Connection[Any], wanted: list[Migration]) -> list[Migration]:
    """Those of `wanted` that did not run; only asks when there is nothing to create."""
    found = conn.execute("SELECT to_regclass('tallyboard.schema_migrations')").fetchone()
    if found is None or found[0] is None:
        conn.execute(_BOOKKEEPING)
    applied: dict[int, tuple[str, str]] = {
        number: (name, checksum)
        for number, name, checksum in conn.execute(
            "SELECT number, name, checksum FROM tallyboard.schema_migrations"
        )
    }
    known = {migration.number: migration for migration in wanted}
    for number, (name, checksum) in sorted(applied.items()):
        if number not in known:
            raise StartupError(
                f"The Postgres schema has the migration {name}, which this version of Tallyboard "
                "does not know; start the version that made it, or a newer one."
            )
        if known[number].checksum != checksum:
            raise StartupError(
                f"The migration {name} was run with other contents than this version of "
                "Tallyboard brings; start the version that ran it."
            )
    return [migration for migration in wanted if migration.number not in applied]
