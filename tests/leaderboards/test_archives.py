"""Archived windows answer as they did live, and imports still reach them."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.consistency_pb2 import SOURCE_DURABLE, SOURCE_LIVE
from tests.leaderboards import live
from tests.leaderboards.live import (
    DAY,
    EXACT,
    HOUR,
    MICROS,
    House,
    LiveBoard,
    LiveKeeper,
    at,
    refusal,
)

opened, house = live.opened, live.house

TODAY = "2026-03-10"
NOON = at("2026-03-10T12:00")
MEMBERS = ["ann", "bob", "cat", "dan", "eve", "Eve", "é", "a:b", "ann "]
LEVELS = [2.0, 3.5, 5.0]


def a_day(house: House, **definition: object) -> LiveBoard:
    """A board with one full day, at its end."""
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY", **definition)
    for i, member in enumerate(MEMBERS):
        board.submit(member, (i * 7 % 5) + 1, NOON + i * 1000 - 5000, f"m{i}".encode())
    return board


def archive(house: House, keeper: LiveKeeper | None = None) -> None:
    """Lets the day end, and its grace."""
    house.clock.now = max(house.clock.now, at("2026-03-11T00:01"))
    (keeper or house.new_keeper()).round()


@pytest.mark.parametrize(
    ("order", "tie", "segments"),
    [
        ("DESCENDING", "EARLIEST", 1),
        ("DESCENDING", "MEMBER_ID", 4),
        ("ASCENDING", "EARLIEST", 4),
        ("ASCENDING", "MEMBER_ID", 1),
    ],
)
def test_an_archive_answers_as_the_window_did(
    house: House, order: str, tie: str, segments: int
) -> None:
    board = a_day(house, order=order, tie=tie, segments=segments)
    question = (TODAY, MEMBERS, LEVELS)
    as_live = board.answers(*question)
    archive(house)
    assert board.answers(*question) == as_live
    assert board.sources(*question) == {SOURCE_LIVE}
    board.evict(TODAY)
    assert board.answers(*question) == as_live
    assert board.sources(*question) == {SOURCE_DURABLE}
    assert board.windows() == [("all", "OPEN", 9), (TODAY, "ARCHIVED", 9)]


@pytest.mark.parametrize("segments", [1, 4])
def test_a_page_token_of_the_live_window_goes_on_in_the_archive(
    house: House, segments: int
) -> None:
    board = a_day(house, segments=segments)
    shared = {"leaderboard_id": board.leaderboard_id, "window": TODAY, "consistency": EXACT}
    requests = [
        (name, request(page_size=2, reverse=reverse, rank_method=method, **shared))
        for name, request in (
            ("ListEntries", pb.ListEntriesRequest),
            ("ListEntriesByScore", pb.ListEntriesByScoreRequest),
        )
        for reverse in (False, True)
        for method in live.METHODS
    ]
    for name, request in requests:
        request.page_token = board.call(name, request).next_page_token
    as_live = [list(board.call(name, request).entries) for name, request in requests]
    archive(house)
    board.evict(TODAY)
    assert [list(board.call(name, request).entries) for name, request in requests] == as_live


def test_a_page_token_of_the_archive_goes_on_in_the_live_window(house: House) -> None:
    board = a_day(house)
    archive(house)
    board.evict(TODAY)
    token = board.page(TODAY, page_size=2).next_page_token
    second = list(board.page(TODAY, page_size=2, page_token=token).entries)
    assert board.imported(("zoe", -1, NOON)) == []
    page = board.page(TODAY, page_size=2, page_token=token)
    assert (list(page.entries), page.source) == (second, SOURCE_LIVE)


def test_large_and_small_scores_have_their_mean_in_the_archive(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="DAILY")
    dice = random.Random(3)
    board.submit_all([(f"m{i}", dice.uniform(-1e6, 1e6)) for i in range(100)])
    request = pb.GetLeaderboardStatsRequest(
        leaderboard_id=board.leaderboard_id, window=TODAY, consistency=EXACT
    )
    mean = board.call("GetLeaderboardStats", request).mean
    archive(house)
    board.evict(TODAY)
    assert board.call("GetLeaderboardStats", request).mean == pytest.approx(mean, rel=1e-12)


def test_an_import_makes_a_window_that_never_was(house: House) -> None:
    house.clock.now = at("2026-03-15T12:00")
    board = house.new_board(windows="ALL_TIME DAILY")
    with refusal("WINDOW_CLOSED"):
        board.submit("ann", 1, NOON)
    assert board.imported(("ann", 1, NOON), ("bob", 2, NOON)) == []
    assert board.windows() == [("all", "OPEN", 2), (TODAY, "CLOSED", 2)]
    house.new_keeper().round()
    assert board.windows() == [("all", "OPEN", 2), (TODAY, "ARCHIVED", 2)]
    board.evict(TODAY)
    assert board.scores(TODAY) == {"bob": 2, "ann": 1}


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("state", ["closed", "archived", "gone"])
@pytest.mark.parametrize(
    ("policy", "scores"),
    [
        ("BEST", {"zoe": 9, "cat": 6, "bob": 3, "dan": 3, "ann": 2}),
        ("LATEST", {"zoe": 9, "cat": 6, "bob": 3, "dan": 2, "ann": 1}),
        ("SUM", {"cat": 11, "zoe": 9, "dan": 5, "bob": 3, "ann": 3}),
    ],
)
def test_an_import_meets_what_the_window_holds(
    house: House, policy: str, scores: dict[str, float], state: str, segments: int
) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY", policy=policy, segments=segments)
    rows = [("ann", 2), ("bob", 3), ("cat", 5), ("dan", 3)]
    board.submit_all([(member, score, NOON - 10) for member, score in rows])
    keeper = house.new_keeper()
    keeper.checkpoint()
    house.clock.now = at("2026-03-11T00:01")
    if state != "closed":
        keeper.round()
    if state == "gone":
        board.evict(TODAY)
        house.clock.now += 25 * HOUR
    imported = [("ann", 1, NOON), ("cat", 6, NOON), ("dan", 2, NOON), ("zoe", 9, NOON)]
    assert board.imported(*imported) == []
    assert board.scores(TODAY) == scores
    assert -1 in board.lifetimes(TODAY)
    before = ("CLOSED", 5) if state == "closed" else ("ARCHIVED", 4)
    assert board.windows()[-1] == (TODAY, *before)
    keeper.round()
    assert board.windows()[-1] == (TODAY, "ARCHIVED", 5)
    assert board.page(TODAY).source == SOURCE_LIVE
    assert board.scores(TODAY) == scores
    board.evict(TODAY)
    assert board.page(TODAY).source == SOURCE_DURABLE
    assert board.scores(TODAY) == scores


@pytest.mark.parametrize("segments", [1, 4])
def test_imports_again_and_again(house: House, segments: int) -> None:
    """Each after the last one was archived, and its window has left Redis."""
    house.clock.now = at("2026-03-15T12:00")
    board = house.new_board(windows="ALL_TIME DAILY", policy="SUM", segments=segments)
    keeper = house.new_keeper()
    for i in range(1, 4):
        assert board.imported(("ann", 1, NOON), ("bob", 2, NOON), ("cat", 4, NOON)) == []
        keeper.round()
        board.evict(TODAY)
        house.clock.now += 25 * HOUR
        assert board.scores(TODAY) == {"cat": 4 * i, "bob": 2 * i, "ann": i}


EXPIRE_NOW = """
for _, kind in ipairs({'h', 'z'}) do
  if redis.call('TTL', ARGV[1] .. kind .. ARGV[2]) >= 0 then
    redis.call('DEL', ARGV[1] .. kind .. ARGV[2])
  end
