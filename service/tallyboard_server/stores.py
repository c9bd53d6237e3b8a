"""Opening the two stores: do they belong together, and which partitions can be used.

Any number of instances may open at once; with Postgres there, one does so at a time.
"""

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import structlog
from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError, WatchError

from tallyboard_server.adoption import adopt_definitions, mark_all_dirty
from tallyboard_server.postgres.journal import OPEN
from tallyboard_server.postgres.locks import OPENING, lock_for_session
from tallyboard_server.postgres.migrations import migrate
from tallyboard_server.postgres.partitions import (
    PartitionRow,
    StoreRow,
    insert_partitions,
    mark_opened,
    read_partitions,
    read_rules,
    read_store,
    record_rules,
    record_store,
)
from tallyboard_server.postgres.pool import BoundedConnection, connect
from tallyboard_server.redis.durability import (
    WAITAOF,
    choose_durability,
    missing_replicas,
    setting_of,
)
from tallyboard_server.redis.keys import (
    PARTITION_META,
    incarnation_key,
    version_key,
)
from tallyboard_server.redis.nodes import REDIS_TIMEOUT, RedisNodes
from tallyboard_server.redis.topology import Layout, Topology
from tallyboard_server.redis.urls import address_of, split_url
from tallyboard_server.settings import Settings, mask_url
from tallyboard_server.startup import StartupError

# Seconds that a Redis may take to load its file, and that an instance waits for others to open.
LOADING_TIMEOUT: Final = 60.0
OPENING_TIMEOUT: Final = 30.0
_POLL: Final = 0.05
_SCAN: Final = 1_000
_RULES_ATTEMPTS: Final = 100

Rule = tuple[str, int]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Opened:
    """What a start found.

    `incarnations` are those of the partitions that can be used now, `closed` the others.
    `token_shards` is how many shards a write with a token chooses from, for ever.
    `shard_rules` is every rule ever in force, (prefix, shards) with "" for the default.
    `problems` are sentences for the log.
    """

    incarnations: dict[int, str]
    shard_rules: list[Rule]
    token_shards: int
    closed: list[int]
    postgres_available: bool
    problems: tuple[str, ...] = ()


def open_stores(settings: Settings, *, log: bool = True) -> Opened:
    """Migrates Postgres, agrees on partitions and rules, makes and checks incarnations.

    Args:
        settings: with both URLs filled in.
        log: whether `problems` are logged too.

    Raises:
        StartupError: the service can't run on these stores.
    """
    topology = Topology(settings.redis_url, settings.partitions, REDIS_TIMEOUT)
    with RedisNodes(topology) as nodes:
        try:
            topology.look()
            _check_address(settings, topology.layout)
            there, away = _find_there(nodes, settings.durability)
            if log:
                _warn_of_replicas(nodes, there, settings.durability)
            opened = _open(settings, nodes, there, away)
        except RedisError as error:
            problem = f"Redis at {mask_url(settings.redis_url)} can't be used: {error}."
            opened = _open_without_redis(settings, problem)
    for problem in opened.problems if log else ():
        _log.error(problem)
    return opened


def _check_address(settings: Settings, layout: Layout) -> None:
    if len(split_url(settings.redis_url)) > 1 and not layout.is_cluster:
        raise StartupError(
            "redis_url names several servers, and the first of them that answers is no node of a "
            "cluster; name one server, or nodes of one cluster."
        )


def _warn_of_replicas(nodes: RedisNodes, there: Iterable[str], durability: str) -> None:
    for node in there:
        warning = missing_replicas(nodes.at(node), durability)
        if warning:
            _log.warning(warning, redis=address_of(node))


def _find_there(nodes: RedisNodes, durability: str) -> tuple[dict[str, str], dict[str, RedisError]]:
    """How each node that is there keeps what the durability promises, and what the others said.

    A node that still loads its file is waited for only when there is no other.

    Raises:
        StartupError: a node can't keep it.
        redis.RedisError: no node is there.
    """
    is_one_of_several = len(nodes.topology.layout.nodes) > 1
    there, away = _look_for_nodes(nodes, durability, 0.0 if is_one_of_several else LOADING_TIMEOUT)
    is_loading = any(isinstance(error, BusyLoadingError) for error in away.values())
    if is_one_of_several and is_loading and not there:
        there, away = _look_for_nodes(nodes, durability, LOADING_TIMEOUT)
    if not there:
        raise next(iter(away.values()))
    return there, away


