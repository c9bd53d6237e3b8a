"""What a name (of a tenant, counter, leaderboard, member or producer) may be."""

import re
from collections.abc import Collection

MAX_NAME_BYTES = 256
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def are_plain(names: Collection[str]) -> bool:
    """Whether all names are surely good; some good ones are not plain. Quick for many names."""
    joined = " ".join(names)
    if not (joined.isascii() and joined.isprintable()):
        return False
    sizes = set(map(len, names))
    return min(sizes) > 0 and max(sizes) <= MAX_NAME_BYTES


def name_problem(name: str) -> str | None:
    """What is wrong with a name, as the end of a sentence, or None.

    A name is 1 to 256 bytes of UTF-8 without control characters.
    """
    if name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES:
        return None
    if not name:
        return "must not be empty"
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        return f"must be at most {MAX_NAME_BYTES} bytes of UTF-8, not {size:,}"
    if _CONTROL.search(name):
        return "must not hold control characters"
    return None
