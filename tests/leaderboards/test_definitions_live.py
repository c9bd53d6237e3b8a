"""Definitions over gRPC: what is committed is in force everywhere, and no score is lost by it."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.leaderboards.boards import row_of
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.leaderboards.model import Leaderboard
from tallyboard_server.postgres import leaderboards as rows
from tallyboard_server.postgres.pool import connect, open_pool
from tallyboard_server.publisher import Publisher
from tallyboard_server.redis.keys import definition_key, fence_key, home_partition
from tallyboard_server.redis.nodes import control_client
from tests.leaderboards import live
from tests.leaderboards.live import DAY, PARTITIONS, House, LiveBoard, Refused, Site, at, refusal
from tests.waiting import wait_for

opened, house = live.opened, live.house

NOON = at("2026-03-10T12:00")


@pytest.fixture(autouse=True)
def _noon(house: House) -> None:
    house.clock.now = NOON


@pytest.fixture(scope="module")
def second(opened: House) -> Site:
    """Another worker on the same stores."""
    return opened.new_worker()


def request_id() -> str:
    """One that nobody has used."""
    return str(uuid.uuid4())


def publisher(house: House, pool: object) -> Publisher:
    """A keeper's part that tells Redis of definitions."""
    return Publisher(house.nodes, pool, PARTITIONS, 600.0)  # type: ignore[arg-type]


def test_a_create_with_a_request_id_counts_once(house: House) -> None:
    board, name = LiveBoard(house, request_id(), "lives"), request_id()
    first = board.create(name, windows="DAILY")
    again = board.create(name, windows="DAILY")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.leaderboard == first.leaderboard
    with refusal("REQUEST_ID_REUSED"):
        board.create(name, windows="WEEKLY")
    with refusal("LEADERBOARD_ALREADY_EXISTS"):
        board.create(windows="DAILY")
    with refusal("LEADERBOARD_ALREADY_EXISTS"):
        board.create(request_id(), windows="DAILY")


def test_an_update_with_a_request_id_counts_once(house: House) -> None:
    board, name = house.new_board(), request_id()
    first = board.update(request_id=name, attributes={"a": "1"})
    board.update(attributes={"a": "2"})
    again = board.update(request_id=name, attributes={"a": "1"})
    assert again.duplicate
    assert again.leaderboard.attributes["a"] == "2"
    assert not first.duplicate
    with refusal("REQUEST_ID_REUSED"):
        board.update(request_id=name, attributes={"a": "3"})


def test_a_delete_with_a_request_id_counts_once(house: House) -> None:
    board, name = house.new_board(), request_id()
    board.submit("ann", 1)
    assert board.delete(request_id=name).deleted_entries == 1
    board.create()
    again = board.delete(request_id=name)
    assert (again.duplicate, again.deleted_entries) == (True, 0)
    assert board.submit("ann", 2) == ["all"]
    with refusal("REQUEST_ID_REUSED"):
        board.delete(etag="x", request_id=name)


def test_etags(house: House) -> None:
    board = house.new_board()
    before = board.definition().etag
    after = board.update(etag=before, attributes={"a": "1"}).leaderboard.etag
    assert after != before
    with refusal("ETAG_MISMATCH"):
        board.update(etag=before, attributes={"a": "2"})
    with refusal("ETAG_MISMATCH"):
        board.delete(etag=before)
    assert board.definition().etag == after
    board.delete(etag=after)
    board.create()
    with refusal("ETAG_MISMATCH"):
        board.update(etag=after, attributes={"a": "3"})


LOCKED = {
    "order": "ASCENDING",
    "policy": "SUM",
    "tie": "MEMBER_ID",
    "zone": "Europe/Berlin",
    "offset": 3600,
    "segments": 4,
}


@pytest.mark.parametrize("field", LOCKED)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_scores_mean_is_locked_once_there_are_some(
    house: House, field: str, checkpointed: bool
) -> None:
    board = house.new_board(windows="DAILY")
    board.update(**{field: LOCKED[field]})
    board.submit("ann", 1)
    if checkpointed:
        house.new_keeper().checkpoint()
    with refusal("DEFINITION_LOCKED"):
        board.update(mask=[live.definition_field(field)])
    assert board.submit("bob", 2) == ["2026-03-10"]
    board.update(attributes={"a": "1"})
    assert len(board.scores("2026-03-10")) == 2
    for member in ("ann", "bob"):
        board.remove(member)
    board.update(mask=[live.definition_field(field)])
    assert board.submit("cat", 3) == ["2026-03-10"]


def test_entries_of_an_archive_lock_too(house: House) -> None:
    board = house.new_board(windows="DAILY")
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    house.clock.now += DAY
    keeper.round()
    board.evict("2026-03-10")
    with refusal("DEFINITION_LOCKED"):
        board.update(order="ASCENDING")
    board.submit("bob", 2)


