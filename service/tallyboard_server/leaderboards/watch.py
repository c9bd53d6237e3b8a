"""What watches of leaderboards are read from: the top of a window, once for all who watch it."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from tallyboard_server.leaderboards.model import Leaderboard, Page, RankMethod, Window
from tallyboard_server.watching import WatchSource

# Tenant, leaderboard_id, window as the caller wrote it, limit, rank method.
TopSubject = tuple[str, str, str, int, RankMethod]


class Definitions(Protocol):
    """Where definitions come from."""

    def get(self, tenant: str, leaderboard_id: str, deadline: float, /) -> Leaderboard:
        """The definition.

        Raises:
            NotFound: there is no such leaderboard.
        """


class Pages(Protocol):
    """Where entries come from."""

    def page(
        self,
        board: Leaderboard,
        window: Window,
        page_size: int,
        page_token: str,
        skip: int,
        reverse: bool,
        method: RankMethod,
        staleness: float | None,
        deadline: float,
        /,
    ) -> Page:
        """Entries from the top, at most `staleness` seconds old; None reads them now.

        Raises:
            NotFound: nothing is kept of the window.
        """


class TopSource(WatchSource[TopSubject, Page, Page]):
    """Sends the whole top whenever it, its window or the window's size differs from what was sent.

    Args:
        boards: definitions.
        pages: entries.
        resolve: the window that a text stands for at a moment in µs, so that `current:daily`
            moves on by itself; raises InvalidArgument or NotFound.
        clock: now, in µs.
    """

    def __init__(
        self,
        boards: Definitions,
        pages: Pages,
        resolve: Callable[[Leaderboard, str, int], Window],
        clock: Callable[[], int],
    ) -> None:
        self._boards = boards
        self._pages = pages
        self._resolve = resolve
        self._clock = clock

    def read(self, subjects: Sequence[TopSubject], timeout: float) -> dict[TopSubject, Page]:
        """The tops as the stores have them now. A group has one, so an error ends that one only."""
        return {subject: self._top(subject, timeout) for subject in subjects}

    def news(self, state: Page, sent: Page | None) -> Page | None:
        """The page itself, unless the one sent shows the same."""
        if sent is not None and _shown(state) == _shown(sent):
            return None
        return state

    def _top(self, subject: TopSubject, timeout: float) -> Page:
        tenant, leaderboard_id, text, limit, method = subject
        deadline = time.monotonic() + timeout
        board = self._boards.get(tenant, leaderboard_id, deadline)
        window = self._resolve(board, text, self._clock())
        return self._pages.page(board, window, limit, "", 0, False, method, None, deadline)


def _shown(page: Page) -> tuple[object, ...]:
    return page.window, page.total_size, page.entries
