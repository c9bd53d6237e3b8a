"""What a worker journaled and never sent, and others repeated: reads without Redis find it once."""

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tallyboard_server.errors import SequenceTooOld
from tallyboard_server.leaderboards.model import Leaderboard, UpdatePolicy, WindowKind
from tallyboard_server.postgres.durable import read_counts
from tallyboard_server.redis import keys
from tallyboard_server.redis.calls import PRODUCER_RING
from tallyboard_server.redis.operations import Token, Write
from tallyboard_server.redis.scores import Plan
from tests.checkpoints.keepers import running
from tests.recovery import stores
from tests.recovery.commits import LossyPostgres
from tests.recovery.journaling import (
    TENANT,
    Asked,
    Desk,
    Keeper,
    Row,
    add,
    producer,
    request,
    scores,
    wait_until_closed,
    wait_until_open,
)
from tests.redis.node import RedisNode
from tests.waiting import wait_for

node, database = stores.node, stores.database

_NOON: Final = 1_795_435_200_000_000
_TOKENS: Final[list[Callable[[], Token]]] = [request, lambda: producer(1, _name())]
_IDS: Final = ["request", "producer"]


class Stopper:
    """A worker that can be stopped between its commit to the journal and Redis.

    Args:
        desk: the worker.
        way: its way to the journal.
    """

    def __init__(self, desk: Desk, way: LossyPostgres) -> None:
        self.desk = desk
        self._way = way

    def commit(self, *parts: Asked) -> None:
        """Writes parts of one write to the journal, and goes no further."""
        journal, lost = self.desk.journal, self._way.lost
        self._way.lose_answers, self._way.refuse = 1, True
        write = self.desk.write(*parts)
        assert (self._way.lost, _ok(write)) == (lost + 1, False)
        wait_for(lambda: journal.down is not None, "the journal to be away")
        self._way.refuse = False
        wait_for(lambda: journal.down is None, "the journal to be there again")


@pytest.fixture(scope="module")
def desk(node: RedisNode, database: str) -> Iterator[Desk]:
    """The worker that repeats."""
    with Desk(node.url, database, durability="journaled") as desk:
        desk.write(add(_name(), 1))  # the link finds out which life of Redis it is
        yield desk


@pytest.fixture(scope="module")
def stopper(node: RedisNode, database: str) -> Iterator[Stopper]:
    """The worker that is stopped."""
    with (
        LossyPostgres(database) as way,
        Desk(node.url, database, journal_url=way.url, durability="journaled") as desk,
    ):
        desk.write(add(_name(), 1))
        yield Stopper(desk, way)


@pytest.fixture(scope="module")
def keeper_of_module(desk: Desk, stopper: Stopper) -> Iterator[Keeper]:
    with Keeper(desk.settings) as keeper:
        yield keeper


@pytest.fixture
def keeper(keeper_of_module: Keeper, desk: Desk, stopper: Stopper) -> Keeper:
    """A keeper; all partitions are open, and the journal is empty."""
    _close(keeper_of_module, desk, stopper.desk)
    keeper_of_module.drain()
    keeper_of_module.checkpointer.checkpoint_all()
    for one in (desk, stopper.desk):
        wait_until_open(one)
    assert keeper_of_module.rows() == 0
    return keeper_of_module


def _name() -> str:
    return uuid.uuid4().hex


def _close(keeper: Keeper, *desks: Desk) -> None:
    keeper.close_all()
    for desk in desks:
        wait_until_closed(desk)


def _counter(asked: Asked) -> str:
    """The counter that a part adds to."""
    (key,) = asked(Write(lambda: None)).operations
    return keys.parse_counter_key(key.encode()).counter


def _durable(keeper: Keeper, *names: str) -> list[int]:
    """What reads without Redis find."""
    with keeper.pool.connection() as conn:
        found = read_counts(conn, TENANT, names)
    return [found[name].value for name in names]


def _drain(keeper: Keeper, *desks: Desk) -> None:
    _close(keeper, *desks)
    keeper.drain()


def _board(keeper: Keeper) -> tuple[Leaderboard, Plan]:
    name = _name()
    board = Leaderboard(
        TENANT, name, board_key=name[:16], update_policy=UpdatePolicy.SUM,
        windows=(WindowKind.ALL_TIME,),
    )  # fmt: skip
    (plan,) = keeper.plans(keeper.create(board), ["all"])
    return board, plan


def _row(member: str, score: float) -> Row:
    return member, score, _NOON, b""


def _sums(found: dict[str, Row]) -> dict[str, float]:
    return {member: row[1] for member, row in found.items()}


