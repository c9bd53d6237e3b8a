"""What must hold when all faults are lifted: ledger, Redis and Postgres agree to the unit."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import grpc

from tallyboard.v1 import operations_pb2 as pb
from tallyboard.v1 import operations_pb2_grpc
from tests.faults.ledger import TRANSIENT, Service, read, retried, stub_of
from tests.faults.score_ledger import Score, Standings
from tests.faults.soak.actions import verify
from tests.faults.soak.season import NAME
from tests.faults.soak.stage import Stage
from tests.faults.soak.writers import Writers

OPERATIONS: Final[Service] = operations_pb2_grpc.OperationsServiceStub
SETTLE_TIMEOUT: Final = 120.0
_ARCHIVE_TIMEOUT: Final = 20.0
_JOURNAL_TIMEOUT: Final = 40.0
_CALL_TIMEOUT: Final = 5.0
_TICK: Final = 0.05
_MOST_SHOWN: Final = 5

_COUNTERS: Final = "SELECT counter, value FROM tallyboard.counters WHERE starts_with(counter, %s)"
_ENTRIES: Final = """
    SELECT leaderboard_id, "window", member, score, metadata, tallyboard.micros(e.updated_at)
    FROM tallyboard.leaderboard_entries AS e
    JOIN tallyboard.leaderboard_windows USING (window_id)
    JOIN tallyboard.leaderboards USING (board_key)
    WHERE starts_with(leaderboard_id, %s) AND deleted_at IS NULL
"""
_ARCHIVED: Final = """
    SELECT count(*) FROM tallyboard.leaderboard_windows AS w
    JOIN tallyboard.leaderboards USING (board_key)
    WHERE starts_with(leaderboard_id, %s) AND w."window" = %s AND w.state = 'ARCHIVED'
