"""Reads every window of every board page by page, and waits until those that ended are archived."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import count, zip_longest
from typing import Final, NamedTuple

import grpc

from tallyboard import open_channel
from tallyboard.v1 import consistency_pb2
from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tallyboard_server.redis.nodes import control_client
from tests.demo.standings import ALL_TIME, Entry, Standings
from tests.demo.submit import metadata_of

_PAGE: Final = 1_000
_TIMEOUT: Final = 60.0
_TICK: Final = 0.25


class Difference(NamedTuple):
    """A place in a ranking that is not what it should be; None where there is none."""

    board: str
    window: str
    expected: Entry | None
    found: Entry | None


class Read(NamedTuple):
    """A window as it was read: from Postgres or, if it `is_live`, from Redis."""

    board: str
    window: str
    is_live: bool
    entries: int
    differences: list[Difference]


def compare(
    target: str,
    tenant: str,
    standings: Standings,
    connections: int,
    progress: Callable[[int], object],
) -> list[Read]:
    """Read every window, also those that nobody expects, and lay it beside what is expected.

    Args:
        progress: called with the number of entries read so far.

    Raises:
        grpc.RpcError: a read failed.
    """
    reads: list[Read] = []
    with ExitStack() as stack:
        channels = [stack.enter_context(open_channel(target)) for _ in range(connections)]
        listed = _listed(channels[0], tenant, standings)
        expected = ((board, window) for board, held in standings.items() for window in held)
        pool = stack.enter_context(ThreadPoolExecutor(connections, "reader"))

        def read(index: int, place: tuple[str, str]) -> Read:
            return _read(channels[index % connections], tenant, *place, standings)

        for done in pool.map(read, count(), sorted({*expected, *listed})):
            reads.append(done)
            progress(sum(read.entries for read in reads))
    return reads


def wait_until_archived(
    channel: grpc.Channel,
    tenant: str,
    standings: Standings,
    progress: Callable[[int], object],
    timeout: float,
) -> bool:
    """Wait until the service has archived all windows but those of all time.

    Args:
        progress: called a few times a second with the number of windows that are.

    Returns:
        False when `timeout` seconds were not enough.

    Raises:
        grpc.RpcError: the service could not list them.
    """
    deadline = time.monotonic() + timeout
    wanted = set(ended(standings))
    while time.monotonic() < deadline:
        states = _listed(channel, tenant, standings)
        archived = sum(states.get(place) == pb.WINDOW_STATE_ARCHIVED for place in wanted)
        progress(archived)
        if archived == len(wanted):
            return True
        time.sleep(_TICK)
    return False


def ended(standings: Standings) -> Iterator[tuple[str, str]]:
    """The boards and windows that have an end; all of them lie in the past."""
    for board, held in standings.items():
        yield from ((board, window) for window in held if window != ALL_TIME)


def forget_archived(redis_url: str) -> None:
    """Let the day pass for which Redis keeps what is archived."""
    with closing(control_client(redis_url)) as redis:
        for key in redis.scan_iter("{tb:*}:[hz]:*", count=_PAGE):
            if redis.ttl(key) >= 0:
                redis.unlink(key)


def _listed(
    channel: grpc.Channel, tenant: str, boards: Iterable[str]
) -> "dict[tuple[str, str], pb.WindowState.ValueType]":
    """The state of each window that the service has, by board and window."""
    list_windows = LeaderboardServiceStub(channel).ListWindows
    found: dict[tuple[str, str], pb.WindowState.ValueType] = {}
    for board in boards:
        request = pb.ListWindowsRequest(leaderboard_id=board, page_size=_PAGE)
        while True:
            answer = list_windows(
                request, metadata=metadata_of(tenant), timeout=_TIMEOUT, wait_for_ready=True
            )
            found |= {(board, window.window): window.state for window in answer.windows}
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
    return found


def _read(
    channel: grpc.Channel, tenant: str, board: str, window: str, standings: Standings
) -> Read:
    found: list[Entry] = []
    is_live = False
    for page in _pages(channel, tenant, board, window):
        is_live |= page.source != consistency_pb2.SOURCE_DURABLE
        found += map(_entry, page.entries)
    expected = standings.get(board, {}).get(window, [])
    differences = []
    if found != expected:
        differences = [
            Difference(board, window, wanted, given)
            for wanted, given in zip_longest(expected, found)
            if wanted != given
        ]
    return Read(board, window, is_live, len(found), differences)


def _pages(
    channel: grpc.Channel, tenant: str, board: str, window: str
) -> Iterator[pb.ListEntriesResponse]:
    list_entries = LeaderboardServiceStub(channel).ListEntries
    request = pb.ListEntriesRequest(
        leaderboard_id=board,
        window=window,
        page_size=_PAGE,
        consistency=consistency_pb2.Consistency(exact=True),
    )
    while True:
        try:
            answer = list_entries(
                request, metadata=metadata_of(tenant), timeout=_TIMEOUT, wait_for_ready=True
            )
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return  # a window that is not there has no entries, which is a difference
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def _entry(entry: pb.Entry) -> Entry:
    moment = entry.updated_at
    micros, rest = divmod(moment.nanos, 1_000)
    assert rest == 0, "moments are whole microseconds"
    return Entry(
        entry.rank, entry.member, entry.score, entry.metadata, moment.seconds * 1_000_000 + micros
    )
