"""Reads from Postgres in the place of Redis: when they may be, how many, and never for long."""

import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tallyboard_server.counters.durable import DurableCounts
from tallyboard_server.counters.model import Count, Fallback, Source
from tallyboard_server.counters.reads import CountReader
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.errors import DeadlineExceeded, Overloaded, TallyboardError, Unavailable
from tallyboard_server.postgres.checkpoints import ShardValue, write_values
from tallyboard_server.postgres.migrations import migrate
from tallyboard_server.postgres.partitions import insert_partitions
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool, open_pool
from tallyboard_server.recovery.durable_reads import DurableReads
from tests.postgres.support import new_database
from tests.waiting import wait_for

Pool = BoundedPool
PARTITIONS = 4
SHARDING = Sharding(PARTITIONS, 4, {}, [], 4, 0)
CHECKPOINTED = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
AWAY = Unavailable("away")


class Counted(DurableReads):
    """Counts how often Postgres is asked."""

    def __init__(self, pool: Pool, *, complete: bool = False) -> None:
        super().__init__(pool, complete=complete)
        self.asked = 0

    @contextmanager
    def reading(self, deadline: float) -> Iterator[BoundedConnection]:
        """One answer's reads."""
        self.asked += 1
        with super().reading(deadline) as conn:
            yield conn


class NoRedis:
    """A store whose Redis is away, or silent until the deadline."""

    def __init__(self, error: TallyboardError = AWAY) -> None:
        self.error = error

    def get(
        self, keys: list[str], deadline: float, partitions: Collection[int] = ()
    ) -> list[bytes | None]:
        """What a read of Redis ends with."""
        if isinstance(self.error, DeadlineExceeded):
            threading.Event().wait(max(0.0, deadline - time.monotonic()))
        raise self.error


def soon(seconds: float = 10.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def pool(postgres_server: EmbeddedPostgres) -> Iterator[Pool]:
    """A database with counters, checkpointed a while ago."""
    with new_database(postgres_server) as url:
        migrate(url)
        with open_pool(url) as pool:
            with pool.connection() as conn:
                lives = dict.fromkeys(range(PARTITIONS), "life")
                insert_partitions(conn, lives, opened=True, checkpointed_at=CHECKPOINTED)
                values = [
                    ShardValue(0, "acme", name, False, 5, False)
                    for name in ("post:42", "post:43", "full")
                ]
                write_values(conn, values, CHECKPOINTED)
                conn.execute(
                    "INSERT INTO tallyboard.journal_increments VALUES (1, 'acme', 'full', %s)",
                    ((1 << 63) - 5,),
                )
            yield pool


def reader(reads: DurableReads, store: NoRedis | None = None, ttl: float = 60) -> CountReader:
    """A reader of counts without Redis."""
    durable = DurableCounts(reads, SHARDING, ttl=ttl, max_entries=100)
    return CountReader(store or NoRedis(), SHARDING, ttl=2, max_entries=100, durable=durable)  # type: ignore[arg-type]


def test_a_crowd_asks_postgres_once(pool: Pool) -> None:
    reads = Counted(pool)
    shared = reader(reads)
    with ThreadPoolExecutor(20) as crowd:
        answers = [
            crowd.submit(shared.get, "acme", ("post:42",), 2.0, soon(), Fallback.ANY_AGE)
            for _ in range(60)
        ]
        found = {answer.result()[0] for answer in answers}
    assert found == {Count("post:42", 5, True, CHECKPOINTED.timestamp(), Source.DURABLE)}
    assert reads.asked == 1


def test_behind_a_journaled_write_nothing_kept_will_do(pool: Pool) -> None:
    reads = Counted(pool)
    shared = reader(reads)
    shared.get("acme", ("post:44",), 2.0, soon(), Fallback.ANY_AGE)
    with pool.connection() as conn:
        conn.execute("INSERT INTO tallyboard.journal_increments VALUES (1, 'acme', 'post:44', 7)")
    (kept,) = shared.get("acme", ("post:44",), None, soon(), Fallback.ANY_AGE)
    (count,) = shared.get("acme", ("post:44",), None, soon(), Fallback.ANY_AGE, anew=True)
    assert (kept.value, count.value, reads.asked) == (0, 7, 2)


def test_an_answer_is_kept_for_its_time_only(pool: Pool) -> None:
    reads = Counted(pool)
    shared = reader(reads, ttl=0.2)

    def ask() -> bool:
        shared.get("acme", ("post:42",), 2.0, soon(), Fallback.ANY_AGE)
        return reads.asked == 2

    wait_for(ask, "a second look")


def test_only_what_is_not_in_memory_is_asked_for(pool: Pool) -> None:
    reads = Counted(pool)
    shared = reader(reads)
    shared.get("acme", ("post:42",), 2.0, soon(), Fallback.ANY_AGE)
    names = ("post:43", "post:42", "never", "post:43")
    counts = shared.get("acme", names, 2.0, soon(), Fallback.ANY_AGE)
    assert [(count.counter, count.value) for count in counts] == [
        ("post:43", 5),
        ("post:42", 5),
        ("never", 0),
        ("post:43", 5),
    ]
    assert reads.asked == 2


@pytest.mark.parametrize(
    ("staleness", "fallback", "asked"),
    [
        (None, Fallback.FRESH, 0),
        (2.0, Fallback.NEVER, 0),
        (None, Fallback.NEVER, 0),
        (2.0, Fallback.FRESH, 1),
    ],
)
def test_what_is_older_than_asked_for_is_no_answer(
    pool: Pool, staleness: float | None, fallback: Fallback, asked: int
) -> None:
    reads = Counted(pool)
    shared = reader(reads)
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            shared.get("acme", ("post:42",), staleness, soon(), fallback)
        assert caught.value is AWAY
    assert reads.asked == asked


def test_what_is_fresh_enough_is_an_answer(pool: Pool) -> None:
    age = time.time() - CHECKPOINTED.timestamp()
    (count,) = reader(Counted(pool)).get("acme", ("post:42",), age + 60, soon(), Fallback.FRESH)
    assert count.source is Source.DURABLE


def test_where_all_is_journaled_exact_reads_are_answered(pool: Pool) -> None:
    reads = Counted(pool, complete=True)
    shared = reader(reads)
    for number in range(1, 4):
        begun = time.time()
        (count,) = shared.get("acme", ("post:42",), None, soon(), Fallback.FRESH)
        assert (count.value, count.source, reads.asked) == (5, Source.DURABLE, number)
        assert begun <= count.as_of <= time.time()
    assert shared.get("acme", ("post:42",), 60.0, soon(), Fallback.FRESH) == [count]
    assert reads.asked == 3


def test_a_count_beyond_64_bits_is_not_told(pool: Pool) -> None:
    with pytest.raises(Unavailable, match="not known"):
        reader(Counted(pool)).get("acme", ("full",), 2.0, soon(), Fallback.ANY_AGE)


def test_other_errors_are_not_hidden(pool: Pool) -> None:
    reads = Counted(pool)
    shared = reader(reads, NoRedis(Overloaded("busy")))
    with pytest.raises(Overloaded):
        shared.get("acme", ("post:42",), 2.0, soon(), Fallback.ANY_AGE)
    assert reads.asked == 0


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_silent_redis_leaves_time_for_postgres(pool: Pool, seconds: float) -> None:
    shared = reader(Counted(pool), NoRedis(DeadlineExceeded("silent")))
    deadline = soon(seconds)
    (count,) = shared.get("acme", ("post:42",), 2.0, deadline, Fallback.ANY_AGE)
    assert count.source is Source.DURABLE
    assert time.monotonic() < deadline


def test_a_silent_redis_and_an_old_checkpoint_are_unavailable(pool: Pool) -> None:
    shared = reader(Counted(pool), NoRedis(DeadlineExceeded("silent")))
    with pytest.raises(Unavailable) as caught:
        shared.get("acme", ("post:42",), 2.0, soon(0.5), Fallback.FRESH)
    assert caught.value.retry_after


def test_a_slow_postgres_is_left_at_the_deadline(pool: Pool) -> None:
    reads = DurableReads(pool)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded), reads.reading(soon(0.3)) as conn:
        conn.execute("SELECT pg_sleep(20)")
    assert time.monotonic() - started < 5
    # Being slow once is not being away.
    with reads.reading(soon()) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(DeadlineExceeded), reads.reading(soon(-1)):
        pass


