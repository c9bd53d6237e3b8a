"""The Lua scripts, read from package data, and their SHA-1 names.

Scripts that write for callers are an operation (`add.lua`, `submit.lua` and so on) with `frame.lua`
behind it: the frame holds the fence and the tokens, once. Scripts that read rankings have
`rank.lua` before them.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.commands.core import Script as ClientScript


@dataclass(frozen=True, eq=False)
class Script:
    """A script's source and the name that EVALSHA knows it by."""

    source: str
    sha: str


def on_any_client(script: Script) -> Any:
    """The script as redis-py has it; called with a `client`, it is loaded if need be."""
    return ClientScript(None, script.source.encode())  # type: ignore[arg-type]


def _read(*names: str) -> Script:
    folder = resources.files(__package__) / "lua"
    source = "\n".join((folder / f"{name}.lua").read_text() for name in names)
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


ADD = _read("add", "frame")
ADD_WIDE = _read("add_wide", "frame")
CLEAR = _read("clear", "frame")
FREEZE = _read("freeze")
WIDEN = _read("widen")

SUBMIT = _read("sums", "submit", "frame")
REMOVE = _read("sums", "remove", "frame")
ENTRIES = _read("rank", "entries")
PAGE = _read("rank", "page")
PLACES = _read("rank", "places")
DISTINCT = _read("distinct")
TRIM = _read("rank", "sums", "trim")
LOAD = _read("load")
FORGET = _read("forget")
CLOSE_WINDOW = _read("close_window")
EXPIRE_WINDOW = _read("expire_window")
SWEEP_WINDOWS = _read("sweep_windows")
DEFINE = _read("define")
DROP_WINDOWS = _read("drop_windows")
KEEP_WINDOWS = _read("keep_windows")
CHECKPOINT = _read("checkpoint")
CHECKPOINTED = _read("checkpointed")
VERIFY = _read("verify")
VERIFY_ENTRIES = _read("verify_entries")

FENCE_PARTITION = _read("fence_partition")
EMPTY = _read("empty")
LOAD_VALUES = _read("load_values")
LOAD_TOKEN = _read("load_token")

ALL = (
    ADD, ADD_WIDE, CLEAR, FREEZE, WIDEN, SUBMIT, REMOVE, ENTRIES, PAGE, PLACES, DISTINCT, LOAD,
    FORGET, CLOSE_WINDOW, TRIM,
)  # fmt: skip
