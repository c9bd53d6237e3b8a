"""What the script that submits scores has to know of a board in one partition."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from tallyboard_server.leaderboards.model import Leaderboard, TieBreak
from tallyboard_server.redis.keys import fence_key, window_keys, windows_key
from tallyboard_server.redis.scores import Plan


class Target(NamedTuple):
    """One window of a submission, as submit.lua takes it.

    Attributes:
        window: its id.
        lives: how long its data is kept; "" is for ever.
        mode: what the script does about the window's state.
    """

    window: str
    lives: Any
    mode: str


def make_plan(board: Leaderboard, partition: int, targets: Iterable[Target]) -> Plan:
    """The plan of submissions to these windows, in this partition."""
    keys = [fence_key(partition, board.board_key), windows_key(partition, board.board_key)]
    described: list[Any] = []
    for target in targets:
        keys += window_keys(partition, board.board_key, target.window)[:5]
        described += (target.window, target.lives, target.mode)
    return Plan(
        partition=partition,
        tenant=board.tenant,
        leaderboard_id=board.leaderboard_id,
        board_key=board.board_key,
        keys=tuple(keys),
        head=(
            str(board.revision),
            "d" if board.is_descending else "a",
            "e" if board.tie_break is TieBreak.EARLIEST else "m",
            board.update_policy.value[0],
        ),
        most=board.max_entries,
        windows=tuple(described),
        policy=board.update_policy.value[0],
        descending=board.is_descending,
    )