def test_a_change_reaches_other_workers_within_a_second(house: House, second: Site) -> None:
    board = house.new_board(windows="ALL_TIME")
    board.submit("ann", 1, site=second)
    started = time.monotonic()
    board.update(windows="ALL_TIME DAILY", attributes={"a": "1"})
    # A submission is never made by the old definition, not even at once.
    assert board.submit("bob", 2, site=second) == ["all", "2026-03-10"]
    wait_for(lambda: board.definition(second).attributes.get("a") == "1", "the change")
    assert time.monotonic() - started < 1.0
    started = time.monotonic()
    board.delete()
    with refusal("LEADERBOARD_NOT_FOUND"):
        board.submit("cat", 3, site=second)
    wait_for(lambda: is_gone(board, second), "the deletion")
    assert time.monotonic() - started < 1.0
    started = time.monotonic()
    board.create(windows="WEEKLY")
    wait_for(lambda: not is_gone(board, second), "the new board")
    assert time.monotonic() - started < 1.0
    assert board.submit("dan", 4, site=second) == ["2026-W11"]


def is_gone(board: LiveBoard, site: Site) -> bool:
    """Whether a worker knows no such board."""
    try:
        board.definition(site)
    except Refused as error:
        return error.reason == "LEADERBOARD_NOT_FOUND"
    return False


def test_submissions_that_race_with_changes_are_neither_refused_nor_lost(
    house: House, second: Site
) -> None:
    board = house.new_board(windows="ALL_TIME DAILY", policy="SUM")
    over = threading.Event()
    counted = [0] * 4
    failures: list[BaseException] = []

    def submit(number: int) -> None:
        site = second if number % 2 else house.site
        try:
            while not over.is_set():
                if number < 2:
                    board.submit(f"m{number}", 1, site=site)
                    counted[number] += 1
                else:
                    batch = [board.submission(f"m{number}", 1) for _ in range(20)]
                    request = pb.BatchSubmitScoresRequest(submissions=batch)
                    assert not board.call("BatchSubmitScores", request, site).failures
                    counted[number] += 20
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for i in range(25):
        board.update(attributes={"a": str(i)})
        if i % 3 == 0:
            # Keeps submissions away for a moment, and is then refused.
            wait_for(lambda: counted[0] and counted[1], "submissions")
            with refusal("DEFINITION_LOCKED"):
                board.update(order="ASCENDING")
    over.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert board.scores("all") == pytest.approx(
        {f"m{number}": total for number, total in enumerate(counted)}
    )


def test_a_recreated_board_wins_over_the_deletion_by_a_clock_that_is_ahead(house: House) -> None:
    board = house.new_board()
    house.clock.now += 3_600_000_000
    board.update(attributes={"a": "1"})
    board.delete()
    house.clock.now = NOON
    board.create(windows="DAILY")
    assert board.submit("ann", 1) == ["2026-03-10"]
    key = definition_key(home_partition(board.tenant, "lives", PARTITIONS), board.tenant, "lives")
    assert b"DAILY" in house.redis.get(key)


def test_what_redis_was_not_told_of_is_published(house: House, second: Site) -> None:
    """As when Redis fails right after the commit."""
    board = house.new_board(windows="ALL_TIME")
    board.submit("ann", 1)
    with open_pool(house.settings.postgres_url) as pool:
        keeper = publisher(house, pool)
        keeper.publish()
        with pool.connection() as conn:
            row = rows.find(conn, board.tenant, "lives")
            assert row is not None
            old = from_json(row.definition)
            new = changed(old, windows=(*old.windows, live.WindowKind.DAILY))
            rows.update(conn, row_of(new), old.revision)
        assert board.submit("bob", 2) == ["all"]
        assert keeper.publish() == 1
        assert keeper.publish() == 0
    assert board.submit("cat", 3) == ["all", "2026-03-10"]
    assert board.submit("dan", 4, site=second) == ["all", "2026-03-10"]


def changed(board: Leaderboard, **fields: object) -> Leaderboard:
    """The next revision of a definition."""
    values = {name: getattr(board, name) for name in board.__dataclass_fields__}
    return Leaderboard(**(values | fields | {"revision": board.revision + 1}))


def test_a_new_board_that_redis_was_not_told_of_is_published(house: House, second: Site) -> None:
    board = LiveBoard(house, request_id(), "lives")
    made = Leaderboard(board.tenant, "lives", "0123456789abcdef", created_at=NOON, revision=NOON)
    with connect(house.settings.postgres_url) as conn:
        rows.insert(conn, row_of(made))
    with refusal("LEADERBOARD_NOT_FOUND"):
        board.submit("ann", 1)
    with open_pool(house.settings.postgres_url) as pool:
        assert publisher(house, pool).publish() == 1
    assert board.submit("ann", 1, site=second) == ["all"]
    wait_for(lambda: not is_gone(board, house.site), "the board")
    assert board.submit("bob", 2) == ["all"]


