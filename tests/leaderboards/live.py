"""A worker and a keeper on real stores, with a clock that the tests set: a day takes no time.

A test module makes the fixtures its own with `opened, house = live.opened, live.house`.
"""

import dataclasses
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from redis import Redis

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1 import operations_pb2 as ops
from tallyboard.v1.consistency_pb2 import Consistency
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tallyboard.v1.operations_pb2_grpc import OperationsServiceStub
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.keeper import Keeper
from tallyboard_server.leaderboards.model import WindowKind as WindowKind
from tallyboard_server.postgres.pool import BoundedPool, connect, open_pool
from tallyboard_server.redis.keys import segment_partition, window_keys
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tallyboard_server.worker import Worker
from tests.leaderboards.calls import stamp
from tests.postgres.support import new_database
from tests.redis.nodes import nodes_of

MICROS: Final = 1_000_000
HOUR: Final = 3600 * MICROS
DAY: Final = 24 * HOUR
EXACT: Final = Consistency(exact=True)
PARTITIONS: Final = 8
METHODS: Final = (1, 2, 3)
_REDIS_DATABASE: Final = 7
_TIMEOUT: Final = 30.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def at(text: str, zone: str = "UTC") -> int:
    """The moment of a wall clock time such as `2026-11-23T08:00`, in µs."""
    return (datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)) - _EPOCH) // timedelta(
        microseconds=1
    )


class SetClock:
    """A clock in µs that stands where it is set."""

    def __init__(self) -> None:
        self.now = at("2026-01-01T00:00")

    def __call__(self) -> int:
        return self.now


