"""Rows of the journal go with the checkpoint that has them, and not before."""

import random
from collections import Counter

import pytest
from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.postgres import journal
from tallyboard_server.postgres.journal import Batch, Increment, TokenOf
from tallyboard_server.postgres.pool import connect
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import journaled_key
from tests.checkpoints.keepers import Died, Mortal, caller_of, die
from tests.postgres.support import rows, totals
from tests.redis.calls import TENANT


class Journaled:
    """Writes to partitions that are in the journal first; the counter of row r is `post:<r % 7>`.

    Attributes:
        acknowledged: what was committed to the journal.
    """

    def __init__(self, redis: Redis, database: str, partition: int = 0) -> None:
        self._database = database
        self._partition = partition
        self._caller = caller_of(redis, partition)
        self.acknowledged: Counter[str] = Counter()
        self._rows: dict[int, tuple[str, int]] = {}

    def write(self, delta: int = 1) -> int:
        """Commits a row that adds so much; gives its number."""
        with connect(self._database) as conn:
            (row,) = journal.new_ids(conn, 1)
            counter = f"post:{row % 7}"
            batch = Batch(row, self._partition, f"link-{row}", 1, "{}", 1)
            journal.add_batches(conn, [batch], [(row, Increment(TENANT, counter, delta))])
            journal.claim_tokens(conn, [(TokenOf(f"token {row}", 0), row)])
        self.acknowledged[counter] += delta
        self._rows[row] = counter, delta
        return row

    def apply(self, row: int) -> None:
        """Sends a row to Redis under its own token, perhaps once more."""
        counter, delta = self._rows[row]
        self._caller.link = f"link-{row}"
        self._caller.add(counter, delta, sequence=1, row=row)


def rows_of(database: str, table: str = "journal") -> set[int]:
    """The rows that a table of the journal has."""
    return {row for (row,) in rows(database, f"SELECT journal_id FROM tallyboard.{table}")}


def durable(database: str) -> Counter[str]:
    """What Postgres knows of counters: the checkpoint, and the rows of the journal."""
    query = (
        "SELECT counter, sum(part)::bigint FROM ("
        " SELECT counter, value AS part FROM tallyboard.counters"
        " UNION ALL SELECT counter, delta FROM tallyboard.journal_increments"
        " JOIN tallyboard.journal USING (journal_id)) AS parts GROUP BY counter"
    )
    return Counter(dict(rows(database, query)))


@pytest.fixture
def journaled(redis: Redis, database: str) -> Journaled:
    return Journaled(redis, database)


_TABLES = ("journal", "journal_increments", "journal_tokens")


def test_rows_go_with_the_checkpoint_that_has_them(
    journaled: Journaled, redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    applied, waiting = journaled.write(5), journaled.write(6)
    journaled.apply(applied)
    checkpointer.checkpoint_all()
    assert [rows_of(database, table) for table in _TABLES] == [{waiting}] * 3
    assert redis.exists(journaled_key(0)) == 0


def test_rows_of_other_partitions_stay(
    journaled: Journaled, redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    elsewhere = Journaled(redis, database, partition=1)
    here, there = journaled.write(), elsewhere.write()
    journaled.apply(here)
    elsewhere.apply(there)
    checkpointer.checkpoint_partition(0)
    assert (rows_of(database), redis.scard(journaled_key(1))) == ({there}, 1)


def test_a_row_that_is_applied_behind_the_cut_stays(
    journaled: Journaled, redis: Redis, mortal: Mortal, database: str
) -> None:
    first, second = journaled.write(5), journaled.write(6)
    journaled.apply(first)
    mortal.after_commit = lambda: journaled.apply(second)
    mortal.checkpoint_partition(0)
    assert rows_of(database) == {second}
    assert redis.smembers(journaled_key(0)) == {str(second).encode()}


def test_a_row_that_is_applied_between_the_steps_goes(
    journaled: Journaled, mortal: Mortal, database: str
) -> None:
    put_first = [journaled.write(1) for _ in range(7)]
    for row in put_first[:-1]:
        journaled.apply(row)
    mortal.between = lambda: journaled.apply(put_first[-1])
    mortal.checkpoint_partition(0, limit=1)
    assert (rows_of(database), durable(database)) == (set(), journaled.acknowledged)


@pytest.mark.parametrize("moment", ["between", "before_commit"])
def test_rows_stay_when_the_checkpoint_died_before_its_commit(
    journaled: Journaled, redis: Redis, mortal: Mortal, database: str, moment: str
) -> None:
    written = {journaled.write() for _ in range(5)}
    for row in written:
        journaled.apply(row)
    setattr(mortal, moment, die)
    with pytest.raises(Died):
        mortal.checkpoint_partition(0, limit=2)
    assert (rows_of(database), redis.scard(journaled_key(0))) == (written, 5)


def test_numbers_of_rows_that_are_gone_are_forgotten_by_the_next_checkpoint(
    journaled: Journaled, redis: Redis, mortal: Mortal, checkpointer: Checkpointer, database: str
) -> None:
    journaled.apply(journaled.write())
    mortal.after_commit = die
    with pytest.raises(Died):
        mortal.checkpoint_partition(0)
    left_behind = redis.scard(journaled_key(0))
    checkpointer.checkpoint_all()
    assert (left_behind, redis.exists(journaled_key(0)), rows_of(database)) == (1, 0, set())


def test_a_row_that_changed_nothing_goes_too(
    redis: Redis, journaled: Journaled, checkpointer: Checkpointer, database: str
) -> None:
    """Nothing is dirty then, only the row's number is there."""
    row = journaled.write(0)
    caller_of(redis).call(scripts.ADD, {}, row=row)
    checkpointer.checkpoint_all()
    assert (rows_of(database), redis.exists(journaled_key(0))) == (set(), 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_checkpoint_and_the_journal_add_up_to_what_was_acknowledged(
    redis: Redis, mortal: Mortal, journaled: Journaled, database: str, seed: int
) -> None:
    """Rows are applied late, again and again, and between the steps of checkpoints that die."""
    dice = random.Random(seed)
    written: list[int] = []

    def traffic() -> None:
        for _ in range(dice.randrange(4)):
            written.append(journaled.write(dice.randrange(1, 9)))
        for row in dice.sample(written, min(len(written), 5)):
            journaled.apply(row)

    for _ in range(12):
        traffic()
        moments = dict.fromkeys(["between", "before_commit", "after_commit"], traffic)
        if dice.random() < 0.5:
            moments[dice.choice(list(moments))] = die
        for name, action in moments.items():
            setattr(mortal, name, action)
        try:
            mortal.checkpoint_partition(0, limit=dice.randrange(1, 4))
        except Died:
            pass
        assert durable(database) == journaled.acknowledged
    for row in rows_of(database):
        journaled.apply(row)
    for name in ("between", "before_commit", "after_commit"):
        setattr(mortal, name, lambda: None)
    mortal.checkpoint_partition(0)
    assert (rows_of(database), totals(database)) == (set(), dict(journaled.acknowledged))