def test_a_deletion_that_redis_was_not_told_of_is_published(house: House) -> None:
    board = house.new_board()
    board.submit("ann", 1)
    key = board.key
    with open_pool(house.settings.postgres_url) as pool:
        with pool.connection() as conn:
            row = rows.find(conn, board.tenant, "lives")
            assert row is not None
            rows.mark_deleted(conn, key, row.revision, NOON)
        keeper = publisher(house, pool)
        keeper.publish()
        keeper.purge()
    with refusal("LEADERBOARD_NOT_FOUND"):
        board.submit("bob", 2)
    assert [place for place in house.found(key) if ":g:" not in place] == []


def test_fences_left_shut_are_opened_again(house: House) -> None:
    """As when a worker ends in the middle of a change that wants submissions kept away."""
    board = house.new_board(segments=4)
    with open_pool(house.settings.postgres_url) as pool:
        keeper = publisher(house, pool)
        keeper.publish()
        key = board.key
        with pool.connection() as conn:
            rows.unsync(conn, key)
            row = rows.find(conn, board.tenant, "lives")
        assert row is not None
        for partition in board.partitions:
            house.redis.set(fence_key(partition, key), f"{row.revision}-")
        assert keeper.publish() == 1
    assert board.submit_all([(f"m{i}", i) for i in range(20)]) == []


@pytest.fixture
def fragile(
    short_folder: Path, redis_server: EmbeddedRedis
) -> Iterator[tuple[House, EmbeddedPostgres]]:
    """A house with a Postgres that may be stopped."""
    url = f"{redis_server.url}?db=8"
    with closing(control_client(url)) as redis, EmbeddedPostgres(short_folder) as postgres:
        redis.flushdb()
        with live.open_house(url, postgres.url) as opened:
            yield opened, postgres
        redis.flushdb()


def test_serving_goes_on_without_postgres(fragile: tuple[House, EmbeddedPostgres]) -> None:
    house, postgres = fragile
    house.clock.now = NOON
    known = house.new_board(windows="ALL_TIME DAILY")
    known.submit("ann", 1)
    second = house.new_worker()
    postgres.stop()
    for site in (house.site, second):
        assert known.submit("bob", 2, site=site) == ["all", "2026-03-10"]
        assert known.scores("all", site) == {"bob": 2, "ann": 1}
        assert known.definition(site).leaderboard_id == "lives"
    changes = [
        lambda: known.update(attributes={"a": "1"}),
        known.delete,
        lambda: LiveBoard(house, known.tenant, "new").create(site=second),
        lambda: known.erase("ann"),
    ]
    with ThreadPoolExecutor() as threads:  # each waits two seconds for Postgres
        for change in [threads.submit(change) for change in changes]:
            with refusal("POSTGRES_UNAVAILABLE"):
                change.result()
    house.clock.now += DAY
    assert known.submit("cat", 3) == ["all", "2026-03-11"]
    postgres.start()
    keeper = house.new_keeper()
    wait_for(lambda: keeper.try_round(), "the keeper to go on")
    assert ("2026-03-10", "ARCHIVED", 2) in known.windows()


def test_a_watch_follows_the_top_and_the_day(house: House) -> None:
    board = house.new_board(windows="DAILY")
    board.submit("ann", 1)
    request = pb.WatchEntriesRequest(leaderboard_id="lives", window="current:daily", limit=2)
    request.min_interval.FromMilliseconds(100)
    metadata = (("x-tallyboard-tenant", board.tenant),)
    stream = house.site.leaderboards.WatchEntries(request, timeout=20, metadata=metadata)

    def seen() -> tuple[str, list[str], int]:
        answer = next(stream)
        return answer.window, [entry.member for entry in answer.entries], answer.total_size

    try:
        assert seen() == ("2026-03-10", ["ann"], 1)
        board.submit("bob", 2)
        assert seen() == ("2026-03-10", ["bob", "ann"], 2)
        board.submit("cat", 0)
        assert seen() == ("2026-03-10", ["bob", "ann"], 3)
        house.clock.now = at("2026-03-11T00:00")
        assert seen() == ("2026-03-11", [], 0)
        board.submit("cat", 3)
        assert seen() == ("2026-03-11", ["cat"], 1)
        board.delete()
        with pytest.raises(grpc.RpcError) as caught:
            seen()
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    finally:
        stream.cancel()