class Refused(Exception):
    """A call failed with a code (`NOT_FOUND`) and the reason of its ErrorInfo."""

    def __init__(self, code: str, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason


@contextmanager
def refusal(reason: str) -> Iterator[None]:
    """Expects a call to fail for this reason."""
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.reason == reason, caught.value


def _refused(error: grpc.RpcError) -> Refused:
    info = ErrorInfo()
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
    return Refused(error.code().name, info.reason, error.details())


class Site:
    """Calls to one worker. Every failure is `Refused`."""

    def __init__(self, address: str, channel: grpc.Channel) -> None:
        self.address = address
        self.leaderboards = LeaderboardServiceStub(channel)
        self.operations = OperationsServiceStub(channel)

    def call(self, name: str, request: Any, tenant: str) -> Any:
        """A call of either service that has one request and one answer."""
        stub = self.leaderboards if hasattr(self.leaderboards, name) else self.operations
        metadata = (("x-tallyboard-tenant", tenant),)
        try:
            return getattr(stub, name)(request, timeout=_TIMEOUT, metadata=metadata)
        except grpc.RpcError as error:
            raise _refused(error) from error


class House:
    """Stores, a worker and its keeper.

    Attributes:
        clock: of everything in the house.
        redis: a client for the tests' own questions; `nodes` has it too.
        site: calls to the worker.
    """

    def __init__(self, settings: Settings, own: ExitStack) -> None:
        self.clock = SetClock()
        self.settings = settings
        self._own = own
        self.redis: Redis = own.enter_context(closing(control_client(settings.redis_url)))
        self.nodes = nodes_of(self.redis, settings.partitions)
        self._pool: BoundedPool = own.enter_context(open_pool(settings.postgres_url, name="test"))
        self.site = self.new_worker()

    def new_worker(self) -> Site:
        """Another worker on the same stores; it lives as long as the house."""
        settings = dataclasses.replace(self.settings, listen=f"127.0.0.1:{_free_port()}")
        self._own.enter_context(Worker(settings, open_stores(settings), clock=self.clock))
        channel = self._own.enter_context(grpc.insecure_channel(settings.listen))
        return Site(settings.listen, channel)

    def new_keeper(self) -> "LiveKeeper":
        """A keeper that has just started."""
        return LiveKeeper(
            Keeper(self.settings, self.nodes, self._pool, threading.Event(), clock=self.clock)
        )

    def new_board(self, **definition: Any) -> "LiveBoard":
        """A board of a tenant of its own."""
        board = LiveBoard(self, uuid.uuid4().hex, "lives")
        board.create(**definition)
        return board

    def clear(self) -> None:
        """Removes all leaderboards, so that the next test's keeper has nothing to do with them."""
        self.clock.now = at("2026-01-01T00:00")
        with connect(self.settings.postgres_url) as conn:
            conn.execute(
                "TRUNCATE tallyboard.leaderboards, tallyboard.leaderboard_windows,"
                " tallyboard.leaderboard_entries, tallyboard.leaderboard_snapshots,"
                " tallyboard.leaderboard_snapshot_entries, tallyboard.leaderboard_requests"
            )
        keys = [key for key in self.redis.scan_iter(count=1000) if _is_of_boards(key)]
        if keys:
            self.redis.delete(*keys)

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """What a query answers."""
        with connect(self.settings.postgres_url) as conn:
            return conn.execute(query, arguments).fetchall()

    def dump_redis(self) -> dict[bytes, bytes]:
        """Every key and all it holds."""
        return {key: self._value(key) for key in self.redis.scan_iter(count=1000)}

    def _value(self, key: bytes) -> bytes:
        kind = self.redis.execute_command("TYPE", key)
        read = {
            b"string": ("GET", key),
            b"hash": ("HGETALL", key),
            b"set": ("SMEMBERS", key),
            b"zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
        }[kind]
        return b" ".join(_pieces(self.redis.execute_command(*read)))

    def dump_postgres(self) -> dict[str, list[str]]:
        """Every row of every table as text, by table."""
        with connect(self.settings.postgres_url) as conn:
            conn.execute("SET bytea_output = 'escape'")
            tables = conn.execute(
                "SELECT table_name FROM information_schema.tables"
                " WHERE table_schema = 'tallyboard' AND table_type = 'BASE TABLE'"
            ).fetchall()
            return {
                table: [
                    row[0]
                    for row in conn.execute(f"SELECT t::text FROM tallyboard.{table} AS t")  # type: ignore[arg-type]
                ]
                for (table,) in tables
            }

    def found(self, name: str) -> list[str]:
        """Where a name is, in every key and every row."""
        places = [
            f"redis {key!r}"
            for key, value in self.dump_redis().items()
            if name.encode() in key or name.encode() in value
        ]
        for table, rows in self.dump_postgres().items():
            places += [f"postgres {table} {row}" for row in rows if name in row]
        return places


class LiveKeeper:
    """A keeper whose rounds are made by hand."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def checkpoint(self) -> None:
        """What changed goes to Postgres."""
        assert self._keeper.attempt()

    def round(self) -> None:
        """A checkpoint, and all that follows from it."""
        self.checkpoint()
        assert self._keeper.tidy()

    def try_round(self) -> bool:
        """The same; False when a store is away."""
        return self._keeper.attempt() and self._keeper.tidy()


class LiveBoard:
    """One board of one tenant, in short words."""

    def __init__(self, house: House, tenant: str, leaderboard_id: str) -> None:
        self.house = house
        self.tenant = tenant
        self.leaderboard_id = leaderboard_id

    def sibling(self, leaderboard_id: str, **definition: Any) -> "LiveBoard":
        """Another board of the same tenant."""
        board = LiveBoard(self.house, self.tenant, leaderboard_id)
        board.create(**definition)
        return board

    def call(self, name: str, request: Any, site: Site | None = None) -> Any:
        """Any call of the tenant."""
        return (site or self.house.site).call(name, request, self.tenant)

    def create(self, request_id: str = "", site: Site | None = None, **definition: Any) -> Any:
        """Defines it; see `definition_of`."""
        return self.call(
            "CreateLeaderboard",
            pb.CreateLeaderboardRequest(
                leaderboard_id=self.leaderboard_id,
                leaderboard=definition_of(**definition),
                request_id=request_id,
            ),
            site,
        )

    def update(
        self,
        *,
        etag: str = "",
        request_id: str = "",
        mask: Sequence[str] = (),
        site: Site | None = None,
        **definition: Any,
    ) -> Any:
        """Changes the fields of `definition`, those of `mask` too where they become empty."""
        message = definition_of(**definition)
        message.leaderboard_id = self.leaderboard_id
        message.etag = etag
        paths = [*mask, *map(definition_field, definition)]
        request = pb.UpdateLeaderboardRequest(
            leaderboard=message, update_mask=FieldMask(paths=paths), request_id=request_id
        )
        return self.call("UpdateLeaderboard", request, site)

    def definition(self, site: Site | None = None) -> pb.Leaderboard:
        """The definition."""
        request = pb.GetLeaderboardRequest(leaderboard_id=self.leaderboard_id)
        found: pb.Leaderboard = self.call("GetLeaderboard", request, site).leaderboard
        return found

    def delete(self, etag: str = "", request_id: str = "", site: Site | None = None) -> Any:
        """Deletes it."""
        request = pb.DeleteLeaderboardRequest(
            leaderboard_id=self.leaderboard_id, etag=etag, request_id=request_id
        )
        return self.call("DeleteLeaderboard", request, site)

    def submission(
        self, member: str, score: float, moment: int | None = None, metadata: bytes = b""
    ) -> pb.Submission:
        """A submission as a message."""
        message = pb.Submission(
            leaderboard_id=self.leaderboard_id, member=member, score=score, metadata=metadata
        )
        if moment is not None:
            message.occurred_at.CopyFrom(stamp(moment))
        return message

    def submit(
        self,
        member: str,
        score: float,
        moment: int | None = None,
        metadata: bytes = b"",
        site: Site | None = None,
    ) -> list[str]:
        """Submits a score; gives the ids of the windows that took it."""
        message = self.submission(member, score, moment, metadata)
        request = pb.SubmitScoreRequest(submission=message)
        return [result.window for result in self.call("SubmitScore", request, site).results]

    def submit_all(self, rows: Iterable[tuple[Any, ...]], *, is_import: bool = False) -> list[str]:
        """Submits many, as `submit` has them; gives the reasons of those that did not count."""
        request = pb.BatchSubmitScoresRequest(
            submissions=[self.submission(*row) for row in rows], **{"import": is_import}
        )
        reasons = []
        for failure in self.call("BatchSubmitScores", request).failures:
            info = ErrorInfo()
            assert failure.status.details[0].Unpack(info)
            reasons.append(info.reason)
        return reasons

    def imported(self, *rows: tuple[Any, ...]) -> list[str]:
        """The same, as an import."""
        return self.submit_all(rows, is_import=True)

    def page(self, window: str, site: Site | None = None, **fields: Any) -> pb.ListEntriesResponse:
        """A page of the ranking, read now."""
        request = pb.ListEntriesRequest(
            leaderboard_id=self.leaderboard_id, window=window, consistency=EXACT, **fields
        )
        answer: pb.ListEntriesResponse = self.call("ListEntries", request, site)
        return answer

    def scores(self, window: str, site: Site | None = None) -> dict[str, float]:
        """The best 100 entries: member and score, best first."""
        entries = self.page(window, site).entries
        assert [entry.rank for entry in entries] == list(range(1, len(entries) + 1))
        return {entry.member: entry.score for entry in entries}

    def get(self, window: str, member: str) -> pb.GetEntryResponse:
        """One member's entry."""
        request = pb.GetEntryRequest(
            leaderboard_id=self.leaderboard_id, window=window, member=member, consistency=EXACT
        )
        answer: pb.GetEntryResponse = self.call("GetEntry", request)
        return answer

    def windows(self, **fields: Any) -> list[tuple[str, str, int]]:
        """The windows: id, state and number of entries."""
        request = pb.ListWindowsRequest(leaderboard_id=self.leaderboard_id, **fields)
        return [_standing(window) for window in self.call("ListWindows", request).windows]

    def paged_windows(self, size: int, **fields: Any) -> list[tuple[str, str, int]]:
        """The same, page by page."""
        found: list[tuple[str, str, int]] = []
        token = ""
        while True:
            request = pb.ListWindowsRequest(
                leaderboard_id=self.leaderboard_id, page_size=size, page_token=token, **fields
            )
            answer = self.call("ListWindows", request)
            assert len(answer.windows) <= size
            found += [_standing(window) for window in answer.windows]
            token = answer.next_page_token
            if not token:
                return found

    def remove(self, member: str, window: str = "") -> tuple[int, int]:
        """DeleteEntry: how many went from live windows, and from archives."""
        request = pb.DeleteEntryRequest(
            leaderboard_id=self.leaderboard_id, member=member, window=window
        )
        answer = self.call("DeleteEntry", request)
        return answer.deleted_entries, answer.deleted_archived_entries

    def erase(self, member: str) -> tuple[int, int, int]:
        """EraseMember: boards, entries of live windows, entries of archives and snapshots."""
        answer = self.call("EraseMember", pb.EraseMemberRequest(member=member))
        return answer.leaderboards, answer.deleted_entries, answer.deleted_archived_entries

    def snapshots(self, **fields: Any) -> list[ops.Snapshot]:
        """Its snapshots."""
        request = ops.ListSnapshotsRequest(leaderboard_id=self.leaderboard_id, **fields)
        return list(self.call("ListSnapshots", request).snapshots)

    @property
    def key(self) -> str:
        """Its board_key."""
        ((key,),) = self.house.rows(
            "SELECT board_key FROM tallyboard.leaderboards"
            " WHERE tenant = %s AND leaderboard_id = %s AND deleted_at IS NULL",
            self.tenant,
            self.leaderboard_id,
        )
        return str(key)

    @property
    def partitions(self) -> list[int]:
        """Where its segments are."""
        segments = self.definition().segments
        return [
            segment_partition(self.tenant, self.leaderboard_id, i, PARTITIONS)
            for i in range(segments)
        ]

    def lifetimes(self, window: str) -> list[int]:
        """The TTLs of the ranking and the entries in every segment: -2 none, -1 for good."""
        keys = [window_keys(p, self.key, window) for p in self.partitions]
        return [self.house.redis.ttl(key) for one in keys for key in (one.ranking, one.entries)]

    def evict(self, window: str) -> None:
        """Ends the time of a window in Redis, which must have been given one."""
        for partition in self.partitions:
            keys = window_keys(partition, self.key, window)
            for key in (keys.entries, keys.ranking):
                assert self.house.redis.ttl(key) != -1, "the window has no time to end"
            self.house.redis.delete(*keys)

    def answers(self, window: str, members: Sequence[str], levels: Sequence[float]) -> list[str]:
        """What every read says of a window, without when and from where it says so."""
        return [_timeless(self.call(*read)) for read in self._reads(window, members, levels)]

    def sources(self, window: str, members: Sequence[str], levels: Sequence[float]) -> set[int]:
        """Where these reads come from."""
        return {self.call(*read).source for read in self._reads(window, members, levels)}

    def _reads(
        self, window: str, members: Sequence[str], levels: Sequence[float]
    ) -> Iterator[tuple[str, Any]]:
        """Reads of every kind and method; pages follow their tokens."""
        shared: dict[str, Any] = {
            "leaderboard_id": self.leaderboard_id,
            "window": window,
            "consistency": EXACT,
        }
        percentiles = [0, 12.5, 50, 99, 100]
        yield (
            "GetLeaderboardStats",
            pb.GetLeaderboardStatsRequest(percentiles=percentiles, **shared),
        )
        for method in METHODS:
            shared["rank_method"] = method
            yield "GetEntry", pb.GetEntryRequest(member=members[0], **shared)
            for relative in (False, True):
                yield (
                    "BatchGetEntries",
                    pb.BatchGetEntriesRequest(
                        members=[*members, "nobody"], relative_ranks=relative, **shared
                    ),
                )
            for center in ({"member": members[0]}, {"member": members[-1]}):
                yield (
                    "ListEntriesAround",
                    pb.ListEntriesAroundRequest(neighbors=2, **center, **shared),
                )
            for score in levels:
                yield (
                    "ListEntriesAround",
                    pb.ListEntriesAroundRequest(neighbors=2, score=score, **shared),
                )
            for reverse in (False, True):
                yield from self._paged("ListEntries", pb.ListEntriesRequest, reverse, shared)
                yield (
                    "ListEntries",
                    pb.ListEntriesRequest(skip=2, page_size=2, reverse=reverse, **shared),
                )
                bounds = {"from_score": levels[0], "to_score": levels[-1]}
                for chosen in ({}, {"from_score": levels[0]}, bounds):
                    yield from self._paged(
                        "ListEntriesByScore",
                        pb.ListEntriesByScoreRequest,
                        reverse,
                        shared | chosen,
                    )

    def _paged(
        self, name: str, request: Any, reverse: bool, fields: dict[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        token = ""
        while True:
            page = request(page_size=3, page_token=token, reverse=reverse, **fields)
            yield name, page
            token = self.call(name, page).next_page_token
            if not token:
                return


def definition_of(**fields: Any) -> pb.Leaderboard:
    """A definition in short words.

    Kinds as `windows="DAILY WEEKLY"`, `order`, `policy`, `tie` as in the contract, `zone`,
    `offset` and `grace` in seconds, `retention` as seconds by kind, `seasons` as moments by name;
    everything else as in the contract.
    """
    made = pb.Leaderboard()
    for name, value in fields.items():
        if name == "windows":
            made.windows.extend(f"WINDOW_KIND_{kind}" for kind in value.split())
        elif name in ("order", "policy", "tie"):
            field, prefix = _ENUMERATIONS[name]
            setattr(made, field, f"{prefix}_{value}")
        elif name == "zone":
            made.time_zone = value
        elif name in ("offset", "grace"):
            getattr(made, _NAMES[name]).CopyFrom(Duration(seconds=value))
        elif name == "retention":
            for kind, seconds in value.items():
                made.retention.add(kind=f"WINDOW_KIND_{kind}", duration=Duration(seconds=seconds))
        elif name == "seasons":
            for season, (start, end) in value.items():
                made.seasons.add(name=season, starts_at=stamp(start), ends_at=stamp(end))
        elif name == "attributes":
            made.attributes.update(value)
        else:
            setattr(made, name, value)
    return made


_ENUMERATIONS: Final = {
    "order": ("sort_order", "SORT_ORDER"),
    "policy": ("update_policy", "UPDATE_POLICY"),
    "tie": ("tie_break", "TIE_BREAK"),
}
_NAMES: Final = {
    "order": "sort_order",
    "policy": "update_policy",
    "tie": "tie_break",
    "zone": "time_zone",
    "offset": "reset_offset",
    "grace": "late_grace",
}


def _standing(window: pb.Window) -> tuple[str, str, int]:
    state = pb.WindowState.Name(window.state).removeprefix("WINDOW_STATE_")
    return window.window, state, window.entry_count


def definition_field(name: str) -> str:
    """The contract's name of a field in short words."""
    return _NAMES.get(name, name)


def _is_of_boards(key: bytes) -> bool:
    return key.partition(b"}:")[2][:1] in b"bgozhystYdfF"


def _timeless(answer: Any) -> str:
    answer.ClearField("as_of")
    answer.ClearField("source")
    return str(answer)


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from _pieces(list(value.items()))
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from _pieces(one)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def open_house(redis_url: str, postgres_url: str) -> Iterator[House]:
    """A house on these stores."""
    settings = dataclasses.replace(
        Settings(),
        redis_url=redis_url,
        postgres_url=postgres_url,
        partitions=PARTITIONS,
        durability="applied",
        archive_quiet=0.0,
    )
    with ExitStack() as own:
        yield House(settings, own)


@pytest.fixture(scope="module")
def opened(redis_server: EmbeddedRedis, postgres_server: EmbeddedPostgres) -> Iterator[House]:
    """A house for one module, on databases of its own."""
    url = f"{redis_server.url}?db={_REDIS_DATABASE}"
    with closing(control_client(url)) as redis:
        redis.flushdb()
        with new_database(postgres_server) as database, open_house(url, database) as house:
            yield house
        redis.flushdb()


@pytest.fixture
def house(opened: House) -> House:
    """The same without the boards of other tests."""
    opened.clear()
    return opened
