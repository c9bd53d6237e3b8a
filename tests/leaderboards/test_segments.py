"""A board in two segments or sixteen answers what one in a single one does; and a hot member."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import pytest
import redis

from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.leaderboards.calls import Caller, Clock, Refused, new_request_id, stream_batch
from tests.leaderboards.model import ALL_TIME, Board, Definition, Done, Item, Row

_SEGMENTS = (1, 2, 16)
_THREADS = 32
_BOTH = pytest.mark.parametrize("sort_order", ["DESCENDING", "ASCENDING"])


def _in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What these jobs give that begin at once, each in a thread of its own."""
    start = threading.Barrier(len(jobs), timeout=30)

    def run(job: Callable[[], Any]) -> Any:
        start.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def _pages(page: Callable[[str], Any]) -> Iterator[Row]:
    token = ""
    while True:
        found = page(token)
        yield from found.rows
        token = found.token
        if not token:
            return


@pytest.mark.parametrize(
    ("sort_order", "tie_break", "distinct"),
    [("DESCENDING", "EARLIEST", 40), ("ASCENDING", "MEMBER_ID", 2_000)],
)
def test_large_boards(
    caller: Caller, clock: Clock, sort_order: str, tie_break: str, distinct: int
) -> None:
    chance, size = random.Random(7), 2_000
    moments = [clock.now - chance.randrange(300) for _ in range(size)]
    items = [
        Item(f"m{number}", float(chance.randrange(distinct)), b"%d" % number, moment)
        for number, moment in enumerate(moments)
    ]
    board = Board(Definition(sort_order, tie_break=tie_break))
    board.submit(zip(items, moments, strict=True))
    places = [0, 1, 63, 64, 65, chance.randrange(size), size - 65, size - 1, size, size + 5]
    for segments in _SEGMENTS:
        name = f"b{segments}"
        caller.create(name, Definition(sort_order, tie_break=tie_break, segments=segments))
        caller.batch([(name, item) for item in items])
        # Dense ranks first: their index is built in steps.
        for method in ("DENSE", "COMPETITION", "ORDINAL"):
            _check_lists(caller, name, board.rows(ALL_TIME, method), method)
        rows = board.rows(ALL_TIME)
        for skip in places:
            ahead = caller.page(name, "all", size=3, skip=skip)
            assert ahead.rows == rows[skip : skip + 3]
            back = caller.page(name, "all", size=3, skip=skip, reverse=True)
            assert back.rows == rows[::-1][skip : skip + 3]
        for row in (rows[0], rows[-1], rows[size // 2]):
            around = caller.around(name, "all", row.member, 100)
            expected = board.around_member(ALL_TIME, row.member, 100, "ORDINAL")
            assert (around.rows, around.rank) == expected
        percentiles = [0.0, 12.5, 33.3, 99.9, 100.0]
        sums, mean = caller.stats(name, "all", percentiles)
        assert sums == board.sums(ALL_TIME, percentiles)._replace(mean=None)
        assert mean == pytest.approx(sum(item.score for item in items) / size, rel=1e-12)


def _check_lists(caller: Caller, name: str, rows: list[Row], method: str) -> None:
    """Compares what lists a whole board, and a part of it, with all its rows."""
    last = rows[-1]
    assert caller.get(name, "all", last.member, method)[0] == last
    listed = _pages(lambda token: caller.page(name, "all", method, size=999, token=token))
    assert list(listed) == rows
    chosen = random.Random(5).sample(rows, 300)
    assert caller.batch_get(name, "all", [row.member for row in chosen], method)[0] == chosen
    bounds = sorted((chosen[0].score, chosen[1].score))
    listed = _pages(
        lambda token: caller.by_score(name, "all", *bounds, method, size=500, token=token)
    )
    assert list(listed) == [row for row in rows if bounds[0] <= row.score <= bounds[1]]


def test_dense_ranks_among_many_distinct_scores(caller: Caller, clock: Clock) -> None:
    size = 12_000  # more than a page of the index, in each segment
    caller.create("b", Definition(segments=2))
    for start in range(0, size, 6_000):
        numbers = range(start, start + 6_000)
        caller.batch([("b", Item(f"m{number}", float(number // 2 * 2))) for number in numbers])
    assert caller.get("b", "all", "m0", "DENSE")[0].rank == size // 2
    assert caller.get("b", "all", "m10000", "DENSE")[0].rank == 1000
    caller.submit("b", Item("m0", 5000.0))  # nobody but m1 has 0 now, and 5000 was there
    assert caller.get("b", "all", "m1", "DENSE")[0].rank == size // 2
    caller.delete("b", "m1")
    last = caller.page("b", "all", "DENSE", size=1, reverse=True).rows[0]
    assert (last.score, last.rank) == (2.0, size // 2 - 1)


@pytest.mark.parametrize("segments", _SEGMENTS)
@pytest.mark.parametrize("tie_break", ["EARLIEST", "MEMBER_ID"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("change", ["deleted", "best", "worst", "as good, and later"])
def test_a_page_follows_the_place_of_the_last_entry(
    caller: Caller, clock: Clock, segments: int, tie_break: str, reverse: bool, change: str
) -> None:
    board = Board(Definition("DESCENDING", "LATEST", tie_break, segments))
    caller.create("b", board.definition)
    items = [Item(f"m{number}", float(number // 4), b"", clock.now) for number in range(16)]
    board.submit((item, clock.now) for item in items)
    caller.batch([("b", item) for item in items])
    clock.now += 1
    token = ""
    rows = board.rows(ALL_TIME)[:: -1 if reverse else 1]
    while rows:
        page = caller.page("b", "all", size=2, token=token, reverse=reverse)
        assert page.rows == rows[:2]
        last, token = page.rows[-1], page.token
        if change == "deleted":
            board.remove(last.member)
            caller.delete("b", last.member)
        else:
            score = {"best": 99.0, "worst": -99.0}.get(change, last.score)
            board.submit([(Item(last.member, score), clock.now)])
            caller.submit("b", Item(last.member, score))
        rows = board.behind(ALL_TIME, last, "ORDINAL", reverse=reverse)
        if not token:  # there was nothing more when that was said
            break


@pytest.mark.parametrize("segments", _SEGMENTS)
@pytest.mark.parametrize("way", ["batch", "stream"])
def test_a_batch_that_arrives_over_midnight(
    caller: Caller, clock: Clock, segments: int, way: str
) -> None:
    board = Board(Definition("DESCENDING", "SUM", segments=segments))
    caller.create("b", board.definition)
    clock.to_eve(3)  # each score of a batch arrives a microsecond after the one before
    items = [Item(f"m{number % 6}", 1.0, b"%d" % number) for number in range(10)]
    if way == "batch":
        caller.batch([("b", item) for item in items])
    else:
        caller.stream([stream_batch("ann", 1, [("b", item) for item in items])])
    board.submit((item, clock.now + index) for index, item in enumerate(items))
    assert [len(board.ordered(period)) for period in board.windows] == [6, 3, 6]
    for period in board.windows:
        assert caller.page("b", period.window).rows == board.rows(period)


@pytest.mark.parametrize("policy", ["BEST", "LATEST", "SUM"])
def test_many_batches_of_a_stream(caller: Caller, clock: Clock, policy: str) -> None:
    chance = random.Random(3)
    boards = {
        f"b{segments}": Board(Definition("DESCENDING", policy, segments=segments))
        for segments in _SEGMENTS
    }
    batches = []
    for sequence in range(1, 61):
        items = [
            (
                chance.choice(list(boards)),
                Item(
                    f"m{chance.randrange(30)}",
                    float(chance.randrange(-9, 9)),
                    b"%d" % sequence,
                    clock.now - chance.randrange(9),
                ),
            )
            for _ in range(chance.randrange(1, 100))
        ]
        batches.append(stream_batch("ann", sequence, items))
        for name, item in items:
            boards[name].submit([(item, item.moment or 0)])
    for name, board in boards.items():
        caller.create(name, board.definition)
    assert caller.stream(batches) == {}
    assert caller.stream(batches[10:]) == {}  # as after a broken stream
    for name, board in boards.items():
        for method in ("ORDINAL", "DENSE"):
            assert caller.page(name, "all", method).rows == board.rows(ALL_TIME, method)


@pytest.fixture
def redis_client(stores: tuple[EmbeddedRedis, EmbeddedPostgres]) -> Iterator[redis.Redis]:
    """A connection to Redis."""
    with closing(redis.Redis.from_url(stores[0].url)) as client:
        yield client


def _looks(client: redis.Redis) -> int:
    """How often submissions have looked at entries, once a call of the script and window."""
    return int(client.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"])


@_BOTH
@pytest.mark.parametrize("policy", ["BEST", "SUM"])
@pytest.mark.parametrize("segments", [1, 16])
def test_a_hot_member(
    caller: Caller, clock: Clock, sort_order: str, policy: str, segments: int
) -> None:
    caller.create("b", Definition(sort_order, policy, segments=segments))
    each, sign = 20, 1 if sort_order == "DESCENDING" else -1

    def job(thread: int) -> list[tuple[int, list[Done]]]:
        sizes = [number * _THREADS + thread + 1 for number in range(each)]
        items = [Item("ann", float(sign * size), b"%d" % size) for size in sizes]
        return [(size, caller.submit("b", i)[0]) for size, i in zip(sizes, items, strict=True)]

    found = _in_threads([lambda thread=thread: job(thread) for thread in range(_THREADS)])
    for window in range(2):
        answers = [
            [_Answer.of(size, results[window], sign) for size, results in one] for one in found
        ]
        for one in answers:  # what one caller is told never goes back
            assert [answer.score for answer in one] == sorted(answer.score for answer in one)
        _check_order([answer for one in answers for answer in one], policy)
    entry, _, _ = caller.get("b", "all", "ann")
    sizes = range(1, each * _THREADS + 1)
    assert sign * entry.score == (sizes[-1] if policy == "BEST" else sum(sizes))
    if policy == "BEST":
        assert entry.metadata == b"%d" % sizes[-1]


class _Answer(NamedTuple):
    """One answer to a caller: what it submitted, and the scores before (0: none) and now."""

    size: int
    before: float
    score: float

    @classmethod
    def of(cls, size: int, done: Done, sign: int) -> "_Answer":
        """The answer of a window, with the better scores the greater ones."""
        assert done.score is not None
        assert done.improved == (done.score != done.previous_score)
        return cls(size, sign * (done.previous_score or 0.0), sign * done.score)


def _check_order(answers: list[_Answer], policy: str) -> None:
    """Checks that the answers are those of some order in which the submissions were applied."""
    for size, before, score in answers:
        assert score == (max(before, size) if policy == "BEST" else before + size)
    changes = sorted((before, score) for _, before, score in answers if score != before)
    reached = [0.0, *(score for _, score in changes)]
    assert [before for before, _ in changes] == reached[:-1]
    assert {answer.before for answer in answers} <= set(reached)


@pytest.mark.parametrize("policy", ["BEST", "SUM"])
def test_submissions_that_wait_together_are_one_operation(
    caller: Caller, clock: Clock, redis_client: redis.Redis, policy: str
) -> None:
    caller.create("b", Definition("DESCENDING", policy))
    caller.submit("b", Item("ann", 1.0))
    jobs = [lambda: caller.submit("b", Item("ann", 1.0))[0]] * _THREADS
    before = _looks(redis_client)
    # Redis answers nobody for a while that is shorter than the server's patience.
    redis_client.client_pause(600)
    answers = _in_threads(jobs)
    calls = (_looks(redis_client) - before) / 2  # there are two windows
    assert calls <= _THREADS / 4, f"{calls} calls for {_THREADS} submissions"
    score = 1.0 if policy == "BEST" else 1.0 + _THREADS
    assert max(results[0].score or 0.0 for results in answers) == score
    assert caller.get("b", "all", "ann")[0].score == score


def _outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except Refused as error:
        return error.reason
    return "OK"


@pytest.mark.parametrize("segments", [1, 2, 16])
def test_a_sum_out_of_range(caller: Caller, clock: Clock, segments: int) -> None:
    caller.create("b", Definition("DESCENDING", "SUM", segments=segments))
    caller.submit("b", Item("ann", 1.5e308, b"first"))
    assert _outcome(lambda: caller.submit("b", Item("ann", 1e308))) == "SCORE_OUT_OF_RANGE"
    request_id = new_request_id()
    for duplicate in (False, True):
        found = caller.batch(
            [("b", Item("bob", 1.0)), ("b", Item("ann", 1e308)), ("b", Item("cat", 2.0))],
            request_id,
        )
        assert (list(found[0]), found[1]) == ([1], duplicate)
    batch = stream_batch("eve", 1, [("b", Item("ann", 1e308)), ("b", Item("dan", 3.0))])
    assert caller.stream([batch]) == {(1, 0): "SCORE_OUT_OF_RANGE"}
    entries = {row.member: row.score for row in caller.page("b", "all").rows}
    assert entries == {"ann": 1.5e308, "dan": 3.0, "cat": 2.0, "bob": 1.0}
    assert caller.submit("b", Item("ann", -1e308))[0][0].score == 5e307
    assert caller.get("b", "all", "ann")[0].metadata == b""


def test_a_sum_out_of_range_fails_nobody_else(caller: Caller, clock: Clock) -> None:
    caller.create("b", Definition("DESCENDING", "SUM"))

    def job(thread: int) -> list[str]:
        score, name = (1e308, "ann") if thread % 4 == 0 else (1.0, f"m{thread}")
        return [_outcome(lambda: caller.submit("b", Item(name, score))) for _ in range(5)]

    found = _in_threads([lambda thread=thread: job(thread) for thread in range(_THREADS)])
    anns = [reason for one in found[::4] for reason in one]
    assert {reason for i, one in enumerate(found) if i % 4 for reason in one} == {"OK"}
    assert sorted(set(anns)) == ["OK", "SCORE_OUT_OF_RANGE"]
    assert anns.count("OK") == 1
    entries = {row.member: row.score for row in caller.page("b", "all").rows}
    assert entries.pop("ann") == 1e308
    assert set(entries.values()) == {5.0}


def test_the_mean_survives_large_scores(caller: Caller, clock: Clock) -> None:
    caller.create("b", Definition("DESCENDING", "LATEST"))
    for score in (-1.7e308, 1.7e308, 1e17, 0.5):
        caller.submit("b", Item("ann", score))
    assert caller.stats("b", "all", [])[1] == 0.5
    caller.submit("b", Item("bob", 1.7e308))
    caller.submit("b", Item("cat", 1.7e308))
    assert caller.stats("b", "all", [])[1] == pytest.approx(1.7e308 / 3 * 2, rel=1e-12)
    caller.delete("b", "bob")
    caller.delete("b", "cat")
    assert caller.stats("b", "all", [])[1] == 0.5


def test_percentiles_of_entries_find_the_entries(caller: Caller, clock: Clock) -> None:
    caller.create("b", Definition())
    for size in range(1, 60):
        caller.submit("b", Item(f"m{size}", float(size)))
        members = [f"m{number}" for number in range(1, size + 1)]
        rows, percentiles, _, _ = caller.batch_get("b", "all", members)
        sums, _ = caller.stats("b", "all", percentiles)
        assert sums.percentile_scores == [row.score for row in rows]
