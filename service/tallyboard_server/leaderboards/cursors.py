"""Page tokens of rankings: the place behind the last entry, which stays one while scores move."""

import base64
import json
from typing import NamedTuple

from tallyboard_server.errors import FieldViolation, InvalidArgument


class Cursor(NamedTuple):
    """The last entry of a page: its score, and what ranks it among equal scores.

    `window` is the one of the first page; `updated_at` and `member` are the entry's.
    """

    window: str
    score: float
    updated_at: int
    member: str


def encode_cursor(cursor: Cursor, *arguments: object) -> str:
    """A page token for a list with these arguments."""
    text = json.dumps([*cursor, list(map(str, arguments))], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode_cursor(token: str, *arguments: object) -> Cursor:
    """The cursor of a token.

    Raises:
        InvalidArgument: PAGE_INVALID, it is none of a list with these arguments.
    """
    try:
        text = base64.b64decode(token.encode("ascii"), b"-_", validate=True)
        window, score, updated_at, member, of = json.loads(text)
        if (
            of == list(map(str, arguments))
            and isinstance(window, str)
            and "\0" not in window
            and type(score) is float
            and type(updated_at) is int
            and abs(updated_at) < 1 << 52
            and isinstance(member, str)
            and "\0" not in member
            and score - score == 0
        ):
            member.encode()  # no lone surrogate, which JSON can write
            window.encode()
            return Cursor(window, score, updated_at, member)
    except (ValueError, TypeError, RecursionError):
        pass
    violation = FieldViolation("page_token", "isn't one of this list, with these arguments")
    raise InvalidArgument("PAGE_INVALID", [violation])
