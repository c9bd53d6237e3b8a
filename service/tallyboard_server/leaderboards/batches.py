"""A number of submissions on their way to Redis: planned, sent, and sent again where need be.

What a batch is split into has to be the same when it comes again, whatever has changed by then, for
each piece is remembered by a token of its own: a piece is the scores of one partition among 2,000
consecutive submissions. What can't count at one time could at another, so the token's note says
which of the 2,000 were left out, and those are left out of every repeat.
"""

import base64
import math
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple

from tallyboard_server.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    OutOfRange,
    TallyboardError,
)
from tallyboard_server.names import are_plain, name_problem
from tallyboard_server.redis.keys import segment_of
from tallyboard_server.redis.operations import Part, Token, Write
from tallyboard_server.redis.scores import (
    Columns,
    Plan,
    Refusal,
    ScorePart,
    ScoresRefused,
    State,
    code_of,
    merged,
)

if TYPE_CHECKING:
    from tallyboard_server.leaderboards.routes import Route, Routes

CHUNK: Final = 2000
MAX_METADATA: Final = 2048
#: How often what Redis refused is planned anew and sent again.
ATTEMPTS: Final = 8
_PAUSE: Final = 0.05
# Why a submission may fail at one time and not at another, and the letter for it in notes.
_PASSING: Final = {
    "FIELD_INVALID": "f",
    "WINDOW_CLOSED": "w",
    "LEADERBOARD_NOT_FOUND": "n",
    "SCORE_OUT_OF_RANGE": "s",
}
_REASONS: Final = {letter: reason for reason, letter in _PASSING.items()}

TokenOf = Callable[[int, int], Token | None]


@dataclass
class Scores:
    """Submissions as parallel columns; None in `moments` is the time of arrival.

    `leaderboard_ids` and `moments` may have one item that holds for all; `metadata` may be empty.
    """

    leaderboard_ids: Sequence[str]
    members: Sequence[str]
    scores: Sequence[float]
    metadata: Sequence[bytes] = ()
    moments: Sequence[int | None] = (None,)

    def __len__(self) -> int:
        return len(self.members)


class _Item(NamedTuple):
    """One submission of a piece."""

    route: "Route"
    member: str
    score: float
    code: int
    metadata: bytes


@dataclass
class _Piece:
    """What one token covers: items, or (for many at once, of one board) columns."""

    partition: int
    chunk: int
    indexes: list[int] = field(default_factory=list)
    groups: dict[Plan, Columns] = field(default_factory=dict)

    @property
    def place(self) -> tuple[int, int]:
        """Partition and chunk, which its token is of."""
        return self.partition, self.chunk


