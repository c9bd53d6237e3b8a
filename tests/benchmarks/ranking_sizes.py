"""What the size of a board costs: bytes a member, and reads beside those of the smallest board.

All boards are loaded by StreamScores into one service, are there at the same time, and are read
in turn, so that all meet the same moods of the machine. See `--sizes`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.benchmarks import messages
from tests.benchmarks.base import BOARDS, core_beside, printed
from tests.benchmarks.boards import Board, Kind
from tests.benchmarks.model import CheckFailed, Unusable
from tests.benchmarks.processes import run_module
from tests.benchmarks.scores import BATCH
from tests.benchmarks.servers import Servers, Service

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
TIES_AT = 1_000_000
LIMIT = 2.0
# Redis' data, as much again for a rewrite of its file, Postgres' buffers and the generator.
_BYTES_A_MEMBER = 700
_PREFIX = "/tallyboard.v1.LeaderboardService/"
_READS = (
    ("GetEntry, live rank", "GetEntry", messages.ENTRY),
    ("ListEntries, top 10, exact", "ListEntries", messages.TOP),
    ("ListEntriesAround, 5 neighbours", "ListEntriesAround", messages.AROUND),
    ("ListEntries, 100 from a random rank on", "ListEntries", messages.SKIPPED),
    ("ListEntriesByScore, 100 from a random score on", "ListEntriesByScore", messages.BY_SCORE),
)
_FIRST_CALLS, _MOST_CALLS = 200, 20_000


class Cost(NamedTuple):
    """One read: the p50 of what its caller waits, alone, in ms, and Redis' CPU in µs."""

    latency_ms: float
    redis_us: float


@dataclass
class Size:
    """A board: what it took to load it, and what reads of it cost.

    Attributes:
        bytes_a_member: of Redis, with nothing left to checkpoint.
        load_rate: members a second, new ones.
        load_us, stream_us: Redis' CPU, µs a score, of new members and of random scores (BEST).
    """

    title: str
    members: int
    bytes_a_member: float
    load_rate: float
    load_us: float
    stream_rates: list[float] = field(default_factory=list)
    stream_us: list[float] = field(default_factory=list)
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    def cost(self, read: str) -> Cost:
        """The medians of the rounds."""
        latencies, redis = zip(*self.costs[read], strict=True)
        return Cost(median(latencies), median(redis))


