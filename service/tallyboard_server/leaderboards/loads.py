"""Bringing a window back into Redis, as commands for whoever has a connection (see load.lua)."""

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

from tallyboard_server.leaderboards.model import Leaderboard, TieBreak
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import incarnation_key, window_keys, windows_key
from tallyboard_server.redis.scores import code_of

# Seconds that a part of a window stays if nobody goes on.
_UNFINISHED: Final = 3600
_MOMENT: Final = struct.Struct(">Q")
_SCORE: Final = struct.Struct(">d")
_SUM: Final = struct.Struct(">dd")
_SCALE: Final = 2.0**-32

Command = tuple[Any, ...]
#: An entry: member, score, moment (µs since the epoch) and metadata.
Values = tuple[str, float, int, bytes]


class WindowLoad:
    """One window on its way into one partition: `first`, `more` any number of times, and `last`.

    Each gives a command, which names the script by its hash: the script has to be there. The
    reply starts with b"ok", b"there" (somebody else has loaded the window) or b"fenced".

    Args:
        board: whose window.
        window: its id.
        partition: of the segment; only its entries may be added.
        is_open: whether it takes scores, or only imports.
    """

    def __init__(self, board: Leaderboard, window: str, partition: int, is_open: bool) -> None:
        self.partition = partition
        self._window = window
        self._state = b"o" if is_open else b"c"
        self._descending = board.is_descending
        self._earliest = board.tie_break is TieBreak.EARLIEST
        keys = window_keys(partition, board.board_key, window)
        self._names = (
            incarnation_key(partition),
            keys.ranking,
            keys.entries,
            windows_key(partition, board.board_key),
        )
        # Of the sum of all scores: what each step adds, and what rounding took from it.
        self._sums: list[float] = []

    def first(self, incarnation: str) -> Command:
        """Clears away what a load that was cut short has left."""
        return self._step(incarnation, _UNFINISHED, "first")

    def more(self, incarnation: str, entries: Sequence[Values]) -> Command:
        """Adds some entries; each at most once in a load."""
        parts: list[bytes] = []
        append, pack_moment, pack_score = parts.append, _MOMENT.pack, _SCORE.pack
        descending, earliest = self._descending, self._earliest
        for member, score, moment, metadata in entries:
            name, code = member.encode(), pack_moment(code_of(moment, descending))
            append(code + name if earliest else name)
            append(name)
            append(code + pack_score(score) + metadata)
        scores = [score * _SCALE for _, score, _, _ in entries]
        total = math.fsum(scores)
        scores.append(-total)
        self._sums += (total, math.fsum(scores))
        return self._step(incarnation, _UNFINISHED, "more", *parts)

    def last(self, incarnation: str, seconds: int) -> Command:
        """Makes it a window again, which ends in so many seconds (0: never)."""
        total = math.fsum(self._sums)
        rest = math.fsum([*self._sums, -total])
        return self._step(incarnation, seconds, self._state + _SUM.pack(total, rest))

    def _step(self, incarnation: str, seconds: int, what: bytes | str, *parts: bytes) -> Command:
        named = self._names
        head = ("EVALSHA", scripts.LOAD.sha, len(named), *named)
        return (*head, incarnation, self._window, seconds, what, *parts)