class ScoreBatch:
    """Submissions that are sent together; each counts, or is among `failures`.

    Args:
        routes: finds boards and windows.
        scores: the submissions; names, scores and metadata may still be wrong.
        token_of: the token of a partition and chunk.
        is_import: whether windows that have closed take scores.

    Attributes:
        failures: by index, why a submission did not count; complete once the batch is over.
    """

    def __init__(
        self,
        routes: "Routes",
        tenant: str,
        scores: Scores,
        token_of: TokenOf,
        *,
        is_import: bool = False,
    ) -> None:
        self._routes = routes
        self._tenant = tenant
        self._scores = scores
        self._token_of = token_of
        self._is_import = is_import
        self._arrival = routes.clock()
        self._pieces: dict[Part, _Piece] = {}
        # By partition and chunk: submissions that might count at another moment, and why not now.
        self._left_out: dict[tuple[int, int], dict[int, str]] = {}
        self._to_trim: set[Route] = set()
        self.failures: dict[int, TallyboardError] = {}

    def prepare(self, deadline: float) -> Callable[[Write], None]:
        """Checks and plans everything; gives what adds the parts to a write.

        Raises:
            TallyboardError: nothing can be planned, because no store answers.
        """
        pieces = self._plan(deadline)
        return lambda write: self._add_parts(write, pieces)

    def send(self, deadline: float) -> bool:
        """Does it all: plans, sends, waits; tells whether all of it had been applied before.

        Where callers give moments, one chunk goes after the other: a refused one that is sent again
        behind the next could change the order of scores of the same member and moment.

        Raises:
            TallyboardError: none of it counted, or, with tokens, a repeat will complete it.
        """
        pieces = self._plan(deadline)
        rounds = [pieces]
        if any(moment is not None for moment in self._scores.moments):
            chunks = sorted({piece.chunk for piece in pieces})
            rounds = [[p for p in pieces if p.chunk == chunk] for chunk in chunks]
        duplicates: list[bool] = []
        for group in rounds:
            try:
                write = self._routes.send(partial(self._add_parts, pieces=group), deadline)
            except TallyboardError as error:
                if not duplicates or self._token_of(0, 0) is not None:
                    raise
                # What came before has counted, and must not come again.
                for piece in group:
                    self.failures.update(zip(piece.indexes, repeat(error)))
                continue
            duplicates.append(self.finish(write, deadline))
        return bool(duplicates) and all(duplicates)

    def _plan(self, deadline: float) -> list[_Piece]:
        pieces = self._fast_pieces(deadline)
        if pieces is None:
            pieces = self._pieces_of(self._good_indexes(), deadline)
        return pieces

    def finish(self, write: Write, deadline: float) -> bool:
        """Sends again what was refused, and waits; tells whether all of it had been applied before.

        Raises:
            TallyboardError: a part has to be sent again by the caller: its token makes it count
                once.
        """
        seen, total = write.seen, len(write.parts)
        self._recall(write)
        refused = [part for part in write.parts if isinstance(part.error, ScoresRefused)]
        self._fail_parts(part for part in write.parts if part not in refused)
        for attempt in range(ATTEMPTS):
            if not refused:
                break
            pause_before(attempt, deadline)
            try:
                again = self._retry(refused, attempt, deadline)
            except TallyboardError as error:
                self._fail(refused, error)
                break
            seen += again.seen
            self._recall(again)
            refused = [part for part in again.parts if isinstance(part.error, ScoresRefused)]
            self._fail_parts(part for part in again.parts if part not in refused)
        else:
            self._fail_parts(refused)
        for route in self._to_trim:
            self._routes.trim(route, deadline)
        return bool(total) and seen == total

    def _recall(self, write: Write) -> None:
        """Judges submissions of pieces that were applied before as they were judged then."""
        for part in write.parts:
            if not part.seen:
                continue
            piece = self._pieces[part]
            then = _read_note(part.note, piece.chunk)
            for index, reason in then.items():
                self.failures[index] = _was_left_out(reason)
            for index in self._left_out.get(piece.place, {}).keys() - then.keys():
                del self.failures[index]

    def _fail_parts(self, parts: Iterable[Part]) -> None:
        """Notes the errors of parts that failed for good."""
        for part in parts:
            if part.error is not None:
                self._fail((part,), part.error)

    def _fail(self, parts: Iterable[Part], error: TallyboardError) -> None:
        """Notes that parts failed, or raises: with a token the whole may come again."""
        for part in parts:
            if part.token is not None:
                raise error
            self.failures.update(zip(self._pieces[part].indexes, repeat(error)))

    def _retry(self, parts: Sequence[Part], attempt: int, deadline: float) -> Write:
        """Plans the submissions of refused parts anew, without those that can't count."""
        wanted: list[int] = []
        for part in parts:
            piece, refused = self._pieces[part], part.error
            assert isinstance(refused, ScoresRefused)
            dropped = self._learn(refused.refusals, piece, attempt, deadline)
            left_out = self._left_out.setdefault(piece.place, {})
            left_out.update((index, error.reason) for index, error in dropped.items())
            wanted += [index for index in piece.indexes if index not in dropped]
        pieces = self._pieces_of(wanted, deadline)
        # A piece of which nothing is left still has a token, which says so to a repeat.
        empty = {self._pieces[part].place for part in parts} - {piece.place for piece in pieces}
        pieces += [_Piece(*place) for place in empty]
        return self._routes.send(lambda write: self._add_parts(write, pieces), deadline)

    def _learn(
        self, refusals: Sequence[Refusal], piece: _Piece, attempt: int, deadline: float
    ) -> dict[int, TallyboardError]:
        """Acts on what Redis refused; gives the submissions that can't count."""
        dropped: dict[int, TallyboardError] = {}
        for refusal in refusals:
            if refusal.code == "s":
                for index in self._indexes_of(piece, refusal):
                    dropped[index] = OutOfRange(
                        "the sum of the member's scores would not be finite; it keeps its score",
                        reason="SCORE_OUT_OF_RANGE",
                    )
            else:
                self._routes.learn(refusal, attempt, deadline)
        self.failures |= dropped
        return dropped

    def _indexes_of(self, piece: _Piece, refusal: Refusal) -> list[int]:
        members = self._scores.members
        return [
            index
            for index in piece.indexes
            if members[index] == refusal.subject
            and self._board_id(index) == refusal.plan.leaderboard_id
        ]

    def _board_id(self, index: int) -> str:
        ids = self._scores.leaderboard_ids
        return ids[index] if len(ids) > 1 else ids[0]

    def _add_parts(self, write: Write, pieces: Iterable[_Piece]) -> None:
        for piece in pieces:
            token = self._token_of(piece.partition, piece.chunk)
            if token is not None and (left_out := self._left_out.get(piece.place)):
                token = token._replace(note=_make_note(left_out, piece.chunk))
            if token is None and not piece.indexes:
                continue
            part = ScorePart(write, piece.partition, piece.groups, token)
            self._pieces[part] = piece
            write.add(part)

    def _fast_pieces(self, deadline: float) -> list[_Piece] | None:
        """The pieces of many good scores for one board, now; None if they are not that simple."""
        given = self._scores
        if (
            len(given.leaderboard_ids) > 1
            or len(given.moments) > 1
            or given.moments[0] is not None
            or not math.isfinite(sum(given.scores))
            or not are_plain(given.members)
            or not are_plain(given.leaderboard_ids)
            or (given.metadata and max(map(len, given.metadata)) > MAX_METADATA)
        ):
            return None
        try:
            route = self._routes.route(
                self._tenant, given.leaderboard_ids[0], None, self._arrival, deadline
            )
        except TallyboardError:
            return None
        if route.segments > 1 or route.ends_at <= self._arrival + len(given):
            return None
        plan, first = route.plan(0), code_of(self._arrival, route.descending)
        step = -1 if route.descending else 1
        scores = [score + 0.0 for score in given.scores] if 0.0 in given.scores else given.scores
        pieces = []
        for chunk, start in enumerate(range(0, len(given), CHUNK)):
            stop = min(start + CHUNK, len(given))
            columns = Columns(
                list(given.members[start:stop]),
                array("d", scores[start:stop]),
                array("Q", range(first + step * start, first + step * stop, step)),
                list(given.metadata[start:stop]),
            )
            if len(set(columns.members)) < stop - start:
                columns = _merge_columns(plan, columns)
            piece = _Piece(route.partition(0), chunk, list(range(start, stop)), {plan: columns})
            pieces.append(piece)
        return pieces

    def _good_indexes(self) -> list[int]:
        """The submissions whose fields are right; the others become failures."""
        given = self._scores
        good = []
        for index, (member, score) in enumerate(zip(given.members, given.scores, strict=True)):
            error = _problem(self._board_id(index), member, score)
            if error is None and given.metadata and len(given.metadata[index]) > MAX_METADATA:
                error = _invalid("METADATA_TOO_LARGE", "metadata", "must be at most 2,048 bytes")
            if error is None:
                good.append(index)
            else:
                self.failures[index] = error
        return good

    def _pieces_of(self, indexes: Iterable[int], deadline: float) -> list[_Piece]:
        """The pieces of these submissions; those that no window takes become failures."""
        pieces: dict[tuple[int, int], _Piece] = {}
        found: dict[tuple[int, int], dict[Plan, list[_Item]]] = {}
        for index in indexes:
            try:
                item = self._item(index, deadline)
            except TallyboardError as error:
                if error.reason not in _PASSING and self._token_of(0, 0) is not None:
                    raise  # a store is away: it has to come again as a whole
                self.failures[index] = error
                if error.reason in _PASSING:
                    place = self._place(index, deadline)
                    self._left_out.setdefault(place, {})[index] = error.reason
                    pieces.setdefault(place, _Piece(*place))
                continue
            segment = segment_of(item.member, item.route.segments)
            place = (item.route.partition(segment), index // CHUNK)
            pieces.setdefault(place, _Piece(*place)).indexes.append(index)
            groups = found.setdefault(place, {})
            groups.setdefault(item.route.plan(segment), []).append(item)
        for place, piece in pieces.items():
            groups = found.get(place, {})
            piece.groups = {plan: _columns(plan, items) for plan, items in groups.items()}
        return list(pieces.values())

    def _place(self, index: int, deadline: float) -> tuple[int, int]:
        """Where a submission belongs that can't count now."""
        partition = self._routes.partition_of(
            self._tenant, self._board_id(index), self._scores.members[index], deadline
        )
        return partition, index // CHUNK

    def _item(self, index: int, deadline: float) -> _Item:
        given = self._scores
        moments = given.moments
        moment = moments[index] if len(moments) > 1 else moments[0]
        route = self._routes.route(
            self._tenant,
            self._board_id(index),
            moment,
            self._arrival + (index if moment is None else 0),
            deadline,
            is_import=self._is_import,
        )
        if route.needs_trim:
            self._to_trim.add(route)
        at = self._arrival + index if moment is None else moment
        metadata = given.metadata[index] if given.metadata else b""
        score = given.scores[index] + 0.0  # -0.0 is 0.0
        code = code_of(at, route.descending)
        return _Item(route, given.members[index], score, code, metadata)


def _make_note(left_out: Mapping[int, str], chunk: int) -> str:
    """What a token keeps of the submissions that its piece left out: by reason, one bit each."""
    bits: dict[str, int] = {}
    for index, reason in left_out.items():
        letter = _PASSING[reason]
        bits[letter] = bits.get(letter, 0) | 1 << (index - chunk * CHUNK)
    parts = [letter + _to_text(held) for letter, held in bits.items()]
    return "\n" + ",".join(parts) if parts else ""


def _to_text(bits: int) -> str:
    return base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()


def _read_note(note: str, chunk: int) -> dict[int, str]:
    """The submissions of a note, and why they were left out."""
    left_out = {}
    for part in filter(None, note[1:].split(",")):
        bits = int.from_bytes(base64.b64decode(part[1:]), "little")
        for i in range(bits.bit_length()):
            if bits >> i & 1:
                left_out[chunk * CHUNK + i] = _REASONS[part[0]]
    return left_out


def _was_left_out(reason: str) -> TallyboardError:
    """The error of a submission that did not count when its batch came first."""
    why = "it could not count when it came first"
    if reason == "FIELD_INVALID":
        return _invalid(reason, "occurred_at", why)
    if reason == "WINDOW_CLOSED":
        return FailedPrecondition(why, reason=reason)
    if reason == "LEADERBOARD_NOT_FOUND":
        return NotFound(why)
    return OutOfRange(why, reason=reason)


def pause_before(attempt: int, deadline: float) -> None:
    """Waits before what was refused is sent again: a change of a definition may take two steps.

    The first time (0) it does not wait: most often the change is over by then.
    """
    if attempt:
        time.sleep(max(0.0, min(_PAUSE * attempt, deadline - time.monotonic())))


def _columns(plan: Plan, items: Sequence[_Item]) -> Columns:
    columns = Columns(
        [item.member for item in items],
        array("d", [item.score for item in items]),
        array("Q", [item.code for item in items]),
        [item.metadata for item in items] if any(item.metadata for item in items) else [],
    )
    if len(set(columns.members)) < len(items):
        columns = _merge_columns(plan, columns)
    return columns


def _merge_columns(plan: Plan, columns: Columns) -> Columns:
    """One item a member, as if they had been applied one after the other."""
    places: dict[str, int] = {}
    scores, codes = array("d"), array("Q")
    metadata: list[bytes] = []
    rows = zip(
        columns.members,
        columns.scores,
        columns.codes,
        columns.metadata or repeat(b""),
        strict=False,
    )
    for member, score, code, data in rows:
        at = places.setdefault(member, len(scores))
        if at == len(scores):
            scores.append(score)
            codes.append(code)
            metadata.append(data)
        else:
            before = State(scores[at], codes[at], metadata[at])
            scores[at], codes[at], metadata[at] = merged(plan, before, State(score, code, data))
    return Columns(list(places), scores, codes, metadata if columns.metadata else [])


def _problem(leaderboard_id: str, member: str, score: float) -> TallyboardError | None:
    for name, text in (("leaderboard_id", leaderboard_id), ("member", member)):
        problem = name_problem(text)
        if problem:
            return _invalid("NAME_INVALID", name, problem)
    if not math.isfinite(score):
        return _invalid("SCORE_INVALID", "score", "must be a finite number")
    return None


def _invalid(reason: str, name: str, description: str) -> InvalidArgument:
    return InvalidArgument(reason, [FieldViolation(name, description)])