def _look_for_nodes(
    nodes: RedisNodes, durability: str, patience: float
) -> tuple[dict[str, str], dict[str, RedisError]]:
    there: dict[str, str] = {}
    away: dict[str, RedisError] = {}
    for node in nodes.topology.layout.nodes:
        try:
            _wait_until_loaded(nodes.at(node), patience)
            there[node] = choose_durability(nodes.at(node), durability)
        except RedisError as error:
            away[node] = error
    return there, away


def _open_without_redis(settings: Settings, problem: str) -> Opened:
    """What Postgres alone knows: enough to journal writes and to read what is durable.

    Raises:
        StartupError: it isn't enough, or the settings say to refuse writes then.
    """
    if settings.redis_outage == "refuse":
        raise StartupError(problem)
    try:
        migrate(settings.postgres_url)
        with connect(settings.postgres_url, name="tallyboard start") as conn:
            store, rows = read_store(conn), read_partitions(conn)
            rules = read_rules(conn)
    except psycopg.Error as error:
        raise StartupError(
            f"{problem} Postgres at {mask_url(settings.postgres_url)} can't be used either: {error}"
        ) from error
    if store is None or not rows:
        raise StartupError(f"{problem} Postgres holds no partitions yet; start Redis first.")
    _check_partitions("Postgres", store, settings.partitions)
    return Opened(
        {row.partition: row.incarnation for row in rows if row.state == OPEN},
        sorted(rules),
        store.token_shards,
        [row.partition for row in rows if row.state != OPEN],
        True,
        (f"{problem} Writes go to the journal, and reads come from Postgres, until it is back.",),
    )


def _check_partitions(store: str, found: StoreRow | None, partitions: int) -> None:
    if found is not None and found.partitions != partitions:
        raise StartupError(
            f"{store} was made for {found.partitions} partitions, and the setting partitions "
            f"is {partitions}; set it to {found.partitions}, or use other stores."
        )


def _wait_until_loaded(redis: Redis, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            redis.execute_command("PING")
            return
        except BusyLoadingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL)


def _open(
    settings: Settings, nodes: RedisNodes, there: dict[str, str], away: dict[str, RedisError]
) -> Opened:
    rules = [("", settings.default_shards), *settings.shards_by_prefix.items()]
    try:
        migrate(settings.postgres_url)
        with connect(settings.postgres_url, name="tallyboard start") as conn:
            return _Opening(settings.partitions, rules, nodes, there, away).with_postgres(conn)
    except psycopg.errors.LockNotAvailable as error:
        raise StartupError(
            "Another instance has been opening the stores for too long; look at it first."
        ) from error
    except psycopg.OperationalError as error:
        return _Opening(settings.partitions, rules, nodes, there, away).without_postgres(
            f"Postgres at {mask_url(settings.postgres_url)} can't be used: {error}"
        )
    except psycopg.Error as error:
        raise StartupError(
            f"Postgres at {mask_url(settings.postgres_url)} refused what the start needs: {error}"
        ) from error


