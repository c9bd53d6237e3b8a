"""The values of the contract's enumerations as words: `best` for UPDATE_POLICY_BEST.

`enum` is everywhere the enumeration of the generated code.
"""

from typing import Any


def words_of(enum: Any) -> list[str]:
    """The words for all values but the unspecified one."""
    return [word_of(enum, number) for number in enum.values() if number]


def word_of(enum: Any, number: int) -> str:
    """The word for a value; the number itself if only a newer service knows it."""
    if number not in enum.values():
        return str(number)
    name: str = enum.Name(number)
    return name.removeprefix(_prefix(enum)).lower().replace("_", "-")


def number_of(enum: Any, word: str) -> Any:
    """The value that a word stands for. Raises ValueError if there is none."""
    return enum.Value(_prefix(enum) + word.upper().replace("-", "_"))


def _prefix(enum: Any) -> str:
    """What the names of an enumeration start with: `SORT_ORDER_`."""
    name: str = enum.Name(0)
    return name.removesuffix("UNSPECIFIED")