class RankingSizes:
    """Measures boards of growing size, and both tie breaks.

    Args:
        largest: members of the largest board.
        seconds: of one measurement.
        tell: gets what is done next.
    """

    def __init__(
        self,
        servers: Servers,
        *,
        largest: int,
        rounds: int,
        seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        self._servers, self._tell = servers, tell
        self._rounds, self._seconds = rounds, seconds
        self._sizes = [size for size in SIZES if size < largest] + [largest]
        self._ties_at = min(TIES_AT, largest)

    def run(self) -> tuple[list[Size], list[Size]]:
        """Boards by size, then those of both tie breaks.

        Raises:
            Unusable: the machine has not enough memory.
            CheckFailed: a board does not hold what was acknowledged.
        """
        wanted = (sum(self._sizes) + self._ties_at) * _BYTES_A_MEMBER
        free = psutil.virtual_memory().available
        if free < wanted:
            raise Unusable(
                f"Boards of these sizes need {wanted >> 20:,} MiB of memory, and "
                f"{free >> 20:,} are free; see --largest."
            )
        self._servers.start_services([BOARDS])
        service = self._servers.service(BOARDS)
        plain = self._load(
            service,
            Kind("plain", self._ties_at, tie_break=pb.TIE_BREAK_MEMBER_ID),
            "MEMBER_ID",
        )
        boards = [
            self._load(service, Kind(f"size-{size}", size), f"{size:,}") for size in self._sizes
        ]
        for number in range(1, self._rounds + 1):
            for read, method, kind in _READS:
                for size, board in boards:
                    self._tell(f"round {number}: {read}, {size.members:,} members")
                    cost = self._read(service, board, _PREFIX + method, kind)
                    size.costs.setdefault(read, []).append(cost)
        earliest = next(pair for pair in boards if pair[0].members == self._ties_at)
        for number in range(1, self._rounds + 1):
            for size, board in (plain, earliest):
                self._tell(f"round {number}: scores, {size.title}")
                self._stream(service, size, board)
        for _, board in (plain, *boards):
            board.check()
        return [size for size, _ in boards], [plain[0], earliest[0]]

    def _load(self, service: Service, kind: Kind, title: str) -> tuple[Size, Board]:
        self._tell(f"loading {title}: {kind.members:,} members")
        service.settle()
        bytes_before, cpu_before = service.redis_memory(), service.redis_cpu()
        board = service.boards.get(kind)
        cpu = service.redis_cpu() - cpu_before
        self._tell(f"copying {title} to Postgres")
        service.settle()
        used = service.redis_memory() - bytes_before
        size = Size(
            title,
            kind.members,
            used / kind.members,
            kind.members / board.loading_seconds,
            cpu / kind.members * 1e6,
        )
        return size, board

    def _read(self, service: Service, board: Board, path: str, kind: str) -> Cost:
        """One read at a time, of random members; the first few tell how many fit."""
        first = self._calls(service, board, path, kind, _FIRST_CALLS)
        calls = max(_FIRST_CALLS, int(self._seconds / first.latency_ms * 1e3))
        return self._calls(service, board, path, kind, min(calls, _MOST_CALLS))

    def _calls(self, service: Service, board: Board, path: str, kind: str, calls: int) -> Cost:
        arguments = (service.address, path, kind, board.name, board.next_seed(), calls, 1, 1)
        before = service.redis_cpu()
        result = printed(run_module("frames", *arguments, core=core_beside(BOARDS)).output)
        used = service.redis_cpu() - before
        if result["ok"] != calls:
            raise CheckFailed(f"of {calls:,} {path} {result['ok']:,.0f} ended well")
        return Cost(result["p50"] * 1e3, used / calls * 1e6)

    def _stream(self, service: Service, size: Size, board: Board) -> None:
        before = service.redis_cpu()
        batches = max(10, int(self._seconds * 100_000) // BATCH)
        streamed = board.stream(board.submitting(), batches, core_beside(BOARDS))
        used = service.redis_cpu() - before
        size.stream_rates.append(streamed.scores / streamed.seconds)
        size.stream_us.append(used / streamed.scores * 1e6)
        service.settle()


def write_sizes(sizes: Sequence[Size], ties: Sequence[Size], folder: Path) -> None:
    """Writes the tables as Markdown, and all that was measured as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for header, rows in _tables(sizes, ties):
        lines += [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    (folder / "sizes.md").write_text("\n".join(lines))
    document = {"sizes": [asdict(size) for size in sizes], "ties": [asdict(tie) for tie in ties]}
    (folder / "sizes.json").write_text(json.dumps(document, indent=2) + "\n")


def print_sizes(sizes: Sequence[Size], ties: Sequence[Size], console: Console) -> None:
    """Prints the same tables."""
    for header, rows in _tables(sizes, ties):
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _tables(sizes: Sequence[Size], ties: Sequence[Size]) -> list[tuple[list[str], list[list[str]]]]:
    loads = [
        [size.title, f"{size.bytes_a_member:.0f}", f"{size.load_rate:,.0f}", f"{size.load_us:.2f}"]
        for size in sizes
    ]
    reads = []
    for read in sizes[0].costs:
        first = sizes[0].cost(read)
        worst = 0.0
        row = [read]
        for size in sizes:
            cost = size.cost(read)
            ratio = cost.redis_us / first.redis_us
            worst = max(worst, ratio)
            row.append(f"{cost.latency_ms:.2f} ms, {cost.redis_us:.0f} µs ({ratio:.2f})")
        reads.append([*row, "met" if worst <= LIMIT else "NOT met"])
    breaks = [
        [
            tie.title if tie is ties[0] else "EARLIEST",
            f"{tie.bytes_a_member:.0f}",
            f"{tie.load_us:.2f}",
            f"{median(tie.stream_us):.2f}",
            f"{median(tie.stream_rates):,.0f}",
        ]
        for tie in ties
    ]
    return [
        (["members", "Redis bytes a member", "loaded, members/s", "Redis CPU µs/member"], loads),
        (
            [
                "one read at a time: p50, Redis' CPU (its ratio to the smallest)",
                *(size.title for size in sizes),
                f"Redis ≤ {LIMIT:g} times",
            ],
            reads,
        ),
        (
            [
                f"tie break, {ties[0].members:,} members",
                "Redis bytes a member",
                "Redis CPU µs, new member",
                "random score, BEST",
                "random scores/s",
            ],
            breaks,
        ),
    ]
