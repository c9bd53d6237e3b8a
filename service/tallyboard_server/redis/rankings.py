"""Reads of rankings: entries of members, stretches of a ranking, and what the scripts answer."""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

from tallyboard_server.errors import TallyboardError
from tallyboard_server.redis import scripts
from tallyboard_server.redis.fences import Fences, closed
from tallyboard_server.redis.keys import WindowKeys, dirty_key, incarnation_key

_SUM: Final = struct.Struct(">dd")
_SUM_SCALE: Final = 2.0**32


@dataclass(frozen=True)
class Ranking:
    """One window's data in one partition, and how it is to be ranked.

    Attributes:
        method: "o" (ordinal), "c" (competition) or "d" (dense).
    """

    partition: int
    keys: WindowKeys
    descending: bool
    earliest: bool
    method: str = "o"

    def names(self) -> list[str]:
        """KEYS of the reading scripts."""
        own = self.keys
        return [
            incarnation_key(self.partition),
            own.ranking,
            own.entries,
            own.distinct,
            own.distinct_state,
        ]

    def rules(self) -> list[str]:
        """The first of ARGV of the reading scripts."""
        sort, tie = "d" if self.descending else "a", "e" if self.earliest else "m"
        return [sort, tie, self.method]


class Unbuilt(TallyboardError):
    """Dense ranks were asked for and their index isn't there: see distinct.lua."""


class Found(NamedTuple):
    """What entries.lua answered: one record (None: no entry), rank and position a member.

    `exists` says whether the window was ever written to.
    """

    exists: bool
    size: int
    records: list[bytes | None]
    ranks: list[int]
    positions: list[int]


class EntriesRead:
    """Members to look up in one ranking; reads that wait together become one call."""

    __slots__ = ("abandoned", "error", "found", "members", "on_done", "ranking")

    def __init__(
        self, ranking: Ranking, members: Sequence[str], on_done: Callable[[], object]
    ) -> None:
        self.ranking = ranking
        self.members = members
        self.on_done = on_done
        self.found: Found | None = None
        self.error: TallyboardError | None = None
        self.abandoned = False

    def fail(self, error: TallyboardError) -> None:
        """Ends the read with an error."""
        self.error = error
        self.on_done()


def check_reply(reply: list[Any], partition: int, fences: Fences) -> TallyboardError | None:
    """What is wrong with the answer of a reading script: another life, or an index to build."""
    expected = fences.expected(partition)
    if expected is None or reply[0] != expected.encode():
        return closed(partition)
    if reply[1] == b"unbuilt":
        return Unbuilt("the index of distinct scores is being built")
    return None


class Anchor(NamedTuple):
    """A place between two entries; see page.lua for the kinds."""

    kind: str
    score: float | int = 0
    element: bytes | str = b""


class Stretch(NamedTuple):
    """What page.lua answered.

    Attributes:
        meta: of the window; None if it was never written to.
        size: how many entries the window has.
        within: how many are within the bounds asked for.
        position: how many entries are before the anchor.
        start: how many are before the first one here.
        rank: the rank of what is, or would be, behind the anchor.
        elements: elements and scores, alternating.
    """

    meta: bytes | None
    size: int
    within: int
    position: int
    start: int
    rank: int
    elements: list[bytes]
    records: list[bytes]
    ranks: list[int]


def page_command(
    ranking: Ranking,
    anchor: Anchor,
    ahead: int,
    count: int,
    least: float | None = None,
    greatest: float | None = None,
) -> tuple[Any, ...]:
    """The call of page.lua for up to `ahead` entries before the anchor and `count` from it on."""
    names = ranking.names()
    return (
        "EVALSHA",
        scripts.PAGE.sha,
        len(names),
        *names,
        *ranking.rules(),
        anchor.kind,
        repr(anchor.score),
        anchor.element,
        ahead,
        count,
        "-inf" if least is None else repr(least),
        "+inf" if greatest is None else repr(greatest),
    )


def parse_stretch(reply: list[Any], partition: int, fences: Fences) -> Stretch | None:
    """A stretch; None when the anchor is a member that has no entry.

    Raises:
        Unavailable: the partition isn't the one we knew.
        Unbuilt: dense ranks want their index first.
    """
    error = check_reply(reply, partition, fences)
    if error is not None:
        raise error
    if reply[1] == b"missing":
        return None
    return Stretch(*reply[1:])


class Places(NamedTuple):
    """Where scores and elements would be: entries before each, and with a better score."""

    before: list[int]
    better: list[int]


def places_command(ranking: Ranking, anchors: Sequence[tuple[float, bytes]]) -> tuple[Any, ...]:
    """The call of places.lua for scores and elements; always by ordinal ranks."""
    names = ranking.names()
    flat = [part for score, element in anchors for part in (repr(score), element)]
    return ("EVALSHA", scripts.PLACES.sha, len(names), *names, *ranking.rules(), *flat)


def parse_places(reply: list[Any], partition: int, fences: Fences) -> Places:
    """The places of the anchors.

    Raises:
        Unavailable: the partition isn't the one we knew.
    """
    error = check_reply(reply, partition, fences)
    if error is not None:
        raise error
    return Places(reply[2], reply[3])


def better_scores_command(
    ranking: Ranking, score: float, after: str | None, count: int
) -> tuple[Any, ...]:
    """Reads distinct scores that are better than one, from the index, the smallest first.

    Args:
        after: the last one of the page before, as it was read.
    """
    key = ranking.keys.distinct
    if ranking.descending:
        return ("ZRANGEBYSCORE", key, f"({after or repr(score)}", "+inf", "LIMIT", 0, count)
    least = "-inf" if after is None else f"({after}"
    return ("ZRANGEBYSCORE", key, least, f"({score!r}", "LIMIT", 0, count)


def distinct_command(ranking: Ranking, incarnation: str, keep: int, step: int) -> tuple[Any, ...]:
    """The call of distinct.lua that builds one step of the index and keeps it `keep` seconds."""
    names = ranking.names()
    return ("EVALSHA", scripts.DISTINCT.sha, len(names), *names, incarnation, keep, step)


def trim_command(
    ranking: Ranking, incarnation: str, size: int, score: float, element: bytes
) -> tuple[Any, ...]:
    """The call of trim.lua for a segment that has `size` entries."""
    own = ranking.keys
    names = [*ranking.names(), dirty_key(ranking.partition), own.dirty]
    return (
        "EVALSHA",
        scripts.TRIM.sha,
        len(names),
        *names,
        *ranking.rules(),
        incarnation,
        size,
        repr(score),
        element,
    )


def parse_sum(meta: bytes | None) -> tuple[float, ...]:
    """The sum of a window's scores, times 2^-32, from its meta (see submit.lua): as addends."""
    return _SUM.unpack_from(meta, 1) if meta else ()


def mean_of(scaled_sums: Iterable[tuple[float, ...]], count: int) -> float:
    """The mean of scores from their sums in each segment, as `parse_sum` has them."""
    return math.fsum(chain.from_iterable(scaled_sums)) / count * _SUM_SCALE
