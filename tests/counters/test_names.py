"""Names: what is allowed."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallyboard_server.names import are_plain, name_problem


@pytest.mark.parametrize(
    "name", ["post:42", "a/b.c-d", " ", "é" * 128, "名前", "x" * 256, "\u2028"]
)
def test_a_good_name(name: str) -> None:
    assert name_problem(name) is None


@given(st.text(max_size=300))
def test_only_length_and_control_characters_matter(name: str) -> None:
    controls = any(unicodedata.category(character) == "Cc" for character in name)
    good = 1 <= len(name.encode()) <= 256 and not controls
    assert (name_problem(name) is None) == good


@given(st.lists(st.text(max_size=300), min_size=1))
def test_plain_names_are_good(names: list[str]) -> None:
    assert not are_plain(names) or all(name_problem(name) is None for name in names)


def test_many_usual_names_are_plain() -> None:
    assert are_plain([f"post:{number}" for number in range(1000)])