class _Opening:
    """One go at opening the stores.

    Args:
        there: how each node that is there keeps what is promised.
        away: what the other nodes of a cluster said.
    """

    def __init__(
        self,
        partitions: int,
        rules: list[Rule],
        nodes: RedisNodes,
        there: Mapping[str, str],
        away: Mapping[str, RedisError],
    ) -> None:
        self._partitions = partitions
        self._store = StoreRow(partitions, dict(rules)[""])
        self._rules = rules
        self._nodes = nodes
        self._there = there
        self._away = away
        self._layout = layout = nodes.topology.layout
        self._reached = [p for p in range(partitions) if layout.node_of(p) in there]
        meta = layout.node_of_key(PARTITION_META)
        # Where the number of partitions and the rules are, if its node is there.
        self._meta = nodes.at(meta) if meta in there else None

    def with_postgres(self, conn: BoundedConnection) -> Opened:
        # A lock of the session, because what is made in Postgres has to be committed before
        # Redis may have it. It ends with the connection.
        conn.autocommit = True
        conn.answer_timeout = OPENING_TIMEOUT + 5.0
        conn.execute("SET statement_timeout = 0")
        lock_for_session(conn, OPENING, OPENING_TIMEOUT)
        with conn.transaction():
            in_postgres, in_redis = read_store(conn), self._store_in_redis()
            self._check_count("Postgres", in_postgres)
            self._check_count("Redis", in_redis)
            store = in_postgres or in_redis or self._store
            record_store(conn, store)
            rules = record_rules(conn, [*self._rules, *self._rules_in_redis()])
        self._record_in_redis(rules, store)
        problems = self._settle(conn)
        found, versions = self._incarnations_in_redis(), self._versions_in_redis()
        usable = {
            row.partition: row.incarnation
            for row in read_partitions(conn)
            if row.state == OPEN
            and (
                # Of a node that is away the links find out.
                row.partition not in versions
                or (
                    found.get(row.partition) == row.incarnation
                    and versions[row.partition] >= row.version
                )
            )
        }
        problems += [
            f"Redis at {mask_url(node)} can't be used: {error}. Its partitions wait for it."
            for node, error in self._away.items()
        ]
        problems += self._stopping_together()
        closed = [i for i in range(self._partitions) if i not in usable]
        return Opened(usable, sorted(rules), store.token_shards, closed, True, tuple(problems))

    def without_postgres(self, reason: str) -> Opened:
        reason = reason.strip().rstrip(".")
        found = self._incarnations_in_redis()
        if not found:
            raise StartupError(
                f"{reason}. Redis holds no partitions yet, so there is nothing to go on with; "
                "start Postgres first."
            )
        if self._meta is None:
            raise StartupError(
                f"{reason}. The node of Redis that knows the number of partitions is away too; "
                "start one of them first."
            )
        in_redis = self._store_in_redis()
        self._check_count("Redis", in_redis)
        store = in_redis or self._store
        rules = self._record_in_redis(set(self._rules), store)
        problems = [
            f"{reason}. Checkpoints and lists wait for it; counting goes on with what Redis holds."
        ]
        closed = [i for i in range(self._partitions) if i not in found]
        problems += [
            f"Partition {i} stays closed: Redis doesn't hold it, and Postgres can't be asked."
            for i in closed
        ]
        return Opened(found, sorted(rules), store.token_shards, closed, False, tuple(problems))

    def _check_count(self, store: str, found: StoreRow | None) -> None:
        _check_partitions(store, found, self._partitions)

    def _settle(self, conn: BoundedConnection) -> list[str]:
        """Makes what is new, adopts what Postgres doesn't know, and names what is lost."""
        found = self._incarnations_in_redis()
        rows = {row.partition: row for row in read_partitions(conn)}
        if self._away and len(rows) < self._partitions:
            raise StartupError(
                f"Redis at {', '.join(map(mask_url, self._away))} can't be used, and Postgres "
                "doesn't know all partitions yet; start all nodes first."
            )
        adopted = {i: found[i] for i in found if i not in rows}
        fresh = {
            i: str(uuid.uuid4()) for i in range(self._partitions) if i not in found | rows.keys()
        }
        # A start that ended here before Redis had them: nobody can have counted in them.
        pending = {
            i: row.incarnation for i, row in rows.items() if not row.opened and i in self._reached
        }
        if adopted:
            for node in self._there:
                adopt_definitions(self._nodes.at(node), conn)
            for client, partitions in self._nodes.group(adopted):
                mark_all_dirty(client, partitions)
        with conn.transaction():
            now = self._redis_time()
            epoch = datetime.fromtimestamp(0, UTC)
            if adopted:
                insert_partitions(conn, adopted, opened=True, checkpointed_at=epoch)
            if fresh:
                insert_partitions(conn, fresh, opened=False, checkpointed_at=now)
        if fresh or pending:
            self._create_in_redis(fresh | pending)
            mark_opened(conn, [*fresh, *pending])
        return [
            _lost(row, found.get(i))
            for i, row in rows.items()
            if row.opened and i in self._reached and found.get(i) != row.incarnation
        ]

    def _stopping_together(self) -> list[str]:
        """A sentence for each node of a cluster that the loss of another one stops."""
        if not self._layout.is_cluster:
            return []
        return [
            f"Redis at {mask_url(node)} has cluster-require-full-coverage yes, by which the loss "
            "of one node stops all others; set it to no."
            for node in self._there
            if setting_of(self._nodes.at(node), "cluster-require-full-coverage") == "yes"
        ]

    def _create_in_redis(self, incarnations: Mapping[int, str]) -> None:
        for node, partitions in self._layout.group(incarnations).items():
            is_waited_for = self._there[node] == WAITAOF
            pipeline = self._nodes.at(node).pipeline(transaction=False)
            for i in partitions:
                pipeline.execute_command("SET", incarnation_key(i), incarnations[i], "NX")
            if is_waited_for:
                # Postgres is told next, and must not know more than Redis' disk.
                pipeline.execute_command("WAITAOF", 1, 0, int(REDIS_TIMEOUT * 500))
            synced = pipeline.execute()[-1]
            if is_waited_for and not synced[0]:
                raise StartupError("Redis did not sync its append-only file; look at its disk.")

    def _incarnations_in_redis(self) -> dict[int, str]:
        found = self._nodes.run([("GET", incarnation_key(i)) for i in self._reached])
        return {i: held.decode() for i, held in zip(self._reached, found, strict=True) if held}

    def _versions_in_redis(self) -> dict[int, int]:
        found = self._nodes.run([("GET", version_key(i)) for i in self._reached])
        return {i: int(held or 0) for i, held in zip(self._reached, found, strict=True)}

    def _store_in_redis(self) -> StoreRow | None:
        if self._meta is None:
            return None
        found: Any = self._meta.execute_command(
            "HMGET", PARTITION_META, "partitions", "token_shards"
        )
        return None if None in found else StoreRow(int(found[0]), int(found[1]))

    def _rules_in_redis(self) -> set[Rule]:
        if self._meta is None:
            return set()
        return _parse_rules(self._meta.execute_command("HGET", PARTITION_META, "shard_rules"))

    def _record_in_redis(self, rules: set[Rule], store: StoreRow) -> set[Rule]:
        """Writes the number of partitions and adds the rules; gives all that were ever added."""
        if self._meta is None:
            return rules
        for _ in range(_RULES_ATTEMPTS):
            with self._meta.pipeline() as pipeline:
                pipeline.watch(PARTITION_META)
                known = _parse_rules(
                    pipeline.execute_command("HGET", PARTITION_META, "shard_rules")
                )
                text = json.dumps(sorted(known | rules), ensure_ascii=False)
                pipeline.multi()
                for field, value in store._asdict().items():
                    pipeline.execute_command("HSETNX", PARTITION_META, field, value)
                pipeline.execute_command("HSET", PARTITION_META, "shard_rules", text)
                try:
                    pipeline.execute()
                except WatchError:
                    continue
                return known | rules
        raise StartupError("Too many instances start at once; start this one again.")

    def _redis_time(self) -> datetime:
        seconds, microseconds = self._nodes.at(next(iter(self._there))).time()
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)


def _parse_rules(text: bytes | None) -> set[Rule]:
    return {(prefix, shards) for prefix, shards in json.loads(text or "[]")}


def _lost(row: PartitionRow, found: str | None) -> str:
    if found is None or found.startswith("-") or found in row.earlier:
        return f"Redis lost partition {row.partition}; the keeper rebuilds it from Postgres."
    return (
        f"Partition {row.partition} stays closed: Redis holds data that this Postgres never knew. "
        "Bring back the Redis that belongs to this Postgres, or have the partition made anew with "
        f"`tallyboard-server rebuild {row.partition}`, which deletes what Redis holds of it."
    )
