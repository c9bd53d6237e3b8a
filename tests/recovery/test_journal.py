"""The journal as workers write it: acknowledged updates count once, whatever becomes of commits."""

import threading
import uuid
from collections.abc import Iterator

import pytest

from tallyboard_server.errors import OutcomeUnknown, Overloaded, TallyboardError, Unavailable
from tallyboard_server.redis import keys
from tallyboard_server.redis.operations import Write
from tests.recovery import stores
from tests.recovery.commits import LossyPostgres
from tests.recovery.journaling import (
    TENANT,
    Desk,
    Keeper,
    add,
    add_all,
    producer,
    request,
    wait_until_closed,
    wait_until_open,
)
from tests.redis.node import RedisNode
from tests.waiting import wait_for

node, database = stores.node, stores.database


@pytest.fixture(scope="module")
def postgres(database: str) -> Iterator[LossyPostgres]:
    with LossyPostgres(database) as lossy:
        yield lossy


@pytest.fixture(scope="module")
def desk(node: RedisNode, database: str, postgres: LossyPostgres) -> Iterator[Desk]:
    """A worker whose journal goes through `postgres`."""
    with Desk(node.url, database, journal_url=postgres.url) as desk:
        yield desk


@pytest.fixture(scope="module")
def second(node: RedisNode, database: str, desk: Desk) -> Iterator[Desk]:
    """Another worker on the same stores."""
    with Desk(node.url, database) as second:
        yield second


@pytest.fixture(scope="module")
def keeper_of_module(desk: Desk) -> Iterator[Keeper]:
    with Keeper(desk.settings) as keeper:
        yield keeper


@pytest.fixture
def keeper(
    keeper_of_module: Keeper, desk: Desk, second: Desk, postgres: LossyPostgres
) -> Iterator[Keeper]:
    """A keeper; all partitions are journaled for, and open again after the test."""
    keeper_of_module.close_all()
    wait_until_closed(desk)
    wait_until_closed(second)
    wait_for(lambda: _error_of(desk, _name()) is None, "the journal to have its connection")
    yield keeper_of_module
    postgres.lose_answers = postgres.lose_commits = 0
    postgres.refuse = False
    postgres.after_loss = lambda: None
    wait_for(lambda: desk.journal.down is None, "the journal")
    keeper_of_module.drain()
    keeper_of_module.query("DELETE FROM tallyboard.journal_rejected")
    wait_until_open(desk)


def _name() -> str:
    return uuid.uuid4().hex


def test_what_is_journaled_says_so_and_counts_when_it_is_drained(
    desk: Desk, keeper: Keeper
) -> None:
    name = _name()
    write = desk.write(add(name, 5))
    before = keeper.count(name)
    keeper.drain()
    assert (write.error, write.journaled, before, keeper.count(name)) == (None, True, 0, 5)


@pytest.mark.parametrize("token", [None, request()], ids=["without a token", "with a token"])
def test_a_commit_whose_answer_is_lost_counts_once(
    desk: Desk, keeper: Keeper, postgres: LossyPostgres, token: None
) -> None:
    name = _name()
    postgres.lose_answers = 1
    write = desk.write(add(name, 5, token))
    keeper.drain()
    assert (write.error, keeper.count(name), postgres.lose_answers) == (None, 5, 0)


def test_a_commit_that_never_arrived_counts_once(
    desk: Desk, keeper: Keeper, postgres: LossyPostgres
) -> None:
    name = _name()
    postgres.lose_commits = 1
    write = desk.write(add(name, 5))
    keeper.drain()
    assert (write.error, keeper.count(name), postgres.lose_commits) == (None, 5, 0)


@pytest.mark.parametrize("checkpoints", [False, True], ids=["drained", "and checkpointed"])
def test_a_commit_whose_answer_is_lost_counts_once_though_the_partition_was_opened_since(
    desk: Desk, keeper: Keeper, postgres: LossyPostgres, checkpoints: bool
) -> None:
    """The row is applied, and perhaps gone, before its writer asks what became of it."""
    name = _name()

    def drain() -> None:
        keeper.drain()
        if checkpoints:
            keeper.checkpointer.checkpoint_all()

    postgres.after_loss = drain
    postgres.lose_answers = 1
    write = desk.write(add(name, 5))
    keeper.drain()
    assert (write.error, keeper.count(name), postgres.lose_answers) == (None, 5, 0)


