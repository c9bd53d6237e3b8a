"""In which order journaled calls may be under way to Redis at once."""

from collections.abc import Iterable, Iterator
from typing import Final

from tallyboard_server.redis.calls import ScriptCall

# A producer's ring takes no sequence that is so far behind another one (see frame.lua).
_RING: Final = 256


def waves(calls: Iterable[ScriptCall]) -> Iterator[list[ScriptCall]]:
    """The calls in their order, in groups: each has to be applied whole before the next is sent.

    A call may have to be sent again, behind others of its group: of every producer, a group holds
    only sequences that its ring takes in any order.
    """
    wave: list[ScriptCall] = []
    spans: dict[str, tuple[int, int]] = {}
    for call in calls:
        found = _spans(call)
        together = _joined(spans, found)
        if wave and any(last - first >= _RING for first, last in together.values()):
            yield wave
            wave, together = [], found
        wave.append(call)
        spans = together
    if wave:
        yield wave


def _spans(call: ScriptCall) -> dict[str, tuple[int, int]]:
    """By ring, the first and the last sequence that the call has of it."""
    spans: dict[str, tuple[int, int]] = {}
    for part in call.tokens.values():
        if part.token is not None and part.token.kind == "p":
            sequence = int(part.token.sequence)
            spans = _joined(spans, {part.token.key: (sequence, sequence)})
    return spans


def _joined(
    spans: dict[str, tuple[int, int]], more: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    joined = dict(spans)
    for ring, (first, last) in more.items():
        held = spans.get(ring, (first, last))
        joined[ring] = min(first, held[0]), max(last, held[1])
    return joined
