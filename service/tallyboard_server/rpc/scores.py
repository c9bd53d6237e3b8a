"""Submissions: checked, from the contract's messages to the domain's, and what they did."""

from collections.abc import Iterable, Mapping

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.status_pb2 import ItemStatus
from tallyboard_server.errors import InvalidArgument, TallyboardError
from tallyboard_server.leaderboards.model import Submission
from tallyboard_server.leaderboards.windows import END_OF_MOMENTS, FIRST_MOMENT
from tallyboard_server.leaderboards.writes import SubmitResult
from tallyboard_server.names import name_problem
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.enums import WINDOW_KIND_NUMBERS
from tallyboard_server.rpc.stamps import MICROS
from tallyboard_server.rpc.status import item_status_of

_FIRST_SECOND = FIRST_MOMENT // MICROS
_LAST_SECOND = END_OF_MOMENTS // MICROS - 1
_FIELDS = pb.Submission.DESCRIPTOR


def submission(message: pb.Submission) -> Submission:
    """One score; paths in errors start at the message.

    Raises:
        InvalidArgument: NAME_INVALID, SCORE_INVALID, METADATA_TOO_LARGE or FIELD_INVALID.
    """
    leaderboard_id, member, score = message.leaderboard_id, message.member, message.score
    metadata = message.metadata
    # One look at what is nearly always right: this is done for every score.
    if name_problem(leaderboard_id) or name_problem(member) or score - score != 0:
        validation.check_name("leaderboard_id", leaderboard_id)
        validation.check_name("member", member)
        validation.check_score("score", score)
    if metadata:
        validation.check_metadata("metadata", metadata)
    occurred_at = None
    if message.HasField("occurred_at"):
        occurred_at = validation.moment(
            "occurred_at", message.occurred_at, _FIRST_SECOND, _LAST_SECOND
        )
    return Submission(leaderboard_id, member, score, metadata, occurred_at)


def error_within(path: str, error: TallyboardError) -> TallyboardError:
    """The same error, with fields of the submission under its path in the request."""
    if isinstance(error, InvalidArgument):
        return validation.within(path, error, _FIELDS)
    return error


def submit_response(submitted: SubmitResult) -> pb.SubmitScoreResponse:
    """What a submission did, filled in place as entries are."""
    response = pb.SubmitScoreResponse(duplicate=submitted.duplicate, journaled=submitted.journaled)
    add = response.results.add
    for result in submitted.windows:
        window = result.window
        add(
            window=window.window,
            kind=WINDOW_KIND_NUMBERS[window.kind],
            previous_score=result.previous_score,
            score=result.score,
            improved=result.improved,
            previous_rank=result.previous_rank,
            rank=result.rank,
        )
    return response


class Batch:
    """The submissions of a request, those that can't count set apart.

    Attributes:
        good: what the domain gets.
    """

    def __init__(self, messages: Iterable[pb.Submission]) -> None:
        self.good: list[Submission] = []
        self._places: list[int] = []
        self._errors: dict[int, TallyboardError] = {}
        for place, message in enumerate(messages):
            try:
                self.good.append(submission(message))
                self._places.append(place)
            except InvalidArgument as error:
                self._errors[place] = error

    def failures(self, of_good: Mapping[int, TallyboardError]) -> list[ItemStatus]:
        """The failures by their place in the request, ascending.

        Args:
            of_good: what failed in the domain, by the place in `good`.
        """
        errors = self._errors | {self._places[index]: error for index, error in of_good.items()}
        return [
            ItemStatus(
                index=place, status=item_status_of(error_within(f"submissions[{place}]", error))
            )
            for place, error in sorted(errors.items())
        ]


def check_lists(batch: pb.StreamScoresRequest) -> None:
    """The parallel lists of a stream's batch: their lengths, not what is in them.

    Raises:
        InvalidArgument: TOO_MANY_ITEMS, or FIELD_INVALID for lists that do not match.
    """
    size = len(batch.scores)
    validation.check_size("scores", size, validation.MAX_ITEMS)
    lists: tuple[tuple[str, int, tuple[int, ...]], ...] = (
        ("leaderboard_ids", len(batch.leaderboard_ids), (1, size)),
        ("members", len(batch.members), (size,)),
        ("metadata", len(batch.metadata), (0, size)),
        ("occurred_at_micros", len(batch.occurred_at_micros), (0, size)),
    )
    for field, items, allowed in lists:
        if items in allowed:
            continue
        validation.check_size(field, items, validation.MAX_ITEMS)
        detail = f"has {items:,} items for {size:,} scores; must have "
        detail += " or ".join(f"{count:,}" for count in allowed)
        raise validation.invalid("FIELD_INVALID", field, detail)