def test_a_batch_whose_answers_are_all_lost_is_of_unknown_outcome_without_a_token(
    desk: Desk, keeper: Keeper, postgres: LossyPostgres
) -> None:
    name = _name()
    postgres.lose_answers = 1
    postgres.after_loss = lambda: setattr(postgres, "refuse", True)
    write = desk.write(add(name, 5))
    assert isinstance(write.error, OutcomeUnknown)


def test_a_batch_whose_answers_are_all_lost_can_be_sent_again_with_its_token(
    desk: Desk, keeper: Keeper, postgres: LossyPostgres
) -> None:
    name, token = _name(), request()
    postgres.lose_answers = 1
    postgres.after_loss = lambda: setattr(postgres, "refuse", True)
    first = desk.write(add(name, 5, token))
    wait_for(lambda: desk.journal.down is not None, "the journal to be away")
    postgres.refuse = False
    wait_for(lambda: desk.journal.down is None, "the journal")
    again = desk.write(add(name, 5, token))
    keeper.drain()
    assert isinstance(first.error, Unavailable)
    assert (again.error, again.duplicate, keeper.count(name)) == (None, True, 5)


def test_a_batch_that_closes_partitions_is_not_acknowledged_without_postgres(
    desk: Desk, keeper: Keeper, postgres: LossyPostgres, node: RedisNode
) -> None:
    """Another worker might not have seen it, and would go on with the stream past it."""
    name, token = _name(), request()
    keeper.drain()
    wait_until_open(desk)
    node.pause()
    try:
        postgres.cut_behind = 1
        first = desk.write(add(name, 5, token))
        closed = set(desk.expected())
        again = desk.write(add(name, 5, token))
    finally:
        node.resume()
    keeper.drain()
    assert (type(first.error), closed) == (Unavailable, {None})
    assert (again.error, again.duplicate, keeper.count(name)) == (None, True, 5)


def test_what_never_got_to_postgres_is_unavailable_without_a_token(
    desk: Desk, keeper: Keeper, postgres: LossyPostgres
) -> None:
    """Nothing was counted, so that it may be sent again."""
    name = _name()
    postgres.refuse = True
    postgres.cut()
    errors = [_error_of(desk, name) for _ in range(3)]
    assert {type(error) for error in errors} == {Unavailable}
    postgres.refuse = False
    wait_for(lambda: desk.journal.down is None, "the journal")
    keeper.drain()
    assert keeper.count(name) == 0


def test_a_repeat_is_told_so_and_counts_once(desk: Desk, second: Desk, keeper: Keeper) -> None:
    name, token = _name(), request()
    first = desk.write(add(name, 5, token))
    again = [desk.write(add(name, 5, token)), second.write(add(name, 5, token))]
    keeper.drain()
    late = desk.write(add(name, 5, token))
    found = [write.duplicate for write in (first, *again, late)]
    assert (found, keeper.count(name)) == ([False, True, True, True], 5)


def test_repeats_at_two_workers_at_once_count_once(
    desk: Desk, second: Desk, keeper: Keeper
) -> None:
    names, tokens = [_name() for _ in range(40)], [request() for _ in range(40)]
    writes = [
        place.submit(add(name, 5, token))
        for name, token in zip(names, tokens, strict=True)
        for place in (desk, second)
    ]
    wait_for(lambda: all(write.over for write in writes), "all writes")
    keeper.drain()
    assert {write.error for write in writes} == {None}
    assert sum(write.duplicate for write in writes) == len(names)
    assert {keeper.count(name) for name in names} == {5}


def test_a_repeat_of_what_redis_had_counts_once(desk: Desk, keeper: Keeper) -> None:
    """It was applied before the outage, and its answer was lost."""
    name, token = _name(), request()
    keeper.drain()
    wait_until_open(desk)
    first = desk.write(add(name, 5, token))
    keeper.close_all()
    wait_until_closed(desk)
    desk.write(add_all({name: 5, _name(): 3}, token), add(name, 2))
    keeper.drain()
    assert (first.journaled, keeper.count(name)) == (False, 7)


