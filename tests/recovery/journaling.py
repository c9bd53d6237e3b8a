"""A worker's way to Redis and the journal, and a keeper's way back, in this process, by hand."""

import uuid
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Final, Self

from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.leaderboards.boards import row_of
from tallyboard_server.leaderboards.model import Leaderboard
from tallyboard_server.leaderboards.service import now_micros
from tallyboard_server.postgres.leaderboards import insert
from tallyboard_server.postgres.pool import BoundedPool, connect, open_pool
from tallyboard_server.recovery import overlay
from tallyboard_server.recovery.admission import RedisAdmission
from tallyboard_server.recovery.batches import Scores
from tallyboard_server.recovery.drain import Drainer
from tallyboard_server.recovery.journal import JournalWriter
from tallyboard_server.recovery.plans import ScorePlans
from tallyboard_server.recovery.rebuild import Rebuilder
from tallyboard_server.recovery.service import hand_over, make_durable, window_loader
from tallyboard_server.recovery.standing import PartitionFollower
from tallyboard_server.redis import keys
from tallyboard_server.redis.connection import Connection
from tallyboard_server.redis.durability import Durability
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.nodes import RedisNodes, control_client
from tallyboard_server.redis.operations import Part, Token, Write
from tallyboard_server.redis.scores import Columns, Plan, ScorePart, code_of, parse_record
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.redis.topology import Stay
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tests.postgres.support import settings_for
from tests.redis.nodes import nodes_of
from tests.waiting import wait_for

PARTITIONS: Final = 4
TENANT: Final = "acme"
_PATIENCE: Final = 20.0

#: A member's score: its name, the score, the moment in µs, metadata.
Row = tuple[str, float, int, bytes]


