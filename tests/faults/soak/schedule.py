"""What goes wrong in one schedule, and when: all of it drawn from one number."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.faults.proxy import Faults

#: The levels of durability that are promised to lose nothing, and so are tested.
LEVELS: Final = ("fsynced", "journaled")
#: Writes that are acknowledged before a schedule ends, if they are at all.
WRITES: Final = 240
COUNTER_KINDS: Final = ("with_id", "without_id", "batch", "stream", "wide")
SCORE_KINDS: Final = ("one", "without_id", "many", "stream", "plain_stream")
_FEWEST, _MOST = 3, 8
_AT_ONCE: Final = 0.35
_EARLY_STOP: Final = 0.4
_HAS_CLIENT: Final = 0.5


#: The fault that needs a copy of what is to be restored.
RESTORED: Final = "redis restored from an old copy"


class Kind(NamedTuple):
    """One way of going wrong.

    Attributes:
        name: in words, for reports.
        weight: how often it is drawn, against the others.
        shortest, longest: seconds that it lasts.
        places: what it happens to; one of two that share a place waits for the other.
        journaled: whether only `journaled` is promised to survive it.
    """

    name: str
    weight: int
    shortest: float = 0.0
    longest: float = 0.0
    places: tuple[str, ...] = ()
    journaled: bool = False


KINDS: Final = (
    Kind("redis killed", 5, 0.02, 1.2, ("redis",)),
    Kind("redis stopped", 3, 0.2, 1.6, ("redis",)),
    Kind("redis stopped and killed", 3, 0.2, 1.2, ("redis",)),
    Kind("redis wiped", 6, 0.02, 0.8, ("redis",), journaled=True),
    Kind("redis flushed", 4, 0.0, 0.0, ("redis",), journaled=True),
    Kind(RESTORED, 5, 0.02, 0.8, ("redis",), journaled=True),
    Kind("postgres killed", 4, 0.02, 1.2, ("postgres",)),
    Kind("postgres stopped", 3, 0.2, 1.6, ("postgres",)),
    Kind("postgres stopped and killed", 2, 0.2, 1.2, ("postgres",)),
    Kind("both stores killed", 2, 0.02, 1.2, ("redis", "postgres")),
    Kind("both stores stopped", 2, 0.2, 1.2, ("redis", "postgres")),
    Kind("worker killed", 4, places=("service",)),
    Kind("worker stopped", 3, 0.2, 1.5, ("service",)),
    Kind("keeper killed", 4, places=("service",)),
    Kind("keeper stopped", 2, 0.2, 1.5, ("service",)),
    Kind("service restarted", 2, 0.0, 0.3, ("service",)),
    Kind("service killed", 1, 0.0, 0.3, ("service",)),
    Kind("client killed", 3, 0.0, 0.3, ("client",)),
    Kind("client stopped", 1, 0.2, 1.5, ("client",)),
    Kind("line to redis", 8, 0.3, 1.5),
    Kind("line to postgres", 8, 0.3, 1.5),
    Kind("checkpoint", 4, 0.1, 1.5),
    Kind("verify", 2),
    Kind("rebuild", 3),
    Kind("window closes", 3, 0.8, 2.5),
)
#: What a line can do: most of these lose a write or its answer.
LINES: Final[dict[str, Sequence[Faults]]] = {
    "delays": (Faults(delay=0.01), Faults(delay=0.05)),
    "loses requests": (Faults(lose_request_every=2), Faults(lose_request_every=5)),
    "loses replies": (Faults(lose_reply_every=2), Faults(lose_reply_every=5)),
    "loses both": (Faults(lose_reply_every=3, lose_request_every=4),),
    "passes small pieces": (Faults(piece=113, lose_reply_every=5),),
    "delivers late": (Faults(hold_every=3), Faults(hold_every=7)),
    "passes nothing": (Faults(black_hole=True),),
    "is mute": (Faults(mute=True),),
}


@dataclass(frozen=True)
class Fault:
    """One fault of a schedule.

    Attributes:
        kind: see KINDS.
        at: acknowledged writes since the start at which it begins; it begins earlier when
            nothing is acknowledged for a while.
        lasts: seconds until it is lifted.
        which: of several workers, partitions or ways to go on the one it is, modulo their number.
        line: what a line does.
        detail: the same in words.
    """

    kind: Kind
    at: int
    lasts: float
    which: int = 0
    line: Faults = field(default_factory=Faults)
    detail: str = ""

    @property
    def name(self) -> str:
        """In words, for reports."""
        return f"{self.kind.name} {self.detail}".rstrip()


@dataclass(frozen=True)
class Schedule:
    """Everything that is decided before a run.

    Attributes:
        seed, durability: what it was drawn from.
        faults: in the order in which they begin.
        counters, scores: kinds of clients.
        has_client: whether a client in a process of its own writes too.
        stops_early: whether clients stop while faults last, so that nothing written later makes
            up for what was lost.
        masters: nodes of the Redis Cluster; 1 for a server that is no cluster.
        instances: of the service.
    """

    seed: int
    durability: str
    faults: tuple[Fault, ...]
    counters: tuple[str, ...]
    scores: tuple[str, ...]
    has_client: bool
    stops_early: bool
    masters: int = 1
    instances: int = 1

    @property
    def random(self) -> random.Random:
        """A source of numbers for its clients, always the same."""
        return random.Random(f"clients {self.seed} {self.durability}")


def draw(
    seed: int, durability: str, only: Sequence[str] = (), masters: int = 1, instances: int = 1
) -> Schedule:
    """The schedule of a seed.

    Args:
        seed: any number.
        durability: see LEVELS.
        only: names of faults to draw from, if not from all: of kinds, or of a line and what it
            does.
        masters, instances: see Schedule; they change nothing of what is drawn.
    """
    source = random.Random(f"schedule {seed} {durability}")
    kinds = [
        kind
        for kind in KINDS
        if (durability == "journaled" or not kind.journaled)
        and (not only or any(name.startswith(kind.name) for name in only))
    ]
    count = source.randint(_FEWEST, _MOST)
    chosen = source.choices(kinds, [kind.weight for kind in kinds], k=count)
    faults = [
        _fault(source, kind, at, only)
        for kind, at in zip(chosen, _starts(source, count), strict=True)
    ]
    return Schedule(
        seed=seed,
        durability=durability,
        faults=tuple(faults),
        # What is written once only shows what nothing later makes up for.
        counters=("once", *source.sample(COUNTER_KINDS, source.randint(2, 4))),
        scores=tuple(source.sample(SCORE_KINDS, source.randint(2, 3))),
        has_client=any("client" in kind.places for kind in chosen) or source.random() < _HAS_CLIENT,
        stops_early=source.random() < _EARLY_STOP,
        masters=masters,
        instances=instances,
    )


def _starts(source: random.Random, count: int) -> list[int]:
    """Some of them at the same moment as the one before."""
    starts: list[int] = []
    for at in sorted(source.randint(WRITES // 20, WRITES) for _ in range(count)):
        starts.append(starts[-1] if starts and source.random() < _AT_ONCE else at)
    return starts


def _fault(source: random.Random, kind: Kind, at: int, only: Sequence[str]) -> Fault:
    lasts = source.uniform(kind.shortest, kind.longest)
    which = source.randrange(1 << 16)
    if not kind.name.startswith("line"):
        return Fault(kind, at, lasts, which)
    wanted = [detail for detail in sorted(LINES) if f"{kind.name} {detail}" in only]
    detail = source.choice(wanted or sorted(LINES))
    return Fault(kind, at, lasts, which, source.choice(LINES[detail]), detail)
