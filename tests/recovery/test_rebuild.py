"""A rebuild gives back every key: counters and boards of all kinds, windows as they were."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
import pytest

from tallyboard.v1 import counters_pb2 as pb
from tallyboard.v1.consistency_pb2 import SOURCE_DURABLE, SOURCE_LIVE
from tallyboard.v1.counters_pb2_grpc import CounterServiceStub
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.postgres.entries import archive_window, close_window, find_window
from tallyboard_server.postgres.leaderboards import find_by_keys
from tallyboard_server.postgres.pool import connect
from tallyboard_server.recovery.boards import BoardLoader
from tallyboard_server.recovery.rebuild import Rebuilder, Rebuilt
from tallyboard_server.redis import windows
from tallyboard_server.redis.keys import incarnation_key, kind_of_key, window_keys
from tallyboard_server.redis.pipe import Pipe
from tests.leaderboards import live
from tests.leaderboards.live import DAY, EXACT, HOUR, PARTITIONS, House, LiveBoard, Site, at
from tests.recovery.rebuilding import LastCheckpoint, lifetimes, picture

opened, house = live.opened, live.house

NOON = at("2026-03-10T12:00")
TODAY = "2026-03-10"
HOSTILE = [
    "'; DROP TABLE tallyboard.counters; --", "\\N", "%s", "{tb:1}:c:1:a:b", "a:b", " ", "é" * 128,
    "\U0001f600", "x" * 256, "*", "1:a:b",
]  # fmt: skip
WIDE = 2**60
ALL = set(range(PARTITIONS))


@contextmanager
def counters_of(site: Site) -> Iterator[CounterServiceStub]:
    """CounterService of a worker."""
    with grpc.insecure_channel(site.address) as channel:
        yield CounterServiceStub(channel)


def add(counters: CounterServiceStub, tenant: str, deltas: dict[str, int]) -> None:
    """Increments, one call each."""
    for counter, delta in deltas.items():
        request = pb.IncrementRequest(counter=counter, delta=delta)
        counters.Increment(request, timeout=30, metadata=(("x-tallyboard-tenant", tenant),))


def get(counters: CounterServiceStub, tenant: str, names: Sequence[str]) -> dict[str, int]:
    """What counters stand at, those that exist."""
    request = pb.BatchGetCountersRequest(counters=names, consistency=EXACT)
    metadata = (("x-tallyboard-tenant", tenant),)
    answer = counters.BatchGetCounters(request, timeout=30, metadata=metadata)
    return {count.counter: count.value for count in answer.counts if count.exists}


def fill_counters(site: Site) -> None:
    """Counters of all kinds, of two tenants with unusual names."""
    with counters_of(site) as counters:
        for tenant in ("acme", "a:c"):
            add(counters, tenant, {f"post:{i}": i - 100 for i in range(50)})
            add(counters, tenant, dict.fromkeys(HOSTILE, 7))
            add(counters, tenant, {"wide": 5, "gone": 5})
            add(counters, tenant, {"wide": WIDE, "gone": -WIDE, "new": -WIDE})
            metadata = (("x-tallyboard-tenant", tenant),)
            for name in ("gone", "post:3"):
                deleted = pb.DeleteCounterRequest(counter=name)
                counters.DeleteCounter(deleted, timeout=30, metadata=metadata)
            reset = pb.ResetCounterRequest(counter="post:4")
            counters.ResetCounter(reset, timeout=30, metadata=metadata)


def fill_boards(house: House) -> list[LiveBoard]:
    """Boards of every order, tie break and policy; half of them spread, some windows to end."""
    house.clock.now = NOON
    boards = []
    kinds = itertools.product(
        ("DESCENDING", "ASCENDING"), ("EARLIEST", "MEMBER_ID"), ("BEST", "LATEST", "SUM")
    )
    for i, (order, tie, policy) in enumerate(kinds):
        board = house.new_board(
            order=order,
            tie=tie,
            policy=policy,
            windows="ALL_TIME HOURLY DAILY",
            segments=1 + 2 * (i % 2),
            retention={"DAILY": 48 * 3600, "HOURLY": 3600} if i % 3 else {"HOURLY": 3600},
            seasons={"s1": (NOON - DAY, NOON + 3 * DAY)} if i % 4 == 0 else {},
        )
        rows = [
            (member, (at * 7919) % 11 - 5.25, NOON - at % 3, member.encode()[: at % 3])
            for at, member in enumerate([*HOSTILE, *(f"user:{n}" for n in range(30))])
        ]
        assert board.submit_all(rows) == []
        assert board.submit_all([("ann", 0.1), ("ann", 1e300), ("ann", 0.2)]) == []
        boards.append(board)
    return boards


def close(house: House, board: LiveBoard, window: str) -> None:
    """Closes a window in both stores, as the keeper does before it archives it."""
    with connect(house.settings.postgres_url) as conn:
        row = find_window(conn, board.key, window)
        assert row is not None
        assert close_window(conn, row.window_id)
    for place in board.partitions:
        incarnation = house.redis.get(incarnation_key(place)).decode()
        house.nodes.run([windows.close_window(place, incarnation, board.key, window)])


def rebuild(
    house: House, partitions: set[int] = ALL, clock: Callable[[], int] | None = None
) -> list[Rebuilt]:
    """Rebuilds partitions; calls go to a new worker from then on."""
    rebuilder = Rebuilder(
        house.nodes.topology,
        house.settings.postgres_url,
        PARTITIONS,
        last_checkpoint=LastCheckpoint(house.redis, PARTITIONS),
        clock=clock or house.clock,
    )
    done = rebuilder.rebuild(sorted(partitions))
    house.site = house.new_worker()  # the old one knows the old incarnations
    return done


def dirty(house: House) -> list[bytes]:
    """Marks of changes that no checkpoint has taken."""
    kinds = {key: kind_of_key(key) for key in house.redis.scan_iter(count=1000)}
    return [key for key, kind in kinds.items() if kind and kind.kind in "dfFyY"]


def test_every_key_comes_back_and_all_goes_on(house: House) -> None:
    fill_counters(house.site)
    boards = fill_boards(house)
    keeper = house.new_keeper()
    keeper.checkpoint()
    for board in boards:
        close(house, board, TODAY)
    boards.append(house.new_board(windows="ALL_TIME"))  # nobody has a score
    gone = house.new_board(windows="ALL_TIME")
    gone.submit("ann", 1)
    keeper.checkpoint()
    gone_key = gone.key
    gone.delete()
    # What is left of a board that Postgres has forgotten too need not come back.
    forgotten = [*house.redis.scan_iter(match=f"*:{gone.tenant}:*"), *_fences(house, gone_key)]
    assert len(forgotten) == 2
    house.redis.delete(*forgotten)
    before = picture(house.redis, ALL)
    left = lifetimes(house.redis, before)
    asked = answers(boards[1:-1:4])
    house.redis.flushdb()

    done = rebuild(house)

    after = picture(house.redis, ALL)
    assert after == before
    assert dirty(house) == []
    now = lifetimes(house.redis, before)
    assert {key: (left[key], now[key]) for key in left if abs(left[key] - now[key]) > 30} == {}
    assert sum(each.counters for each in done) == len(
        [key for key in before if b"}:c:" in key]
    ) + len([key for key in before if b"}:w:" in key])
    with counters_of(house.site) as counters:
        add(counters, "acme", {"post:42": 1, "wide": 1, "gone": 3, "a:b": -1})
        found = get(counters, "acme", ["post:42", "wide", "gone", "new", "a:b", "post:3", "post:4"])
    assert found == {
        "post:42": -57, "wide": WIDE + 6, "gone": 3, "new": -WIDE, "a:b": 6, "post:4": 0,
    }  # fmt: skip
    assert answers(boards[1:-1:4]) == asked
    house.clock.now = NOON + DAY
    for board in boards:
        assert "all" in board.submit("zoe", 3.5)
        assert board.get("all", "zoe").entry.score == 3.5


def answers(boards: Sequence[LiveBoard]) -> list[list[str]]:
    """All kinds of reads of an open and of a closed window of each board."""
    members = ["ann", *HOSTILE[:2]]
    return [board.answers("all", members, [1.0]) for board in boards] + [
        board.answers(TODAY, members, [1.0]) for board in boards
    ]


@pytest.mark.parametrize("together", [{0, 1, 2, 3, 4, 5, 6, 7}, {0}, {3, 5}])
def test_what_is_not_checkpointed_is_not_lost(house: House, together: set[int]) -> None:
    fill_counters(house.site)
    fill_boards(house)
    before = picture(house.redis, ALL)
    rebuild(house, together)
    assert picture(house.redis, ALL) == before
    house.new_keeper().checkpoint()


def test_a_definition_that_changes_meanwhile(house: House) -> None:
    board = house.new_board(windows="ALL_TIME", segments=3)
    board.submit("ann", 1)
    house.new_keeper().checkpoint()
    board.update(grace=7)
    house.redis.flushdb()
    rebuild(house)
    assert board.definition().late_grace.seconds == 7
    assert board.submit("bob", 2) == ["all"]
    assert board.scores("all") == {"ann": 1, "bob": 2}


def test_a_deleted_board_stays_deleted(house: House) -> None:
    board = house.new_board(windows="ALL_TIME")
    board.submit("ann", 1)
    house.new_keeper().checkpoint()
    with connect(house.settings.postgres_url) as conn:
        # Deleted, and Redis was never told.
        conn.execute(
            "UPDATE tallyboard.leaderboards SET deleted_at = now(), revision = revision + 1"
        )
    rebuild(house)
    assert [house.redis.get(key)[-1:] for key in _fences(house, "*")] == [b"x"]
    with live.refusal("LEADERBOARD_NOT_FOUND"):
        board.submit("ann", 1)


def _fences(house: House, board_key: str) -> list[bytes]:
    return list(house.redis.scan_iter(match=f"*:g:{board_key}"))


def archived_day(house: House, segments: int) -> LiveBoard:
    """A board whose day was archived an hour ago, and is still in Redis."""
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY", segments=segments)
    board.submit_all([(f"user:{i}", i, NOON) for i in range(40)])
    keeper = house.new_keeper()
    keeper.checkpoint()
    house.clock.now = at("2026-03-11T01:00")
    keeper.round()
    assert (TODAY, "ARCHIVED", 40) in board.windows()
    assert board.page(TODAY).source == SOURCE_LIVE
    return board


def test_an_archived_window_stays_in_the_archive(house: House) -> None:
    board = archived_day(house, 1)
    before = list(board.page(TODAY, page_size=100).entries)
    rebuild(house)
    page = board.page(TODAY, page_size=100)
    assert (list(page.entries), page.source) == (before, SOURCE_DURABLE)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_archived_window_is_whole_in_redis_or_not_there(house: House, count: int) -> None:
    board = archived_day(house, 3)
    before = list(board.page(TODAY, page_size=100).entries)
    rebuild(house, set(board.partitions[:count]))
    page = board.page(TODAY, page_size=100)
    assert list(page.entries) == before
    assert page.source == (SOURCE_DURABLE if count == 3 else SOURCE_LIVE)
    ends = {house.redis.ttl(window_keys(p, board.key, TODAY).entries) for p in board.partitions}
    assert max(ends) - min(ends) <= 1
    assert board.imported(("zoe", 99, NOON)) == []
    assert board.page(TODAY, page_size=1).entries[0].member == "zoe"


def test_an_archived_window_that_was_written_to_stays(house: House) -> None:
    board = archived_day(house, 3)
    assert board.imported(("user:0", 99, NOON), ("user:1", 98, NOON)) == []
    before = list(board.page(TODAY, page_size=100).entries)
    rebuild(house, set(board.partitions[:1]))
    assert list(board.page(TODAY, page_size=100).entries) == before


def test_a_closed_window_is_closed_where_nobody_has_a_score(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="DAILY", segments=3)
    board.submit("ann", 1)
    house.new_keeper().checkpoint()
    close(house, board, TODAY)
    before = picture(house.redis, ALL)
    rebuild(house)
    assert picture(house.redis, ALL) == before
    for place in board.partitions:
        assert house.redis.hget(window_keys(place, board.key, TODAY).entries, "")[:1] == b"c"


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("archived", [False, True])
def test_a_window_that_closes_while_it_is_loaded(
    house: House, archived: bool, segments: int
) -> None:
    house.clock.now = NOON
    retention = {"DAILY": 48 * 3600}
    board = house.new_board(windows="ALL_TIME DAILY", segments=segments, retention=retention)
    board.submit_all([(f"user:{i}", i, NOON) for i in range(20)])
    house.new_keeper().checkpoint()
    before = list(board.page(TODAY, page_size=50).entries)
    asked = []

    def clock() -> int:
        """Asked before entries are read, and then when a window of them is about to end."""
        asked.append(True)
        if len(asked) == 2:
            with connect(house.settings.postgres_url) as conn:
                row = find_window(conn, board.key, TODAY)
                assert row is not None
                assert close_window(conn, row.window_id)
                if archived:
                    archive_window(conn, row.window_id, None)
        return house.clock()

    rebuild(house, clock=clock)
    house.clock.now = NOON + DAY + HOUR
    keys = [window_keys(place, board.key, TODAY).entries for place in board.partitions]
    metas = [(house.redis.hget(key, "") or b"")[:1] for key in keys]
    assert metas == [b"" if archived else b"c"] * segments
    page = board.page(TODAY, page_size=50)
    assert list(page.entries) == before
    assert page.source == (SOURCE_DURABLE if archived else SOURCE_LIVE)


def test_one_window_for_the_journal(house: House) -> None:
    board = archived_day(house, 3)
    key = window_keys(board.partitions[0], board.key, TODAY)
    before = picture(house.redis, {board.partitions[0]})
    house.redis.delete(*key)
    with (
        Pipe(house.nodes.topology, 5) as pipe,
        connect(house.settings.postgres_url) as conn,
    ):
        row = find_window(conn, board.key, TODAY)
        assert row is not None
        definition = from_json(find_by_keys(conn, [board.key])[0].definition)
        incarnation = house.redis.get(incarnation_key(board.partitions[0])).decode()
        loader = BoardLoader(pipe, conn, PARTITIONS, house.clock)
        count = loader.load_window(definition, row, board.partitions[0], incarnation)
    assert picture(house.redis, {board.partitions[0]}) == before
    assert count == house.redis.zcard(key.ranking) > 0
    assert 24 * 3600 - 10 < house.redis.ttl(key.entries) <= 24 * 3600


def test_a_window_whose_time_is_over_is_not_loaded(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME HOURLY", retention={"HOURLY": 3600})
    board.submit("ann", 1)
    house.new_keeper().checkpoint()
    house.clock.now = NOON + 3 * HOUR
    rebuild(house)
    names = {window for place in board.partitions for window in _windows_in(house, board, place)}
    assert names == {"all"}


def _windows_in(house: House, board: LiveBoard, place: int) -> set[str]:
    return {each.decode() for each in house.redis.smembers(f"{{tb:{place}}}:o:{board.key}")}


def test_many_windows_and_entries(house: House) -> None:
    """More than what goes into one call, one batch of windows and one page of boards."""
    house.clock.now = NOON
    boards = [house.new_board(windows="ALL_TIME HOURLY", segments=2)]
    for i in range(40):
        boards.append(boards[0].sibling(f"b{i}", windows="ALL_TIME HOURLY DAILY WEEKLY MONTHLY"))
    for n, board in enumerate(boards):
        size = 4_000 if n == 0 else 20
        rows = [(f"user:{i}", i * 0.1, NOON - i % 4 * HOUR * (n > 0)) for i in range(size)]
        for low in range(0, size, 2_000):
            assert board.submit_all(rows[low : low + 2_000], is_import=True) == []
    house.new_keeper().checkpoint()
    before = picture(house.redis, ALL)
    house.redis.flushdb()
    done = rebuild(house)
    assert picture(house.redis, ALL) == before
    assert sum(each.entries for each in done) > 8_000
