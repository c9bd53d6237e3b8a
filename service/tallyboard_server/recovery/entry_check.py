"""Compares entries of leaderboards in Redis with those in Postgres, and rankings with entries."""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from tallyboard_server.leaderboards.model import WindowState
from tallyboard_server.postgres.entries import StoredEntry
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.postgres.verify import (
    BoardHere,
    WindowHere,
    board_page,
    entry_page_here,
    find_entries,
    is_live_board,
    window_here,
    windows_here,
)
from tallyboard_server.recovery.findings import Difference, EntryName, Verified
from tallyboard_server.recovery.partition import OpenPartition
from tallyboard_server.redis.definitions import partitions_of
from tallyboard_server.redis.looks import EntryLook, Looks, Place, Sizes
from tallyboard_server.redis.scores import make_record, parse_record

_BOARDS: Final = 5_000
_GROUP: Final = 100
_PAGE: Final = 1_000
_MOST_NOTED: Final = 100_000


class _Window(NamedTuple):
    """A window under comparison.

    Attributes:
        row: None if no checkpoint has found it.
        noted: members that differ, so that none is counted twice; the first few if there are many.
    """

    board: BoardHere
    place: Place
    row: WindowHere | None
    noted: set[str]


class EntryCheck:
    """Comparisons that go on step by step, so that whoever runs them can stop in between.

    Args:
        partitions: how many there are.
        clock: the time now in µs since the epoch, by which windows close and end.
    """

    def __init__(
        self,
        pool: BoundedPool,
        looks: Looks,
        partitions: int,
        clock: Callable[[], int],
    ) -> None:
        self._pool = pool
        self._looks = looks
        self._partitions = partitions
        self._clock = clock

    def compare(self, partition: OpenPartition, found: Verified) -> Iterator[None]:
        """Compares all windows that either store has in a partition.

        Of archived windows those that Redis still has.
        """
        for boards in self._boards_in(partition.number):
            for low in range(0, len(boards), _GROUP):
                for window in self._windows(partition, boards[low : low + _GROUP]):
                    yield from self._compare_window(partition, found, window)
            yield

    def _boards_in(self, number: int) -> Iterator[list[BoardHere]]:
        after = ""
        while True:
            with self._pool.connection() as conn:
                page = board_page(conn, after, _BOARDS)
            yield [board for board in page if number in self._places(board)]
            if len(page) < _BOARDS:
                return
            after = page[-1].board_key

    def _places(self, board: BoardHere) -> list[int]:
        return partitions_of(board.tenant, board.leaderboard_id, board.segments, self._partitions)

    def _windows(self, partition: OpenPartition, boards: Sequence[BoardHere]) -> list[_Window]:
        keys = [board.board_key for board in boards]
        in_redis = {
            (key, window.decode())
            for key, windows in zip(keys, self._looks.windows(partition.number, keys), strict=True)
            for window in windows
        }
        with self._pool.connection() as conn:
            rows = windows_here(conn, keys, sorted(in_redis))
        by_name = {(row.board_key, row.window): row for row in rows}
        by_key = {board.board_key: board for board in boards}
        return [
            _Window(
                by_key[key],
                Place(partition.number, key, window, by_key[key].earliest),
                by_name.get((key, window)),
                set(),
            )
            for key, window in sorted(in_redis | by_name.keys())
        ]

    def _compare_window(
        self, partition: OpenPartition, found: Verified, window: _Window
    ) -> Iterator[None]:
        place, incarnation = window.place, partition.incarnation
        before = self._looks.sizes(place, incarnation)
        if not self._is_comparable(window.row, before):
            return
        present = 0
        after = ""
        while window.row is not None:
            with self._pool.connection() as conn:
                page = entry_page_here(conn, window.row.window_id, place.partition, after, _PAGE)
            if page:
                present += self._compare_page(partition, found, window, page)
            yield
            if len(page) < _PAGE:
                break
            after = page[-1].member
        sizes = self._looks.sizes(place, incarnation)
        # Where entries come and go meanwhile, their number says nothing.
        if sizes.entries != present or before.changed or sizes.changed:
            yield from self._search(partition, found, window)
        if sizes.ranked > sizes.entries or window.noted:
            yield from self._search_ranking(found, window)

    def _is_comparable(self, row: WindowHere | None, sizes: Sizes) -> bool:
        """Whether the two have to agree on a window.

        Not while it is being loaded, and not when it is due to be archived, or is so, and has ended
        its time in Redis.
        """
        now = self._clock()
        if row is None:
            return sizes.has_meta
        is_open = row.state is WindowState.OPEN and (row.closes_at is None or row.closes_at > now)
        return is_open or sizes.has_meta

    def _compare_page(
        self,
        partition: OpenPartition,
        found: Verified,
        window: _Window,
        page: Sequence[StoredEntry],
    ) -> int:
        """Gives how many of these Redis has."""
        found.entries += len(page)
        members = [entry.member for entry in page]
        looks = self._looks.entries(window.place, partition.incarnation, members)
        descending = window.board.descending
        suspects = [
            entry.member
            for entry, look in zip(page, looks, strict=True)
            if _problem(entry, look, descending) is not None
        ]
        self._settle(partition, found, window, suspects)
        return sum(look.record is not None for look in looks)

    def _search(self, partition: OpenPartition, found: Verified, window: _Window) -> Iterator[None]:
        """Looks for entries that only Redis has."""
        for names in self._looks.members(window.place, _PAGE):
            members = {name.decode("utf-8", "surrogateescape") for name in names} - window.noted
            unknown = sorted(members - self._stored(window.row, members).keys())
            looks = self._looks.entries(window.place, partition.incarnation, _bytes(unknown))
            suspects = [
                member
                for member, look in zip(unknown, looks, strict=True)
                if _problem(None, look, window.board.descending) is not None
            ]
            self._settle(partition, found, window, suspects)
            yield

    def _search_ranking(self, found: Verified, window: _Window) -> Iterator[None]:
        """Looks for members of the ranking that have no such entry."""
        for strangers in self._looks.strangers(window.place, _PAGE):
            for name, score in strangers:
                member = name.decode("utf-8", "surrogateescape")
                if member not in window.noted:
                    detail = "the ranking in Redis has it without an entry of that moment"
                    self._note(found, window, member, _decimal(score), None, detail)
            yield

    def _settle(
        self,
        partition: OpenPartition,
        found: Verified,
        window: _Window,
        members: Sequence[str],
    ) -> None:
        """Takes down what differs while no checkpoint moves the two."""
        if not members:
            return
        place, descending = window.place, window.board.descending
        with partition.held(self._pool) as conn:
            row = window_here(conn, place.board_key, place.window)
            sizes = self._looks.sizes(place, partition.incarnation)
            if not is_live_board(conn, place.board_key) or not self._is_comparable(row, sizes):
                return
            stored = {} if row is None else find_entries(conn, row.window_id, _texts(members))
            looks = self._looks.entries(place, partition.incarnation, _bytes(members))
        for member, look in zip(members, looks, strict=True):
            entry = stored.get(member)
            problem = _problem(entry, look, descending)
            if problem is not None:
                redis, detail = problem
                postgres = None if entry is None else _decimal(entry.score)
                self._note(found, window, member, redis, postgres, detail)

    def _stored(self, row: WindowHere | None, members: set[str]) -> dict[str, StoredEntry]:
        if row is None:
            return {}
        with self._pool.connection() as conn:
            return find_entries(conn, row.window_id, _texts(members))

    @staticmethod
    def _note(
        found: Verified,
        window: _Window,
        member: str,
        redis: str | None,
        postgres: str | None,
        detail: str,
    ) -> None:
        if len(window.noted) < _MOST_NOTED:
            window.noted.add(member)
        board = window.board
        shown = member.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        name = EntryName(board.leaderboard_id, window.place.window, shown)
        found.note(Difference(board.tenant, name, redis, postgres, detail))