end
"""


@pytest.mark.parametrize("segments", [1, 4])
def test_no_import_is_lost_between_archives_and_expiry(house: House, segments: int) -> None:
    """Windows that may end by themselves do so all the time, segment by segment."""
    house.clock.now = at("2026-03-15T12:00")
    board = house.new_board(windows="ALL_TIME DAILY", policy="SUM", segments=segments)
    members, key, over = [f"m{i}" for i in range(12)], board.key, threading.Event()
    failures: list[BaseException] = []

    def importing() -> None:
        for _ in range(12):
            assert board.imported(*[(member, 1, NOON) for member in members]) == []

    def expiring() -> None:
        while not over.is_set():
            for partition in board.partitions:
                around = (f"{{tb:{partition}}}:", f":{key}:{TODAY}")
                house.redis.eval(EXPIRE_NOW, 0, *around)

    def keeping() -> None:
        keeper = house.new_keeper()
        while not over.is_set():
            keeper.round()

    def noting(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    imports = [threading.Thread(target=noting, args=(importing,)) for _ in range(3)]
    others = [threading.Thread(target=noting, args=(work,)) for work in (expiring, keeping)]
    for thread in [*imports, *others]:
        thread.start()
    for thread in imports:
        thread.join(60)
    over.set()
    for thread in others:
        thread.join(60)
    assert failures == []
    house.new_keeper().round()
    board.evict(TODAY)
    assert board.scores(TODAY) == dict.fromkeys(members, 36)
    assert board.scores("all") == dict.fromkeys(members, 36)


def test_an_import_that_knew_the_window_open_finds_it_archived(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="DAILY", policy="SUM")
    assert board.imported(("ann", 1, NOON)) == []
    keeper = house.new_keeper()
    keeper.round()
    archive(house, keeper)
    board.evict(TODAY)
    house.clock.now += 25 * HOUR
    assert board.imported(("ann", 1, NOON)) == []
    assert board.scores(TODAY) == {"ann": 2}


def test_nothing_is_imported_past_the_retention(house: House) -> None:
    house.clock.now = NOON
    retention = {"retention": {"DAILY": 3600}, "grace": 0}
    board = house.new_board(windows="ALL_TIME DAILY", **retention)
    daily = board.sibling("daily", windows="DAILY", **retention)
    for each in (board, daily):
        assert each.imported(("ann", 1, NOON)) == []
    house.clock.now = at("2026-03-11T01:00") - 1
    for each in (board, daily):
        assert each.imported(("ann", 2, NOON)) == []
        assert each.scores(TODAY) == {"ann": 2}
    house.clock.now += 1
    assert daily.imported(("ann", 3, NOON)) == ["WINDOW_CLOSED"]
    # What is kept for good takes it all the same.
    assert board.imported(("ann", 3, NOON)) == []
    assert board.scores("all") == {"ann": 3}
    house.new_keeper().round()
    for each in (board, daily):
        with refusal("WINDOW_NOT_FOUND"):
            each.page(TODAY)


def test_an_import_keeps_every_segment_of_a_window_that_is_about_to_end(house: House) -> None:
    board = a_day(house, segments=4)
    keeper = house.new_keeper()
    archive(house, keeper)
    assert board.imported(("ann", 9, NOON)) == []
    before = board.scores(TODAY)
    # The other segments end their time first.
    for partition in board.partitions:
        keys = live.window_keys(partition, board.key, TODAY)
        if house.redis.ttl(keys.entries) != -1:
            house.redis.delete(*keys)
    keeper.round()
    assert board.scores(TODAY) == before


def test_a_late_score_does_not_begin_an_archived_window_anew(house: House) -> None:
    """As after a longer grace for windows that have closed: closed they stay."""
    board = a_day(house)
    archive(house)
    board.evict(TODAY)
    house.clock.now += 25 * HOUR
    board.update(grace=7 * 24 * 3600)
    before = list(board.page(TODAY).entries)
    with refusal("WINDOW_CLOSED"):
        board.submit("zoe", 100, NOON)
    assert list(board.page(TODAY).entries) == before
    assert len(before) == len(MEMBERS)


def test_between_seasons_there_is_no_window(house: House) -> None:
    first = (at("2026-03-01T00:00"), at("2026-03-08T00:00"))
    second = (at("2026-03-15T00:00"), at("2026-03-22T00:00"))
    house.clock.now = at("2026-03-05T00:00")
    board = house.new_board(seasons={"s1": first, "s2": second}, grace=0)
    assert board.submit("ann", 1) == ["s1"]
    house.clock.now = at("2026-03-10T00:00")
    house.new_keeper().round()
    with refusal("WINDOW_CLOSED"):
        board.submit("ann", 2)
    with refusal("WINDOW_NOT_FOUND"):
        board.page("current:season")
    with refusal("WINDOW_NOT_FOUND"):
        board.page("s2")
    assert board.scores("previous:season") == {"ann": 1}
    assert board.windows() == [("s1", "ARCHIVED", 1)]
    house.clock.now = second[0]
    assert board.submit("bob", 2) == ["s2"]
    assert board.scores("current:season") == {"bob": 2}


@pytest.mark.parametrize("window", ["current:season", ""])
@pytest.mark.parametrize("kind", [pb.ListEntriesRequest, pb.ListEntriesByScoreRequest])
def test_a_list_goes_on_when_its_season_has_ended(house: House, kind: Any, window: str) -> None:
    season = (at("2026-03-01T00:00"), at("2026-03-08T00:00"))
    house.clock.now = at("2026-03-05T00:00")
    board = house.new_board(seasons={"s1": season}, grace=0)
    for score, member in enumerate(("ann", "bob", "cleo")):
        board.submit(member, score)
    name = kind.DESCRIPTOR.name.removesuffix("Request")
    request = kind(leaderboard_id=board.leaderboard_id, window=window, page_size=2)
    request.page_token = board.call(name, request).next_page_token
    house.clock.now = season[1]
    last = board.call(name, request)
    assert (last.window, [entry.member for entry in last.entries]) == ("s1", ["ann"])
    assert not last.next_page_token
    request.page_token = ""
    with refusal("WINDOW_NOT_FOUND"):
        board.call(name, request)


def test_a_season_that_is_removed_keeps_its_standing(house: House) -> None:
    season = (at("2026-03-01T00:00"), at("2026-03-20T00:00"))
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME", seasons={"s1": season})
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    board.update(mask=["seasons"])
    assert board.submit("bob", 2) == ["all"]
    with refusal("WINDOW_INVALID"):
        board.page("s1")
    assert ("s1", "OPEN", 1) in board.windows()
    house.clock.now = season[1] + 60 * MICROS
    keeper.round()
    assert ("s1", "ARCHIVED", 1) in board.windows()


def test_a_season_that_is_made_longer_stays_open(house: House) -> None:
    start, end = at("2026-03-01T00:00"), at("2026-03-10T13:00")
    house.clock.now = NOON
    board = house.new_board(
        windows="ALL_TIME", seasons={"s1": (start, end)}, retention={"SEASON": 3600}
    )
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    board.update(seasons={"s1": (start, end + 3 * DAY)})
    house.clock.now = end + DAY
    keeper.round()
    assert board.windows() == [("all", "OPEN", 1), ("s1", "OPEN", 1)]
    # Nothing may end before the new end and the retention.
    assert all(left == -1 or left > 2 * 24 * 3600 for left in board.lifetimes("s1"))
    assert board.submit("bob", 2) == ["all", "s1"]
    assert board.scores("s1") == {"bob": 2, "ann": 1}
    house.clock.now = end + 3 * DAY + 60 * MICROS
    keeper.round()
    assert board.windows() == [("all", "OPEN", 2), ("s1", "ARCHIVED", 2)]


def test_a_season_that_is_made_shorter_closes(house: House) -> None:
    start, end = at("2026-03-01T00:00"), at("2026-03-20T00:00")
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME", seasons={"s1": (start, end)}, grace=0)
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    board.update(seasons={"s1": (start, NOON)})
    assert board.submit("bob", 2) == ["all"]
    keeper.round()
    assert board.windows() == [("all", "OPEN", 2), ("s1", "ARCHIVED", 1)]


@pytest.mark.parametrize("gone", [False, True])
def test_a_season_that_has_closed_can_not_be_opened_again(house: House, gone: bool) -> None:
    start, end = at("2026-03-01T00:00"), at("2026-03-10T13:00")
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME", seasons={"s1": (start, end)}, grace=0)
    board.submit("ann", 1)
    house.clock.now = end
    house.new_keeper().round()
    if gone:
        board.evict("s1")
    with refusal("DEFINITION_LOCKED"):
        board.update(seasons={"s1": (start, end + DAY)})
    assert board.submit("bob", 2) == ["all"]
    assert board.scores("s1") == {"ann": 1}
    board.update(seasons={"s1": (start - DAY, end)})
    board.update(seasons={"s1": (start, end), "s2": (end, end + DAY)})
    assert board.submit("bob", 2) == ["all", "s2"]


def test_a_kind_that_is_added_begins_then_and_one_taken_away_ends(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME WEEKLY")
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    board.update(windows="ALL_TIME DAILY")
    assert board.submit("bob", 2) == ["all", TODAY]
    assert board.scores(TODAY) == {"bob": 2}
    with refusal("WINDOW_INVALID"):
        board.page("2026-W11")
    assert board.windows() == [("all", "OPEN", 2), (TODAY, "OPEN", 1), ("2026-W11", "OPEN", 1)]
    board.update(windows="ALL_TIME WEEKLY")
    assert board.submit("cat", 3) == ["all", "2026-W11"]
    assert board.scores("2026-W11") == {"cat": 3, "ann": 1}
    house.clock.now += 7 * DAY
    keeper.round()
    assert board.windows() == [
        ("all", "OPEN", 3),
        (TODAY, "ARCHIVED", 1),
        ("2026-W11", "ARCHIVED", 2),
    ]


@pytest.mark.parametrize("retention", [0, 10_000])
def test_a_longer_retention_holds_for_windows_that_there_are(house: House, retention: int) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="DAILY", retention={"DAILY": 3600})
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    if retention:
        board.update(retention={"DAILY": retention * 3600})
    else:
        board.update(mask=["retention"])
    house.clock.now = at("2026-03-11T02:00")
    keeper.round()
    assert board.windows() == [(TODAY, "ARCHIVED", 1)]
    assert all(23 * 3600 < left <= 24 * 3600 for left in board.lifetimes(TODAY))


def test_a_shorter_retention_holds_for_windows_that_there_are(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="DAILY", grace=0)
    board.submit("ann", 1)
    keeper = house.new_keeper()
    house.clock.now = at("2026-03-11T02:00")
    keeper.round()
    board.update(retention={"DAILY": 3600})
    keeper.round()
    assert board.windows() == []
    assert house.found(f"{board.key}:{TODAY}") == []
