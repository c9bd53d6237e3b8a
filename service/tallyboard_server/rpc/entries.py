"""Reads of rankings: what requests say, and responses of what the domain hands out.

Responses are filled in place: a message that is put into another is copied by way of its bytes,
which costs twice as much.
"""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard_server.leaderboards.model import (
    Entry,
    FoundEntries,
    Page,
    Stats,
    WindowStanding,
)
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.enums import WINDOW_KIND_NUMBERS, WINDOW_STATE_NUMBERS
from tallyboard_server.rpc.stamps import SOURCES, set_as_of, set_moment

_MAX_PERCENTILES = 100


def check_different(field: str, names: Sequence[str]) -> None:
    """No name twice."""
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        first.setdefault(name, index)
    problems = (
        (f"{field}[{index}]", "must not repeat a name" if first[name] < index else None)
        for index, name in enumerate(names)
    )
    validation.check_all("FIELD_INVALID", problems)


def check_percentiles(percentiles: Sequence[float]) -> None:
    """Up to 100 percentiles from 0 to 100."""
    if percentiles:
        validation.check_size("percentiles", len(percentiles), _MAX_PERCENTILES)
    problems = (
        (f"percentiles[{index}]", None if 0 <= value <= 100 else f"must not be {value}")
        for index, value in enumerate(percentiles)
    )
    validation.check_all("FIELD_INVALID", problems)


def center(request: pb.ListEntriesAroundRequest) -> tuple[str | None, float | None]:
    """The member or the score whose neighbours are asked for; the other is None."""
    chosen = request.WhichOneof("center")
    if chosen == "member":
        validation.check_name("member", request.member)
        return request.member, None
    if chosen == "score":
        validation.check_score("score", request.score)
        return None, request.score
    raise validation.invalid("FIELD_INVALID", "center", "must be a member or a score")


def bounds(request: pb.ListEntriesByScoreRequest) -> tuple[float | None, float | None]:
    """The least and the greatest score to list; None is no bound."""
    from_score = request.from_score if request.HasField("from_score") else None
    to_score = request.to_score if request.HasField("to_score") else None
    if from_score is not None:
        validation.check_score("from_score", from_score)
    if to_score is not None:
        validation.check_score("to_score", to_score)
        if from_score is not None and to_score < from_score:
            raise validation.invalid("FIELD_INVALID", "to_score", "must not be below `from_score`")
    return from_score, to_score


def get_response(found: FoundEntries) -> pb.GetEntryResponse:
    """The only entry found."""
    response = pb.GetEntryResponse(
        window=found.window, total_size=found.total_size, source=SOURCES[found.source]
    )
    set_as_of(response.as_of, found.as_of)
    _fill(response.entry, found.entries[0])
    response.entry.percentile = found.percentiles[0]
    return response


def batch_get_response(found: FoundEntries) -> pb.BatchGetEntriesResponse:
    """The entries found, and who has none."""
    response = pb.BatchGetEntriesResponse(
        missing_members=found.missing,
        window=found.window,
        total_size=found.total_size,
        source=SOURCES[found.source],
    )
    set_as_of(response.as_of, found.as_of)
    add = response.entries.add
    for entry, percentile in zip(found.entries, found.percentiles, strict=True):
        message = add()
        _fill(message, entry)
        message.percentile = percentile
    return response


def list_response(page: Page) -> pb.ListEntriesResponse:
    """A page of a ranking."""
    response = pb.ListEntriesResponse(next_page_token=page.next_page_token)
    _fill_page(response, page)
    return response


def by_score_response(page: Page) -> pb.ListEntriesByScoreResponse:
    """A page of the entries within bounds."""
    response = pb.ListEntriesByScoreResponse(next_page_token=page.next_page_token)
    _fill_page(response, page)
    return response


def around_response(page: Page) -> pb.ListEntriesAroundResponse:
    """Neighbours."""
    response = pb.ListEntriesAroundResponse(rank=page.rank)
    _fill_page(response, page)
    return response


def watch_response(page: Page) -> pb.WatchEntriesResponse:
    """The top of a window."""
    response = pb.WatchEntriesResponse()
    _fill_page(response, page)
    return response


def stats_response(stats: Stats, percentiles: Iterable[float]) -> pb.GetLeaderboardStatsResponse:
    """A window summed up, with the percentiles of the request."""
    response = pb.GetLeaderboardStatsResponse(
        count=stats.count,
        best=stats.best,
        worst=stats.worst,
        mean=stats.mean,
        window=stats.window,
        source=SOURCES[stats.source],
    )
    set_as_of(response.as_of, stats.as_of)
    # There are no scores without entries.
    for percentile, score in zip(percentiles, stats.percentile_scores, strict=False):
        response.percentile_scores.add(percentile=percentile, score=score)
    return response


def windows_response(
    standings: Iterable[WindowStanding], next_page_token: str
) -> pb.ListWindowsResponse:
    """A page of windows."""
    response = pb.ListWindowsResponse(next_page_token=next_page_token)
    for standing in standings:
        window = standing.window
        message = response.windows.add(
            window=window.window,
            kind=WINDOW_KIND_NUMBERS[window.kind],
            state=WINDOW_STATE_NUMBERS[standing.state],
            entry_count=standing.entry_count,
        )
        if window.starts_at is not None:
            set_moment(message.starts_at, window.starts_at)
        if window.ends_at is not None:
            set_moment(message.ends_at, window.ends_at)
    return response


class EncodedPages:
    """Responses of ListEntries by the page they were made of, so that a cached one is made once.

    A page is known by its identity: to compare its entries would cost as much as encoding them.
    The oldest go first; those that nobody asks for any more are gone after `max_bytes` of others.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._pages: dict[int, tuple[Page, bytes]] = {}
        self._lock = threading.Lock()  # guards changes

    def of(self, page: Page) -> bytes:
        """The response of a page, from memory if it was made before."""
        known = self._pages.get(id(page))
        if known is not None:  # it is held, so no other page has its id
            return known[1]
        encoded = list_response(page).SerializeToString()
        with self._lock:
            if id(page) not in self._pages:
                self._pages[id(page)] = (page, encoded)
                self._held += len(encoded)
            while self._held > self._max_bytes:
                oldest = next(iter(self._pages))
                self._held -= len(self._pages.pop(oldest)[1])
        return encoded


def fill_entries(messages: Any, entries: Iterable[Entry]) -> None:
    """Adds entries to a repeated field."""
    add = messages.add
    for entry in entries:
        _fill(add(), entry)


def _fill(message: pb.Entry, entry: Entry) -> None:
    message.rank = entry.rank
    message.member = entry.member
    message.score = entry.score
    message.metadata = entry.metadata
    set_moment(message.updated_at, entry.updated_at)


def _fill_page(
    response: pb.ListEntriesResponse
    | pb.ListEntriesByScoreResponse
    | pb.ListEntriesAroundResponse
    | pb.WatchEntriesResponse,
    page: Page,
) -> None:
    response.window = page.window
    response.total_size = page.total_size
    response.source = SOURCES[page.source]
    set_as_of(response.as_of, page.as_of)
    fill_entries(response.entries, page.entries)