"""
_JOURNALED: Final = "SELECT count(*) FROM tallyboard.journal"
_REJECTED: Final = "SELECT partition, reason, batch FROM tallyboard.journal_rejected LIMIT 5"


def settle(stage: Stage) -> list[str]:
    """Waits until the service says that all is well; what is still wrong after a minute."""
    deadline, wrong = time.monotonic() + SETTLE_TIMEOUT, ["the service was never asked"]
    while wrong and time.monotonic() < deadline:
        stage.keep_up()
        try:
            with stub_of(stage.target, OPERATIONS) as stub:
                wrong = _troubles(stub.GetStatus(pb.GetStatusRequest(), timeout=_CALL_TIMEOUT))
        except grpc.RpcError as error:
            wrong = [f"GetStatus: {error.code().name}"]
        time.sleep(_TICK)
    return [f"not well after {SETTLE_TIMEOUT:g} s: {each}" for each in wrong]


def _troubles(status: pb.GetStatusResponse) -> list[str]:
    found = [f"{store.name} is away: {store.detail}" for store in status.stores]
    found = [each for each, store in zip(found, status.stores, strict=True) if not store.available]
    states = [p.state for p in status.partitions if p.state != pb.PARTITION_STATE_OPEN]
    if states:
        names = {pb.PartitionState.Name(state) for state in states}
        found.append(f"{len(states)} partitions are {', '.join(sorted(names))}")
    return found


def differences(stage: Stage, writers: Writers, prefix: str) -> list[str]:
    """Everything that is not as it must be, in words.

    Args:
        stage: whose service is well again.
        writers: which have finished.
        prefix: of all names of this schedule.
    """
    counts = read(stage.target, writers.counters.ledger.names)
    standings = writers.scores.book.read(stage.target)
    wrong = _first(
        f"{name} is {found}, acknowledged was {least}" + f" to {most}" * (most > least)
        for name, (found, least, most) in writers.counters.ledger.wrong(counts).items()
    )
    wrong += [
        f"{board} {window}: {found} instead of {expected}"
        for board, window, found, expected in writers.scores.book.wrong_entries(standings)
    ]
    for season in writers.seasons:
        wrong += _first(f"season: {each}" for each in season.differences(stage.target))
    _checkpoint(stage.target)
    wrong += _archives(stage, writers, prefix)
    wrong += compare_counters(stage, prefix, counts)
    wrong += compare_entries(stage, prefix, standings)
    wrong += _journal(stage)
    return wrong + _verify(stage.target)


def _first(found: Iterable[str]) -> list[str]:
    """Some of them, and how many there are besides."""
    every = list(found)
    more = len(every) - _MOST_SHOWN
    return every[:_MOST_SHOWN] + [f"and {more} more of this kind"] * (more > 0)


def _checkpoint(target: str) -> None:
    retried(target, "Checkpoint", pb.CheckpointRequest(), OPERATIONS)


def compare_counters(stage: Stage, prefix: str, counts: Mapping[str, int]) -> list[str]:
    """Where Postgres has other counts than Redis."""
    found = {name: int(value) for name, value in stage.sql(_COUNTERS, prefix) if value is not None}
    names = sorted(
        name for name in found.keys() | counts.keys() if found.get(name, 0) != counts.get(name, 0)
    )
    return _first(
        f"{name} is {counts.get(name)} in Redis and {found.get(name)} in Postgres" for name in names
    )


def compare_entries(stage: Stage, prefix: str, standings: Standings) -> list[str]:
    """Where Postgres has other entries than Redis; seasons are left out."""
    found: dict[tuple[str, str], dict[str, Score]] = defaultdict(dict)
    for board, window, member, score, metadata, moment in stage.sql(_ENTRIES, prefix):
        found[board, window][member] = Score(board, member, score, bytes(metadata), moment)
    wrong = []
    for board in sorted({board for board, _ in standings}):
        # All windows of a board hold the same, and Postgres knows them by other names.
        live = [held for (name, _), held in standings.items() if name == board]
        stored = [held for (name, _), held in found.items() if name == board]
        if len(stored) != len(live) and live[0]:
            wrong.append(f"{board} has {len(live)} windows in Redis and {len(stored)} in Postgres")
        for held in stored:
            wrong += [
                f"{board}: {live[0].get(member)} in Redis and {held.get(member)} in Postgres"
                for member in sorted(live[0].keys() | held.keys())
                if live[0].get(member) != held.get(member)
            ]
    return _first(wrong)


def _archives(stage: Stage, writers: Writers, prefix: str) -> list[str]:
    """Every season that held anything is archived, with what it held."""
    wanted = sum(1 for season in writers.seasons if season.sums)
    deadline = time.monotonic() + _ARCHIVE_TIMEOUT
    while (archived := stage.sql(_ARCHIVED, prefix, NAME)[0][0]) < wanted:
        if time.monotonic() > deadline:
            return [f"{archived} of {wanted} seasons are archived"]
        time.sleep(_TICK)
    wrong = []
    for season in writers.seasons:
        found = {
            member: score
            for board, window, member, score, _, _ in stage.sql(_ENTRIES, season.board)
            if board == season.board and window == NAME
        }
        if found != season.sums:
            wrong.append(f"the archive of {season.board} has {found} instead of {season.sums}")
    return wrong


def _journal(stage: Stage) -> list[str]:
    """Nothing was rejected, and behind a checkpoint nothing waits."""
    deadline = time.monotonic() + _JOURNAL_TIMEOUT
    while waiting := stage.sql(_JOURNALED)[0][0]:
        if time.monotonic() > deadline:
            return [f"{waiting} batches stay in the journal"]
        _checkpoint(stage.target)
        time.sleep(_TICK)
    return [f"rejected by the journal: {row}" for row in stage.sql(_REJECTED)]


def _verify(target: str) -> list[str]:
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        try:
            with stub_of(target, OPERATIONS) as stub:
                return verify(stub)
        except grpc.RpcError as error:
            if error.code() not in TRANSIENT or time.monotonic() > deadline:
                return [f"Verify: {error.code().name} {error.details()}"]
        time.sleep(_TICK)