def _problem(
    stored: StoredEntry | None, look: EntryLook, descending: bool
) -> tuple[str | None, str] | None:
    """What Redis has for a score, and what is wrong with it; None if nothing is."""
    if look.record is None:
        return None if stored is None or look.is_newer else (None, "Redis lacks it")
    if stored is not None and stored.score == look.ranked:
        # The usual case, and so the first.
        expected = make_record(stored.updated_at, stored.score, stored.metadata, descending)
        if look.record == expected:
            return None
    try:
        record = parse_record(look.record, descending)
    except struct.error:
        return None, "what Redis holds is no entry"
    score = _decimal(record.score)
    # A ranking and its entries change together: no checkpoint has a part in that.
    if look.ranked is None:
        return None, "the ranking in Redis lacks it"
    if look.ranked != record.score:
        return _decimal(look.ranked), "the ranking in Redis has another score than the entry"
    if look.is_newer:
        return None
    if stored is None:
        return score, "Postgres lacks it"
    if record.score != stored.score:
        return score, "the scores differ"
    if record.updated_at != stored.updated_at:
        return score, "the moments differ"
    if record.metadata != stored.metadata:
        return score, "the metadata differ"
    return None


def _decimal(score: float) -> str:
    """A score as a decimal number that says all of it."""
    return str(int(score)) if score.is_integer() and abs(score) < 1 << 53 else repr(score)


def _texts(members: Sequence[str] | set[str]) -> list[str]:
    """Those that Postgres can hold: neither NUL nor what is no UTF-8."""
    texts = []
    for member in members:
        with suppress(UnicodeEncodeError):
            member.encode()
            if "\0" not in member:
                texts.append(member)
    return texts


def _bytes(members: Sequence[str]) -> list[bytes]:
    return [member.encode("utf-8", "surrogateescape") for member in members]