def test_all_the_reads_of_an_answer_end_by_the_deadline(pool: Pool) -> None:
    reads = DurableReads(pool)
    started = time.monotonic()

    def read() -> None:
        with reads.reading(soon(0.5)) as conn:
            for _ in range(40):
                conn.execute("SELECT pg_sleep(0.25)")

    with pytest.raises(DeadlineExceeded):
        read()
    assert time.monotonic() - started < 5
    with reads.reading(soon()) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_busy_postgres_is_not_away(pool: Pool) -> None:
    with open_pool(pool.conninfo, max_size=1) as narrow:
        reads = DurableReads(narrow)
        with reads.reading(soon()), pytest.raises(Overloaded), reads.reading(soon()):
            pass
        with reads.reading(soon()):
            pass


def test_so_many_read_at_once(pool: Pool) -> None:
    with open_pool(pool.conninfo, max_size=20) as wide, ExitStack() as held:
        reads = DurableReads(wide)
        for _ in range(16):
            held.enter_context(reads.reading(soon()))
        with pytest.raises(Overloaded):
            held.enter_context(reads.reading(soon()))
        held.close()
        with reads.reading(soon()):
            pass


def test_with_both_away_reads_fail_at_once() -> None:
    with open_pool("postgresql://ann@127.0.0.1:1/none", wait=5) as nowhere:
        shared = reader(DurableReads(nowhere))

        def ask() -> float:
            started = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                shared.get("acme", ("post:42",), 2.0, soon(), Fallback.ANY_AGE)
            assert (caught.value.reason, bool(caught.value.retry_after)) == (
                "REDIS_UNAVAILABLE",
                True,
            )
            return time.monotonic() - started

        assert ask() < 2
        waits = sorted(ask() for _ in range(100))
    assert waits[90] < 0.1


def test_reads_go_on_when_postgres_is_back(short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder)
    server.start()
    try:
        with open_pool(server.url, wait=1, answer_timeout=1) as pool:
            reads = DurableReads(pool)

            def answers() -> bool:
                try:
                    with reads.reading(soon()) as conn:
                        conn.execute("SELECT 1")
                except Unavailable:
                    return False
                return True

            wait_for(answers, "Postgres")
            server.stop()
            wait_for(lambda: not answers(), "Postgres to be away")
            server.start()
            wait_for(answers, "Postgres to be back")
    finally:
        server.stop()
