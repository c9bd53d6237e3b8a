"""The soak itself: what it draws, and that its checks find what is lost or counted twice."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.faults.ledger import Ledger
from tests.faults.proxy import Faults, together
from tests.faults.soak.actions import ACTIONS
from tests.faults.soak.check import differences, settle
from tests.faults.soak.client import read_notes
from tests.faults.soak.mutations import MUTATIONS, Mutation, MutationError, planted
from tests.faults.soak.runs import Plan, blocks, parse_seeds
from tests.faults.soak.schedule import KINDS, Schedule, draw
from tests.faults.soak.stage import Stage
from tests.faults.soak.writers import Writers
from tests.waiting import wait_for

_PREFIX: Final = "planted:"
_CALM: Final = Schedule(
    seed=0,
    durability="fsynced",
    faults=(),
    counters=("batch", "once"),
    scores=("many",),
    has_client=True,
    stops_early=False,
)
_COUNTER: Final = f"{_PREFIX}once0-0"

#: Plants a difference on a stage and gives what takes it away again.
Plant = Callable[[Stage], Callable[[], object]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage("fsynced") as stage:
        yield stage


@pytest.fixture(scope="module")
def writers(stage: Stage) -> Writers:
    """Clients of each sort that have written without any fault, and are done."""
    writers = Writers(stage, _CALM, _PREFIX)
    writers.start()
    client = writers.client
    assert client is not None
    writers.begin_season(1.0)
    wait_for(lambda: writers.acknowledged > 60, "writes")
    wait_for(lambda: client.notes.acknowledged, "writes of the client process")
    client.kill()
    client.start(goes_on=True)
    wait_for(lambda: writers.acknowledged > 200, "more writes")
    writers.finish()
    return writers


def test_nothing_is_wrong_without_faults(stage: Stage, writers: Writers) -> None:
    assert (settle(stage), writers.problems) == ([], [])
    assert differences(stage, writers, _PREFIX) == []
    assert writers.updates > 200
    assert all(count > 0 for count in writers.counters.ledger.sure.values())


def test_a_client_that_goes_on_for_a_dead_one_knows_all_its_batches(writers: Writers) -> None:
    client = writers.client
    assert client is not None
    assert max(client.notes.batches) == client.notes.acknowledged


def _in_redis(change: int) -> Plant:
    def plant(stage: Stage) -> Callable[[], object]:
        keys = list(stage.redis.command("KEYS", f"*:c:7:default:{_COUNTER}"))
        stage.redis.command("INCRBY", keys[0], change)
        return lambda: stage.redis.command("INCRBY", keys[0], -change)

    return plant


def _score_in_redis(stage: Stage) -> Callable[[], object]:
    """A member of a ranking is not in it any more."""
    (key,) = _keys_of_most_members(stage)
    ((member, score),) = stage.redis.command("ZRANGE", key, 0, 0, "WITHSCORES")
    stage.redis.command("ZREM", key, member)
    return lambda: stage.redis.command("ZADD", key, score, member)


def _keys_of_most_members(stage: Stage) -> list[bytes]:
    keys = list(stage.redis.command("KEYS", "{tb:*}:z:*"))
    return sorted(keys, key=lambda key: stage.redis.command("ZCARD", key))[-1:]


def _in_postgres(query: str, undo: str) -> Plant:
    def plant(stage: Stage) -> Callable[[], object]:
        stage.sql(query)
        return lambda: stage.sql(undo)

    return plant


_WHERE: Final = f"WHERE counter = '{_COUNTER}' RETURNING 1"
_ENTRY: Final = (
    "WHERE (window_id, member) = (SELECT window_id, member FROM tallyboard.leaderboard_entries"
    " JOIN tallyboard.leaderboard_windows USING (window_id) WHERE board_key NOT IN"
    " (SELECT board_key FROM tallyboard.leaderboard_windows WHERE kind = 'season')"
    " ORDER BY 1, 2 LIMIT 1) RETURNING 1"
)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (_in_redis(-1), rf"{_COUNTER} is \d+, acknowledged was \d+"),
        (_in_redis(+1), rf"{_COUNTER} is \d+, acknowledged was \d+"),
        (_score_in_redis, r".*: None instead of Score\(.*"),
        (
            _in_postgres(
                f"UPDATE tallyboard.counters SET shards_value = shards_value + 1 {_WHERE}",
                f"UPDATE tallyboard.counters SET shards_value = shards_value - 1 {_WHERE}",
            ),
            rf"{_COUNTER} is \d+ in Redis and \d+ in Postgres",
        ),
        (
            _in_postgres(
                f"UPDATE tallyboard.leaderboard_entries SET score = score + 1 {_ENTRY}",
                f"UPDATE tallyboard.leaderboard_entries SET score = score - 1 {_ENTRY}",
            ),
            r".* in Redis and Score\(.* in Postgres",
        ),
        (
            _in_postgres(
                "INSERT INTO tallyboard.journal_rejected (journal_id, partition, reason, batch)"
                " VALUES (1, 2, 'none', '') RETURNING 1",
                "DELETE FROM tallyboard.journal_rejected RETURNING 1",
            ),
            "rejected by the journal: .*",
        ),
    ],
    ids=["lost", "doubled", "score lost", "postgres", "score in postgres", "rejected"],
)
def test_a_planted_difference_is_found_and_named(
    stage: Stage, writers: Writers, plant: Plant, found: str
) -> None:
    undo = plant(stage)
    try:
        wrong = differences(stage, writers, _PREFIX)
    finally:
        undo()
    assert [each for each in wrong if re.fullmatch(found, each, re.S)], wrong
    assert differences(stage, writers, _PREFIX) == []


@pytest.mark.parametrize(
    ("value", "is_wrong"), [(9, True), (10, False), (12, False), (15, False), (16, True)]
)
def test_a_count_must_be_between_what_is_sure_and_what_is_possible(
    value: int, is_wrong: bool
) -> None:
    ledger = Ledger()
    ledger.counted("ann", 10)
    ledger.unknown("ann", 5)
    assert ledger.wrong({"ann": value}) == ({"ann": (value, 10, 15)} if is_wrong else {})


def test_a_counter_that_is_missing_is_wrong() -> None:
    ledger = Ledger()
    ledger.counted("ann", 1)
    assert ledger.wrong({}) == {"ann": (0, 1, 1)}


def test_what_a_client_had_not_seen_acknowledged_is_not_known(tmp_path: Path) -> None:
    lines = [{"sequence": s, "deltas": {"ann": s}} for s in (1, 2)]
    path = tmp_path / "ledger"
    path.write_text("".join(json.dumps(x) + "\n" for x in [*lines, {"acknowledged": 1}]))
    assert read_notes(path) == ({1: {"ann": 1}, 2: {"ann": 2}}, 1, [])


def test_a_seed_gives_the_same_schedule_each_time() -> None:
    assert [draw(seed, "fsynced") for seed in range(50)] == [
        draw(seed, "fsynced") for seed in range(50)
    ]


def test_every_kind_of_fault_is_drawn_and_wipes_only_where_they_are_survived() -> None:
    drawn = {
        level: {fault.kind for seed in range(400) for fault in draw(seed, level).faults}
        for level in ("fsynced", "journaled")
    }
    assert drawn["journaled"] == set(KINDS)
    assert drawn["fsynced"] == {kind for kind in KINDS if not kind.journaled}
    assert ACTIONS.keys() == {kind.name for kind in KINDS}


def test_faults_of_a_line_add_up() -> None:
    several = (Faults(delay=0.1, piece=7), Faults(mute=True), Faults(delay=0.2))
    assert together(several) == Faults(delay=0.2, piece=7, mute=True)
    assert together(()) == Faults()


def test_seeds_are_read_and_shared_out_by_level() -> None:
    seeds = parse_seeds("1-14,7,99")
    assert seeds == (*range(1, 15), 99)
    assert blocks(Plan(seeds, "both", 0.0)) == [
        ("fsynced", (2, 4, 6, 8, 10, 12, 14)),
        ("journaled", (1, 3, 5, 7, 9, 11, 13, 99)),
    ]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_bug_can_be_planted(mutation: Mutation) -> None:
    with planted(mutation) as folder:
        assert mutation.new in (folder / "tallyboard_server" / mutation.file).read_text()


def test_a_bug_whose_text_is_not_there_is_refused() -> None:
    nowhere = Mutation("none", "redis/lua/frame.lua", "no such text", "", "fsynced", ())
    with pytest.raises(MutationError, match="0 times"), planted(nowhere):
        pass