def test_a_stream_that_moves_between_workers_is_applied_in_its_order(
    desk: Desk, second: Desk, keeper: Keeper
) -> None:
    """A producer's ring takes no batch that is 256 behind: order decides what counts."""
    name, sequences = _name(), iter(range(1, 1000))
    for place, batches in ((desk, 3), (second, 400), (desk, 300)):
        writes = [
            place.submit(add(name, 1, producer(next(sequences), name))) for _ in range(batches)
        ]
        wait_for(lambda writes=writes: all(write.over for write in writes), "all batches")  # type: ignore[misc]
        assert {write.error for write in writes} == {None}
    keeper.drain()
    assert (keeper.count(name), keeper.rejected()) == (703, [])


def test_the_rest_of_a_row_with_a_repeat_is_applied_before_what_came_later(
    desk: Desk, keeper: Keeper
) -> None:
    """Its other batches would be too old behind the later ones."""
    name = _name()
    keeper.drain()
    wait_until_open(desk)
    desk.write(add(name, 1, producer(1, name)))
    keeper.close_all()
    wait_until_closed(desk)
    for start in (1, 101, 201, 301, 401):
        # Several in one write are several in one row.
        batches = [add(name, 1, producer(i, name)) for i in range(start, start + 100)]
        desk.write(*batches)
    keeper.drain()
    assert (keeper.count(name), keeper.rejected()) == (500, [])


def test_a_full_journal_refuses_until_rows_are_gone(
    node: RedisNode, database: str, keeper: Keeper
) -> None:
    with Desk(node.url, database, max_journal_batches=1000) as small:
        wait_until_closed(small)
        keeper.query(
            "INSERT INTO tallyboard.journal (partition, link, sequence, batch, updates)"
            """ SELECT 0, 'full', i, '{"script":"add","parts":[]}', 0"""
            " FROM generate_series(1, 1000) AS given (i)"
        )
        wait_for(lambda: _is_refused(small), "the journal to be full", 5.0)
        keeper.drain()
        keeper.checkpointer.checkpoint_all()
        wait_for(lambda: not _is_refused(small), "the journal to have room", 5.0)


def test_a_journal_with_old_rows_is_not_full(
    node: RedisNode, database: str, desk: Desk, keeper: Keeper
) -> None:
    """One that nobody can apply stays, while the numbers go on."""
    desk.write(add(_name(), 1))
    keeper.query(
        "SELECT setval(pg_get_serial_sequence('tallyboard.journal', 'journal_id'),"
        " (SELECT max(journal_id) + 100000 FROM tallyboard.journal))"
    )
    desk.write(add(_name(), 1))
    with Desk(node.url, database, max_journal_batches=1000) as small:
        wait_until_closed(small)
        seen = threading.Event()
        threading.Timer(1.5, seen.set).start()
        while not seen.is_set():
            assert not _is_refused(small)


def _error_of(desk: Desk, name: str) -> TallyboardError | None:
    try:
        return desk.write(add(name, 5)).error
    except TallyboardError as error:
        return error


def _is_refused(desk: Desk) -> bool:
    try:
        desk.write(add("any", 1))
    except Overloaded:
        return True
    return False


def test_what_waits_for_the_journal_is_bounded(
    node: RedisNode, database: str, postgres: LossyPostgres, keeper: Keeper
) -> None:
    """Postgres takes as long as it likes; what is too much is refused at once."""
    with Desk(node.url, database, max_pending_operations=10_000) as small:
        wait_until_closed(small)
        with keeper.pool.connection() as conn:
            conn.execute("LOCK TABLE tallyboard.journal IN ACCESS EXCLUSIVE MODE")
            writes: list[Write] = []
            with pytest.raises(Overloaded):
                _submit_many(small, writes)
        wait_for(lambda: all(write.over for write in writes), "what was taken")
        assert {write.error for write in writes} == {None}


def _submit_many(desk: Desk, writes: list[Write]) -> None:
    """Far more than may wait; `writes` gets what was taken."""
    for _ in range(30):
        writes.append(desk.submit(add_all({_name(): 1 for _ in range(1000)})))


def test_a_repeat_is_told_what_was_out_of_range_the_first_time(
    desk: Desk, second: Desk, keeper: Keeper
) -> None:
    """That is noted with the token; a repeat comes with an empty note."""
    name, key = _name(), keys.shard_key(0, TENANT, "large")
    asked = producer(7, name)
    desk.write(add(name, 5, asked._replace(note=f"\n{key}")))
    again = [place.write(add(name, 5, asked)) for place in (desk, second)]
    assert [write.out_of_range for write in again] == [[key], [key]]
