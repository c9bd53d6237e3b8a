"""The longer SQL statements, read from package data."""

from functools import cache
from importlib import resources
from typing import LiteralString


@cache
def statement(name: str) -> LiteralString:
    """The text of sql/<name>.sql."""
    folder = resources.files(__package__) / "sql"
    return (folder / f"{name}.sql").read_text()