class Desk:
    """A worker without its RPC layer; a context manager.

    Args:
        redis_url, postgres_url: the stores.
        journal_url: another way to Postgres for the journal, such as a proxy.
        settings: of the service.
    """

    def __init__(
        self, redis_url: str, postgres_url: str, *, journal_url: str = "", **settings: Any
    ) -> None:
        values = {"partitions": PARTITIONS, "default_shards": PARTITIONS, "redis_timeout": 0.5}
        values |= settings
        self.settings = settings_for(redis_url, postgres_url, **values)
        self._journal_url = journal_url or postgres_url
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        settings, own = self.settings, self._stack
        opened = open_stores(settings, log=False)
        self.fences = Fences(opened.incarnations)
        pool = own.enter_context(open_pool(settings.postgres_url, max_size=4))
        follower = PartitionFollower(settings.postgres_url, pool, self.fences, settings.partitions)
        own.callback(follower.close)
        nodes = own.enter_context(RedisNodes.of_url(settings.redis_url, settings.partitions))
        self.admission = RedisAdmission(
            lambda node: control_client(node, settings.redis_timeout),
            nodes.topology,
            self.fences,
            follower,
            settings.durability,
            settings.redis_timeout,
        )
        self.store = RedisStore(
            nodes.topology,
            self.fences,
            self.admission,
            timeout=settings.redis_timeout,
            max_pending=settings.max_pending_operations,
            on_refused=lambda part, names: self.wide.take_over(part, names),
            journals_first=settings.journals_first,
        )
        self.journal = JournalWriter(
            self._journal_url,
            pool,
            self.store,
            follower,
            journals_first=settings.journals_first,
            max_pending=settings.max_pending_operations,
            max_rows=settings.max_journal_batches,
        )
        self.store.attach(self.journal)
        own.callback(self.journal.close)
        own.callback(self.store.close)
        durable = None
        if settings.journals_first:
            durable = make_durable(Checkpointer(nodes, pool, settings.partitions))
        self.wide = WideCounters(self.store, any_sharding(settings), 5.0, durable)
        own.callback(self.wide.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expected(self) -> list[str | None]:
        """What the worker expects of each partition: an incarnation, or None if it is closed."""
        return [self.fences.expected(i) for i in range(self.settings.partitions)]

    def submit(self, *parts: "Asked") -> Write:
        """Submits parts of one write, and returns at once."""
        write = Write(lambda: None)
        made = [part(write) for part in parts]
        for part in made:
            write.add(part)
        self.store.submit(made, sum(part.items for part in made))
        return write

    def write(self, *parts: "Asked") -> Write:
        """Submits parts of one write, and waits until it is over, whatever came of it."""
        write = self.submit(*parts)
        wait_for(lambda: write.over, "a write", _PATIENCE)
        return write


#: Makes a part of a write.
Asked = Callable[[Write], Part]


def add(counter: str, delta: int, token: Token | None = None, partition: int = 0) -> Asked:
    """An increment in one partition."""
    key = keys.shard_key(partition, TENANT, counter)
    return lambda write: Part(write, partition, {key: delta}, token, bound=abs(delta))


def add_all(deltas: Mapping[str, int], token: Token | None = None, partition: int = 0) -> Asked:
    """Increments of several counters in one partition, as one part."""
    operations = {keys.shard_key(partition, TENANT, name): d for name, d in deltas.items()}
    bound = max(map(abs, deltas.values()))
    return lambda write: Part(write, partition, operations, token, bound=bound)


def producer(sequence: int, name: str = "ann", partition: int = 0, note: str = "") -> Token:
    """The token of a batch of a stream."""
    return Token("p", keys.producer_key(partition, TENANT, name), sequence, 3600, note)


def request(name: str = "", partition: int = 0, note: str = "") -> Token:
    """The token of a request id."""
    key = keys.request_key(partition, TENANT, name or uuid.uuid4().hex)
    return Token("r", key, "", 600, note)


def scores(plan: Plan, rows: Sequence[Row], token: Token | None = None) -> Asked:
    """Scores for one plan."""
    columns = Columns(
        [row[0] for row in rows],
        array("d", [row[1] for row in rows]),
        array("Q", [code_of(row[2], plan.descending) for row in rows]),
        [row[3] for row in rows] if any(row[3] for row in rows) else [],
    )
    return lambda write: ScorePart(write, plan.partition, {plan: columns}, token)


class Keeper:
    """A keeper whose work is done when a test says so; a context manager.

    Attributes:
        drainer: applies the journal.
        checkpointer: copies to Postgres.
        redis: a client for the test's own questions.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], int] = now_micros,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        settings, own = self._settings, self._stack
        self.redis: Redis = own.enter_context(closing(control_client(settings.redis_url)))
        self.pool: BoundedPool = own.enter_context(open_pool(settings.postgres_url, max_size=6))
        self._fences = Fences({})
        nodes = nodes_of(self.redis, settings.partitions)
        self._topology = nodes.topology
        store = RedisStore(
            self._topology,
            self._fences,
            _AnyLife(),
            timeout=settings.redis_timeout,
            max_pending=settings.max_pending_operations,
            on_refused=lambda part, names: wide.take_over(part, names),
        )
        own.callback(store.close)
        self.checkpointer = Checkpointer(nodes, self.pool, settings.partitions)
        durable = make_durable(self.checkpointer) if settings.journals_first else None
        wide = WideCounters(store, any_sharding(settings), 5.0, durable)
        own.callback(wide.close)
        self.drainer = Drainer(
            lambda node: Connection(node, settings.redis_timeout),
            self._topology,
            self.pool,
            wide,
            durable,
            window_loader(settings, self._topology, self._clock),
            settings.partitions,
            self._clock,
            keeps_tokens=settings.journals_first,
        )
        own.callback(self.drainer.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def close_all(self) -> None:
        """Has all partitions journaled for."""
        with self.pool.connection() as conn:
            overlay.begin(conn, range(self._settings.partitions))

    def drain(self, partitions: Iterable[int] | None = None) -> int:
        """Applies the journal and opens partitions, all by default; gives how many rows."""
        found = self.query("SELECT partition, incarnation FROM tallyboard.partitions")
        self._fences.follow(dict(found), ())
        chosen = range(self._settings.partitions) if partitions is None else partitions
        return sum(self.drainer.drain(partition).batches for partition in chosen)

    def wipe(self) -> None:
        """Redis loses everything; makes it anew from Postgres, with its journal."""
        self.redis.flushall()
        rebuilder = Rebuilder(
            self._topology,
            self._settings.postgres_url,
            self._settings.partitions,
            last_checkpoint=self.checkpointer.checkpoint_fenced,
            drain=hand_over(self.pool),
            clock=self._clock,
        )
        rebuilder.rebuild(range(self._settings.partitions))
        self.drain()

    def query(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """What Postgres answers."""
        with connect(self._settings.postgres_url) as conn:
            cursor = conn.execute(query, arguments)
            return cursor.fetchall() if cursor.description else []

    def create(self, board: Leaderboard) -> Leaderboard:
        """Adds a board, and tells Redis of it."""
        with self.pool.connection() as conn:
            insert(conn, row_of(board))
        self.drainer.publish(board)
        return board

    def plans(self, board: Leaderboard, windows: Sequence[str]) -> list[Plan]:
        """Where scores for these windows of a board go, segment by segment."""
        partitions = self._settings.partitions
        with self.pool.connection() as conn:
            plans = ScorePlans(conn, self._clock)
            found = [
                plans.plan_of(
                    keys.segment_partition(
                        board.tenant, board.leaderboard_id, segment, partitions
                    ),
                    Scores(
                        board.tenant, board.leaderboard_id, board.board_key, tuple(windows),
                        [], [], [], [],
                    ),
                )
                for segment in range(board.segments)
            ]  # fmt: skip
        return [plan for plan in found if plan is not None]

    def run(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Runs commands in Redis."""
        for command in commands:
            self.redis.execute_command(*command)

    def entries(self, board: Leaderboard, window: str) -> dict[str, Row]:
        """What Redis has of a window, by member."""
        found: dict[str, Row] = {}
        for partition in range(self._settings.partitions):
            name = keys.window_keys(partition, board.board_key, window).entries
            for member, data in self.redis.hgetall(name).items():
                if member:
                    record = parse_record(data, board.is_descending)
                    row = (member.decode(), record.score, record.updated_at, record.metadata)
                    found[member.decode()] = row
        return found

    def durable_entries(self, board: Leaderboard, window: str) -> dict[str, Row]:
        """What reads find in Postgres of a window, journal included, by member."""
        found: dict[str, Row] = {}
        for table in ("leaderboard_entries", "journal_entries"):
            rows = self.query(
                "SELECT member, score, tallyboard.micros(updated_at), metadata"
                f" FROM tallyboard.{table} JOIN tallyboard.leaderboard_windows USING (window_id)"
                ' WHERE board_key = %s AND "window" = %s',
                board.board_key,
                window,
            )
            found.update((member, (member, *rest)) for member, *rest in rows)
        return found

    def count(self, counter: str) -> int:
        """A counter's total in Redis."""
        names = [keys.shard_key(p, TENANT, counter) for p in range(self._settings.partitions)]
        names += [keys.wide_key(p, TENANT, counter) for p in range(self._settings.partitions)]
        found = [value for value in self.redis.mget(names) if value is not None]
        plain = [value for value in found if not value.startswith(b"w")]
        return sum(int(value) for value in plain)

    def rejected(self) -> list[str]:
        """Why rows were not applied, or not whole."""
        rows = self.query("SELECT reason FROM tallyboard.journal_rejected ORDER BY rejected_at")
        return [row[0] for row in rows]

    def rows(self) -> int:
        """How many rows the journal has."""
        return int(self.query("SELECT count(*) FROM tallyboard.journal")[0][0])


class _AnyLife:
    def admit(self, connection: Connection, node: str, stays: Sequence[Stay]) -> Durability:
        return Durability(None, lambda reply: True)


def any_sharding(settings: Settings) -> Sharding:
    """Sharding that looks at all shards."""
    return Sharding(settings.partitions, settings.default_shards, {}, (), 1, 0)


def wait_until_open(desk: Desk) -> None:
    """Waits until the worker sends everything to Redis."""
    wait_for(lambda: None not in desk.expected(), "the worker to see that partitions are open")


def wait_until_closed(desk: Desk) -> None:
    """Waits until the worker sends nothing to Redis."""
    wait_for(lambda: set(desk.expected()) == {None}, "the worker to see that partitions are closed")
