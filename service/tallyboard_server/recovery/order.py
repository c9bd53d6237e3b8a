"""In which order journaled calls may be under way to Redis at once."""

from collections.abc import Iterable, Iterator

from tallyboard_server.redis.calls import LINK_RING, PRODUCER_RING, ScriptCall

# By whether it is a link's, and its name: the first and the last sequence.
_Spans = dict[tuple[bool, str], tuple[int, int]]


def waves(calls: Iterable[ScriptCall]) -> Iterator[list[ScriptCall]]:
    """The calls in their order, in groups: each has to be applied whole before the next is sent.

    A call may have to be sent again, behind others of its group: of every producer and every link,
    a group holds only sequences that its ring takes in any order.
    """
    wave: list[ScriptCall] = []
    spans: _Spans = {}
    for call in calls:
        found = _spans(call)
        together = _joined(spans, found)
        if wave and any(
            last - first >= (LINK_RING if is_link else PRODUCER_RING)
            for (is_link, _), (first, last) in together.items()
        ):
            yield wave
            wave, together = [], found
        wave.append(call)
        spans = together
    if wave:
        yield wave


def _spans(call: ScriptCall) -> _Spans:
    """By ring, the first and the last sequence that the call has of it."""
    spans: _Spans = {}
    if call.token is not None:
        spans[True, call.token.link] = (call.token.sequence, call.token.sequence)
    for part in call.tokens.values():
        if part.token is not None and part.token.kind == "p":
            sequence = int(part.token.sequence)
            spans = _joined(spans, {(False, part.token.key): (sequence, sequence)})
    return spans


def _joined(spans: _Spans, more: _Spans) -> _Spans:
    joined = dict(spans)
    for ring, (first, last) in more.items():
        held = spans.get(ring, (first, last))
        joined[ring] = min(first, held[0]), max(last, held[1])
    return joined
