"""What the service is compared with, besides an echo: Redis itself, and the naive ways.

Whether all of it was done is told by Redis, which counts the commands it ran.
"""

import time
from typing import Any

from google.protobuf.message import Message

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.benchmarks import bare, messages, naive_boards
from tests.benchmarks.base import BOARDS, Case, Framed, Unary, client_of
from tests.benchmarks.h2load import Driven
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.processes import cpu_of, run, tool
from tests.benchmarks.servers import Bare, Servers

_PIPELINE, _CLIENTS = 32, 50


class RedisBenchmark(Case):
    """redis-benchmark of one command with -P 32: what Redis itself can do.

    Args:
        command: its words; `__rand_int__` in one is a random number below `range_`.
        range_: 0 for none.
    """

    unit = "commands"

    def __init__(
        self, kind: str, title: str, first_rate: float, *command: str, range_: int = 0
    ) -> None:
        super().__init__(kind, title, None, first_rate)
        self._command = command
        self._range = range_

    @property
    def conditions(self) -> str:
        return f"-P {_PIPELINE} -c {_CLIENTS}" + (f" -r {self._range}" if self._range else "")

    def run(self, servers: Servers, operations: int) -> Sample:
        calls, pid = max(10_000, operations), servers.redis.pid
        calls -= calls % (_PIPELINE * _CLIENTS)
        command = [tool("redis-benchmark"), "-s", servers.redis.socket, "-P", str(_PIPELINE)]
        command += ["-c", str(_CLIENTS), "-n", str(calls), "--csv"]
        command += ["-r", str(self._range)] if self._range else []
        ran = _ran(servers, self._command[0])
        before = cpu_of([pid] if pid else [])
        started = time.monotonic()
        finished = run([*command, *self._command])
        seconds = time.monotonic() - started
        used = cpu_of([pid] if pid else []) - before
        ran = _ran(servers, self._command[0]) - ran
        if ran != calls:
            name = self._command[0]
            raise CheckFailed(f"redis-benchmark sent {calls:,} {name}, and Redis ran {ran:,}")
        return Sample(calls, calls / seconds, 0.0, used, finished.cpu / finished.wall)

    def finish(self, servers: Servers) -> None:
        with client_of(servers) as client:
            client.delete(self._command[1])


class NaiveBoard(Framed):
    """One command of redis-py, or one statement to Postgres, a request, behind a bare server.

    Args:
        method: one of naive_boards.py.
        kind: the kind of the messages.
    """

    needs_postgres = True

    def __init__(self, name: str, title: str, method: str, kind: str, first_rate: float) -> None:
        super().__init__(name, title, BOARDS, first_rate)
        self._method, self._kind = method, kind
        self._ran = 0

    def server(self, servers: Servers) -> Bare:
        return servers.bare(bare.NAIVE_BOARDS, self.setting)

    def path(self, servers: Servers) -> str:
        return self.server(servers).path_of(self._method)

    def messages(self) -> tuple[str, str, int]:
        return self._kind, f"naive:{naive_boards.MEMBERS}", 1

    def before(self, servers: Servers) -> None:
        self._ran = _ran(servers, self._method)

    def check(self, servers: Servers, calls: int) -> None:
        _check_ran(servers, self._method, self._ran, calls)


class NaiveTop(Unary):
    """The same for the best, which every call asks for."""

    needs_postgres = True

    def __init__(self, name: str, title: str, method: str, size: int, first_rate: float) -> None:
        super().__init__(name, title, BOARDS, first_rate, timed=False)
        self._method, self._size = method, size
        self._ran = 0

    def server(self, servers: Servers) -> Bare:
        return servers.bare(bare.NAIVE_BOARDS, self.setting)

    def path(self, servers: Servers) -> str:
        return self.server(servers).path_of(self._method)

    def request(self) -> Message:
        return pb.ListEntriesRequest(leaderboard_id="naive", window="all", page_size=self._size)

    def before(self, servers: Servers) -> None:
        self._ran = _ran(servers, self._method)

    def check(self, servers: Servers, driven: Driven) -> None:
        _check_ran(servers, self._method, self._ran, driven.calls)
        if driven.data % driven.calls:
            raise CheckFailed("not all pages of the same board were the same")


def naive_board_cases() -> list[Case]:
    """The naive ways to keep a leaderboard of 100,000 members."""
    cases: list[Case] = [
        NaiveBoard(
            "naive-zadd", "ZADD GT a request behind a bare server",
            naive_boards.ADD, messages.SUBMIT, 3_000,
        ),
        NaiveBoard(
            "naive-zincrby", "ZINCRBY a request behind a bare server",
            naive_boards.INCREASE, messages.SUBMIT, 3_000,
        ),
        NaiveBoard(
            "naive-zrevrank", "ZREVRANK a request behind a bare server",
            naive_boards.RANK, messages.ENTRY, 3_000,
        ),
        NaiveTop(
            "naive-zrevrange", "ZREVRANGE of 10 a request behind a bare server",
            naive_boards.TOP, 10, 2_000,
        ),
        NaiveTop(
            "postgres-top", "ORDER BY ... LIMIT 10 in Postgres, indexed, behind a bare server",
            naive_boards.SQL_TOP, 10, 2_000,
        ),
        NaiveBoard(
            "postgres-rank", "count(*) of the better in Postgres, indexed, behind a bare server",
            naive_boards.SQL_RANK, messages.ENTRY, 100,
        ),
    ]  # fmt: skip
    for case in cases:
        case.baseline = "echo-boards/1x32" if isinstance(case, Unary) else "echo-scores/1x32"
    return cases


def _ran(servers: Servers, command: str) -> int:
    """How often the plain Redis has run a command; 0 for what is none of its commands."""
    with client_of(servers) as client:
        found: Any = client.info("commandstats").get(f"cmdstat_{command.lower()}")
    return int(found["calls"]) if found else 0


def _check_ran(servers: Servers, method: str, before: int, calls: int) -> None:
    if method in (naive_boards.SQL_TOP, naive_boards.SQL_RANK):
        return  # their answers carry what Postgres found, or an error
    ran = _ran(servers, method) - before
    if ran != calls:
        raise CheckFailed(f"{calls:,} {method} were answered, and Redis ran {ran:,}")
