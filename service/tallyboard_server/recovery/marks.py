"""How far the rebuild of a partition has come, as Redis itself knows it.

While a partition is rebuilt, a mark is in the place of its incarnation, so that nobody who expects
an incarnation reads or writes. The mark is all that a rebuild remembers in Redis: it is in the same
file as the data that it speaks of, so whatever is lost, the two are lost together.

| stage | mark | what the partition holds | what the next rebuild does |
| --- | --- | --- | --- |
| KEPT | `-k<incarnation>` | all that it held | makes the last checkpoint |
| COPIED | `-t<incarnation>` | tokens; the rest is in Postgres | keeps tokens, empties and loads |
| WORTHLESS | `-e<incarnation>` | nothing of use | empties and loads |
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from tallyboard_server.postgres.rebuild import Life

_MOST_EARLIER: Final = 8


class Stage(Enum):
    """How far a rebuild has come: see above."""

    KEPT = "k"
    COPIED = "t"
    WORTHLESS = "e"


class Mark(NamedTuple):
    """A rebuild's mark: how far it has come, and the incarnation that it is about to give."""

    stage: Stage
    incarnation: str

    def __str__(self) -> str:
        return f"-{self.stage.value}{self.incarnation}"


class Held(NamedTuple):
    """What Redis holds of a partition.

    `value` is an incarnation, a mark, or empty; `version` the number of the last checkpoint that
    was begun.
    """

    value: str
    version: int

    @property
    def mark(self) -> Mark | None:
        """The mark; None for an incarnation, or nothing."""
        stages = {stage.value: stage for stage in Stage}
        if self.value[:1] != "-" or self.value[1:2] not in stages:
            return None
        return Mark(stages[self.value[1]], self.value[2:])

    @property
    def incarnation(self) -> str:
        """The incarnation, be it that of a mark; empty if there is neither."""
        mark = self.mark
        return self.value if mark is None else mark.incarnation


def is_foreign(held: Held, life: Life) -> bool:
    """Whether Redis holds what Postgres never knew."""
    return held.incarnation not in ("", life.incarnation, *life.earlier)


def is_loaded(held: Held, life: Life) -> bool:
    """Whether Redis has all of it but the journal: it is rebuilt so far, or never was lost."""
    return held.value == life.incarnation and held.version >= life.version


def first_stage(held: Held, life: Life) -> Stage:
    """Where a new rebuild begins.

    Data are worth a last checkpoint when Postgres knows their incarnation and they are not older
    than its last checkpoint; what an earlier rebuild began to empty never is.
    """
    if not held.value or is_foreign(held, life) or held.version < life.version:
        return Stage.WORTHLESS
    return Stage.KEPT if held.mark is None else held.mark.stage


def earlier(held: Held, life: Life) -> Sequence[str]:
    """The incarnations that a partition had before the one that it gets now.

    What Redis holds is among the last, so that rebuilds that never get as far as Redis can't make
    it foreign.
    """
    known = [*life.earlier, life.incarnation]
    if held.incarnation in known:
        known.remove(held.incarnation)
        known.append(held.incarnation)
    return known[-_MOST_EARLIER:]