def _ok(write: Write) -> bool:
    return write.error is None


@pytest.mark.parametrize("token_of", _TOKENS, ids=_IDS)
def test_a_count_is_right_when_a_checkpoint_has_the_repeat_alone(
    desk: Desk, stopper: Stopper, keeper: Keeper, token_of: Callable[[], Token]
) -> None:
    """What else is in the row of the stopped worker counts on."""
    name, other, third, token = _name(), _name(), _name(), token_of()
    stopper.commit(
        add(name, 5, token), add(name, 100), add(other, 7, request()), add(third, 3, request())
    )
    before = _durable(keeper, name, other, third)
    assert _ok(desk.write(add(name, 5, token)))
    repeated = _durable(keeper, name, other, third)
    keeper.checkpointer.checkpoint_all()
    checkpointed = _durable(keeper, name, other, third)
    assert (keeper.rows(), keeper.count(name)) == (1, 5)
    assert [before, repeated, checkpointed] == [[105, 7, 3]] * 3
    _drain(keeper, desk, stopper.desk)
    drained = _durable(keeper, name, other, third)
    keeper.checkpointer.checkpoint_all()
    assert [drained, _durable(keeper, name, other, third)] == [[105, 7, 3]] * 2
    assert [keeper.count(name), keeper.count(other), keeper.count(third)] == [105, 7, 3]


def test_a_sum_is_right_when_a_checkpoint_has_the_repeat_alone(
    desk: Desk, stopper: Stopper, keeper: Keeper
) -> None:
    token = request()
    board, plan = _board(keeper)
    stopper.commit(scores(plan, [_row("ann", 5.0)], token), scores(plan, [_row("bob", 7.0)]))
    assert _ok(desk.write(scores(plan, [_row("ann", 5.0)], token)))
    keeper.checkpointer.checkpoint_all()
    assert _sums(keeper.entries(board, "all")) == {"ann": 5.0}
    _close(keeper, desk, stopper.desk)
    closed = _sums(keeper.durable_entries(board, "all"))
    keeper.drain()
    keeper.checkpointer.checkpoint_all()
    found = [closed, *(_sums(f(board, "all")) for f in (keeper.entries, keeper.durable_entries))]
    assert found == [{"ann": 5.0, "bob": 7.0}] * 3


def test_it_counts_once_though_it_is_repeated_again_and_again(
    desk: Desk, stopper: Stopper, keeper: Keeper
) -> None:
    name, token = _name(), request()
    stopper.commit(add(name, 5, token))
    found = []
    for _ in range(3):
        assert _ok(desk.write(add(name, 5, token)))
        found += _durable(keeper, name)
        keeper.checkpointer.checkpoint_all()
        stopper.commit(add(name, 5, token))
        found += _durable(keeper, name)
    assert (found, keeper.rows()) == ([5] * 6, 4)
    keeper.wipe()
    keeper.checkpointer.checkpoint_all()
    assert (keeper.count(name), _durable(keeper, name), keeper.rows()) == (5, [5], 0)


def test_what_is_journaled_when_its_stream_is_far_ahead_counts_once(
    desk: Desk, stopper: Stopper, keeper: Keeper
) -> None:
    """The worker was stopped before its commit, and went on when the repeat was checkpointed."""
    name, stream = _name(), _name()
    for sequence in (1, 1 + PRODUCER_RING):
        assert _ok(desk.write(add(name, 5, producer(sequence, stream))))
    keeper.checkpointer.checkpoint_all()
    stopper.commit(add(name, 5, producer(1, stream)))
    committed = _durable(keeper, name)
    _drain(keeper, desk, stopper.desk)
    assert (committed, keeper.count(name)) == ([10], 10)


@pytest.mark.parametrize("before", [0, 2, 4], ids="{} gaps before its commit".format)
def test_what_its_ring_has_forgotten_counts_once(
    desk: Desk, stopper: Stopper, keeper: Keeper, before: int
) -> None:
    """The worker was stopped before its commit; now Redis can't tell about its row any more."""
    name, stream = _name(), _name()
    later = [1 + gap * 2 * PRODUCER_RING for gap in range(5)]
    for sequence in later[: before + 1]:
        assert _ok(desk.write(add(name, 5, producer(sequence, stream))))
    keeper.checkpointer.checkpoint_all()
    stopper.commit(add(name, 5, producer(1, stream)))
    for sequence in later[before + 1 :]:
        assert _ok(desk.write(add(name, 5, producer(sequence, stream))))
    _drain(keeper, desk, stopper.desk)
    assert (keeper.count(name), keeper.rejected()) == (25, [])


