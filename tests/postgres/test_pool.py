"""The pool: nobody waits long for a Postgres that is stopped, gone or back."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg_pool import PoolTimeout
from structlog.testing import capture_logs

from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.errors import DeadlineExceeded, Unavailable
from tallyboard_server.postgres.pool import TooLate, connect, open_pool, postgres_unavailable
from tests.waiting import wait_for


@pytest.fixture
def own_postgres(short_folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(short_folder) as server:
        yield server


def test_a_stopped_server_is_given_up(database: str) -> None:
    with connect(database) as conn:
        conn.answer_timeout = 0.5
        backend = conn.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        started = time.monotonic()
        try:
            with pytest.raises(psycopg.OperationalError):
                conn.execute("SELECT 1")
            assert time.monotonic() - started < 3
        finally:
            os.kill(backend, signal.SIGCONT)


def test_a_connection_that_was_given_up_is_closed(database: str) -> None:
    with connect(database) as conn:
        conn.answer_timeout = 0.3
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_sleep(5)")
        assert conn.closed


def test_a_slow_statement_is_ended_by_the_server(database: str) -> None:
    with connect(database) as conn:
        conn.execute("SET statement_timeout = 200")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SELECT pg_sleep(5)")


def test_nobody_waits_long_for_a_postgres_that_is_away() -> None:
    started = time.monotonic()
    pool = open_pool("postgresql://127.0.0.1:1/acme", wait=0.5)
    with pool, pytest.raises(PoolTimeout), pool.connection():
        pass
    assert time.monotonic() - started < 5


def test_a_pool_finds_a_postgres_that_is_back(own_postgres: EmbeddedPostgres) -> None:
    with open_pool(own_postgres.url, wait=0.5) as pool:
        own_postgres.kill()
        with pytest.raises(psycopg.Error), pool.connection() as conn:
            conn.execute("SELECT 1")
        own_postgres.start()

        def answers() -> bool:
            try:
                with pool.connection() as conn:
                    conn.execute("SELECT 1")
            except psycopg.Error:
                return False
            return True

        assert wait_for(answers, "Postgres to be found", 10)


def test_a_deadline_ends_a_statement_and_keeps_the_connection(database: str) -> None:
    with open_pool(database, max_size=1) as pool:
        with pool.connection() as conn:
            backend = conn.info.backend_pid
        started = time.monotonic()
        with pytest.raises(TooLate), pool.until(started + 0.3) as conn:
            conn.execute("SELECT pg_sleep(5)")
        assert time.monotonic() - started < 1
        with pool.connection() as conn:
            assert conn.info.backend_pid == backend
            assert conn.execute("SHOW statement_timeout").fetchone() == ("10s",)


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
def test_a_deadline_bounds_the_end_of_a_transaction(database: str, fails: bool) -> None:
    stopped = []

    def transact(deadline: float) -> None:
        with pool.until(deadline) as conn:
            conn.execute("SELECT txid_current()")
            stopped.append(conn.info.backend_pid)
            os.kill(conn.info.backend_pid, signal.SIGSTOP)
            if fails:
                raise KeyError

    with open_pool(database) as pool:
        started = time.monotonic()
        with pytest.raises(KeyError if fails else TooLate):
            transact(started + 0.3)
        seconds = time.monotonic() - started
        os.kill(stopped[0], signal.SIGCONT)
    assert seconds < 1


def test_a_connection_that_is_silent_is_not_given_to_anybody(database: str) -> None:
    with open_pool(database, max_size=1, wait=0.3) as pool:
        with pool.connection() as conn:
            backend = conn.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        started = time.monotonic()
        try:
            with pytest.raises(PoolTimeout), pool.connection():
                pass
            assert time.monotonic() - started < 1
        finally:
            os.kill(backend, signal.SIGCONT)


def test_callers_are_told_that_their_deadline_has_passed(database: str) -> None:
    with (
        open_pool(database) as pool,
        pytest.raises(DeadlineExceeded),
        postgres_unavailable(),
        pool.until(time.monotonic()),
    ):
        pass


def test_callers_are_told_that_postgres_is_away() -> None:
    with pytest.raises(Unavailable) as raised, postgres_unavailable():
        raise PoolTimeout("no connection")
    assert raised.value.reason == "POSTGRES_UNAVAILABLE"


def test_why_postgres_is_away_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallyboard_server.postgres.pool._quiet_until", 0.0)
    with capture_logs() as lines:
        for _ in range(3):
            with pytest.raises(Unavailable), postgres_unavailable():
                connect("postgresql://ann:secret@127.0.0.1:1/x")
    (line,) = lines
    assert "refused" in line["why"]
    assert "secret" not in str(line)


@pytest.mark.parametrize("statement", ["SELECT 1/0", "SELECT nothing", "SELECT 'x'::int"])
def test_a_wrong_statement_does_not_mean_that_postgres_is_away(
    database: str, statement: str
) -> None:
    with connect(database) as conn, pytest.raises(psycopg.Error), postgres_unavailable():
        conn.execute(statement)


def test_a_lock_that_somebody_holds_is_told(database: str) -> None:
    with connect(database) as holder, connect(database) as conn:
        holder.execute("SELECT pg_advisory_xact_lock(1)")
        conn.execute("SET lock_timeout = 100")
        with pytest.raises(Unavailable) as raised, postgres_unavailable():
            conn.execute("SELECT pg_advisory_xact_lock(1)")
    assert raised.value.reason == "PARTITION_UNAVAILABLE"
