"""The Lua scripts, read from package data, and their SHA-1 names.

Scripts that write are an operation (`add.lua`, `add_wide.lua`, `clear.lua`) with `frame.lua`
behind it: the frame holds the fence and the tokens, once.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Script:
    """A script's source and the name that EVALSHA knows it by."""

    source: str
    sha: str


def _read(*names: str) -> Script:
    folder = resources.files(__package__) / "lua"
    source = "\n".join((folder / f"{name}.lua").read_text() for name in names)
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


ADD = _read("add", "frame")
ADD_WIDE = _read("add_wide", "frame")
CLEAR = _read("clear", "frame")
FREEZE = _read("freeze")
WIDEN = _read("widen")

ALL = (ADD, ADD_WIDE, CLEAR, FREEZE, WIDEN)