def test_what_nobody_can_tell_about_is_not_journaled_for_later(desk: Desk, keeper: Keeper) -> None:
    """It may have counted, so its caller is told what Redis would say."""
    name, stream = _name(), _name()
    for gap in range(5):
        assert _ok(desk.write(add(name, 5, producer(1 + gap * 2 * PRODUCER_RING, stream))))
    keeper.checkpointer.checkpoint_all()
    _close(keeper, desk)
    write = desk.write(add(name, 5, producer(1, stream)))
    journaled = _durable(keeper, name)
    keeper.drain()
    assert isinstance(write.error, SequenceTooOld)
    assert (journaled, keeper.count(name)) == ([25], 25)


def test_reads_find_it_once_while_it_is_repeated_and_checkpointed(
    desk: Desk, stopper: Stopper, keeper: Keeper
) -> None:
    """Two keepers checkpoint, and the rows of the stopped worker lose their parts one by one."""
    asked = [add(_name(), 1, request(partition=i % 4), i % 4) for i in range(100)]
    names = [_counter(part) for part in asked]
    stopper.commit(*asked)

    def read() -> None:
        assert _durable(keeper, *names) == [1] * len(names)

    with running(read, *[keeper.checkpointer.checkpoint_all] * 2):
        for part in asked:
            assert _ok(desk.write(part))
            assert _ok(desk.write(part, add(_name(), 1)))
    _drain(keeper, desk, stopper.desk)
    read()
    assert [keeper.count(name) for name in names] == [1] * len(names)


@pytest.mark.parametrize("seed", range(3))
def test_reads_find_it_once_in_whatever_order_it_happens(
    desk: Desk, stopper: Stopper, keeper: Keeper, seed: int
) -> None:
    dice = random.Random(seed)
    asked = [add(_name(), 1 + i, request()) for i in range(12)]
    names = [_counter(part) for part in asked]
    given: set[int] = set()

    def some() -> list[Asked]:
        chosen = dice.sample(range(len(asked)), dice.randrange(1, 6))
        given.update(chosen)
        return [asked[i] for i in chosen]

    def drain() -> None:
        _drain(keeper, desk, stopper.desk)
        for one in (desk, stopper.desk):
            wait_until_open(one)

    actions = [
        lambda: stopper.commit(*some()),
        lambda: desk.write(*some()),
        lambda: stopper.desk.write(*some()),
        keeper.checkpointer.checkpoint_all,
        drain,
    ]
    for _ in range(25):
        dice.choices(actions, [3, 6, 3, 6, 1])[0]()
        expected = [1 + i if i in given else 0 for i in range(len(asked))]
        assert _durable(keeper, *names) == expected
    keeper.wipe()
    assert [keeper.count(name) for name in names] == _durable(keeper, *names) == expected


def test_a_repeat_is_none_of_a_row_that_loses_other_parts(
    desk: Desk, stopper: Stopper, keeper: Keeper
) -> None:
    """It shared its row with what a shard could not hold."""
    name, wide, token = _name(), _name(), request()
    most = 1 << 52
    for delta in (most, most, most, 1 - most, -most, -most):
        assert _ok(desk.write(add(wide, delta)))
    keeper.checkpointer.checkpoint_all()
    stopper.commit(add(name, 5, token))
    assert _ok(desk.write(add(name, 5, token), add(wide, 2)))
    assert _durable(keeper, name, wide) == [5, 3]
    keeper.checkpointer.checkpoint_all()
    assert _durable(keeper, name, wide) == [5, 3]


def test_a_repeat_that_redis_never_answered_is_seen_once(
    desk: Desk, stopper: Stopper, keeper: Keeper, node: RedisNode
) -> None:
    """Its row was committed when its partition had just been closed."""
    token = request()
    board, plan = _board(keeper)
    stopper.commit(scores(plan, [_row("ann", 5.0)], token))
    node.pause()
    try:
        write = desk.submit(scores(plan, [_row("ann", 5.0)], token))
        wait_for(lambda: keeper.rows() == 2, "the row of the repeat")
        keeper.close_all()
        keeper.query(
            "UPDATE tallyboard.journal SET shown = false"
            " WHERE journal_id = (SELECT max(journal_id) FROM tallyboard.journal)"
        )
        wait_for(lambda: write.over, "the repeat")
    finally:
        node.resume()
    assert _ok(write)
    assert _sums(keeper.durable_entries(board, "all")) == {"ann": 5.0}
