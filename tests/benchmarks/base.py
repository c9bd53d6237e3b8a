"""What all cases share: what a case is, and how unary calls are driven."""

import json
from abc import ABC, abstractmethod

import redis
from google.protobuf.message import Message

from tallyboard.v1 import counters_pb2 as pb
from tests.benchmarks import messages
from tests.benchmarks.h2load import Driven, Load, closed_loop, frame, open_loop
from tests.benchmarks.model import CheckFailed, Latency, Sample, Target
from tests.benchmarks.processes import run_module, usable_cores
from tests.benchmarks.servers import Bare, Cpu, Servers, Service, Setting

ONE_4, ONE_32, ALL_32 = Setting(1, 4), Setting(1, 32), Setting(0, 32)
# The same as ONE_32, of a service of its own: large boards weigh on all that uses their stores.
BOARDS = Setting(1, 32, "boards")
LOADS = {ONE_4: Load(4, 8), ONE_32: Load(8, 16), ALL_32: Load(16, 8), BOARDS: Load(8, 16)}
# Of several workers one may have more connections and end later: all are busy until here.
_ALL_BUSY = (0.1, 0.5)
_WHOLE = (0.02, 0.98)


class Case(ABC):
    """One row of the table.

    Attributes:
        name: how `--only` names it.
        baseline: the name of its echo, or None.
        first_rate: operations a second to assume before the first round.
    """

    baseline: str | None = None
    target: Target | None = None
    unit = "calls"
    needs_service = False
    needs_postgres = False

    def __init__(self, kind: str, title: str, setting: Setting | None, first_rate: float) -> None:
        where = "plain" if setting is None else f"{setting.workers or 'all'}x{setting.threads}"
        self.name = f"{kind}/{where}"
        self.title = title
        self.setting = setting
        self.first_rate = first_rate

    @property
    def conditions(self) -> str:
        """Workers, threads and load, for the table."""
        return "" if self.setting is None else str(self.setting)

    @property
    def remark(self) -> str:
        """A sentence about what was measured, for the notes below the table; or empty."""
        return ""

    @abstractmethod
    def run(self, servers: Servers, operations: int) -> Sample:
        """About that many operations.

        Raises:
            CheckFailed: not all of them counted, or more did.
        """

    def latency(self, servers: Servers, rate: float, seconds: float) -> Latency | None:
        """Percentiles at an offered rate, for cases that are driven by h2load."""
        return None

    def finish(self, servers: Servers) -> None:  # noqa: B027 - most cases need nothing more
        """What takes too long to be checked in every round.

        Raises:
            CheckFailed: not all operations counted, or more did.
        """


def core_beside(setting: Setting) -> int | None:
    """The load generator's core: the second one beside one worker, any beside all workers."""
    cores = usable_cores()
    return cores[1] if setting.workers == 1 and len(cores) > 1 else None


class Unary(Case):
    """Calls from h2load, all with the same request."""

    setting: Setting

    def __init__(
        self,
        kind: str,
        title: str,
        setting: Setting,
        first_rate: float,
        *,
        updates: int = 1,
        timed: bool = True,
    ) -> None:
        super().__init__(kind, title, setting, first_rate)
        self._updates = updates
        self._timed = timed
        self.unit = "updates" if updates > 1 else "calls"

    @property
    def conditions(self) -> str:
        return f"{self.setting}, {LOADS[self.setting]}"

    @abstractmethod
    def server(self, servers: Servers) -> Bare | Service:
        """What is called."""

    @abstractmethod
    def path(self, servers: Servers) -> str:
        """The HTTP path of the method."""

    @abstractmethod
    def request(self) -> Message:
        """The request of every call."""

    def before(self, servers: Servers) -> None:
        """Notes what `check` compares with."""

    @abstractmethod
    def check(self, servers: Servers, driven: Driven) -> None:
        """Compares what was counted with what was acknowledged."""

    def run(self, servers: Servers, operations: int) -> Sample:
        server, load = self.server(servers), LOADS[self.setting]
        calls = max(operations // self._updates, load.connections * load.streams)
        self.before(servers)
        before = server.cpu()
        driven = closed_loop(
            server.address,
            self.path(servers),
            frame(self.request()),
            calls,
            load,
            core_beside(self.setting),
        )
        used = used_between(before, server.cpu())
        self.check(servers, driven)
        rate = driven.rate(*(_WHOLE if self.setting.workers == 1 else _ALL_BUSY))
        return Sample(
            driven.calls * self._updates, rate * self._updates, used.server, used.store,
            driven.share,
        )  # fmt: skip

    def latency(self, servers: Servers, rate: float, seconds: float) -> Latency | None:
        if not self._timed:
            return None
        self.before(servers)
        driven = open_loop(
            self.server(servers).address,
            self.path(servers),
            frame(self.request()),
            rate,
            seconds,
            core_beside(self.setting),
        )
        self.check(servers, driven)
        return driven.latency(rate)


class Echo(Unary):
    """The bare server that answers the request itself."""

    def server(self, servers: Servers) -> Bare:
        return servers.bare("echo", self.setting)

    def path(self, servers: Servers) -> str:
        return self.server(servers).path

    def request(self) -> Message:
        return pb.IncrementRequest(counter="post:42", delta=1)

    def check(self, servers: Servers, driven: Driven) -> None:
        check_data(driven, len(frame(self.request())))


class Framed(Case):
    """Calls that differ from each other, from our own generator."""

    setting: Setting

    @property
    def conditions(self) -> str:
        return f"{self.setting}, own generator {LOADS[self.setting]}"

    @abstractmethod
    def server(self, servers: Servers) -> Bare | Service:
        """What is called."""

    @abstractmethod
    def path(self, servers: Servers) -> str:
        """The HTTP path of the method."""

    @abstractmethod
    def messages(self) -> tuple[str, str, int]:
        """The kind of the messages, what they name, and a seed; see messages.py."""

    def before(self, servers: Servers) -> None:
        """Notes what `check` compares with."""

    @abstractmethod
    def check(self, servers: Servers, calls: int) -> None:
        """Compares what was counted with what was acknowledged."""

    def run(self, servers: Servers, operations: int) -> Sample:
        server, load = self.server(servers), LOADS[self.setting]
        calls = max(operations, load.connections * load.streams)
        self.before(servers)
        arguments = (server.address, self.path(servers), *self.messages(), calls, *load)
        before = server.cpu()
        finished = run_module("frames", *arguments, core=core_beside(self.setting))
        used = used_between(before, server.cpu())
        result = printed(finished.output)
        if result["ok"] != calls:
            raise CheckFailed(f"of {calls:,} calls only {result['ok']:,.0f} have grpc-status 0")
        self.check(servers, calls)
        seconds = result["seconds"]
        return Sample(calls, calls / seconds, used.server, used.store, result["cpu"] / seconds)


class FramedEcho(Framed):
    """The bare server, driven by the same generator."""

    def server(self, servers: Servers) -> Bare:
        return servers.bare("echo", self.setting)

    def path(self, servers: Servers) -> str:
        return self.server(servers).path

    def messages(self) -> tuple[str, str, int]:
        return messages.INCREMENT, "post:77", 0

    def check(self, servers: Servers, calls: int) -> None:
        pass  # an answer without an error is all that an echo gives


def used_between(before: Cpu, after: Cpu) -> Cpu:
    """What was used from one moment to another."""
    return Cpu(after.server - before.server, after.store - before.store)


def printed(output: str) -> dict[str, float]:
    """The JSON in the last line."""
    found: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return found


def check_data(driven: Driven, size: int) -> None:
    """An error has no response message, so it shows in the bytes, though not in HTTP's status."""
    if driven.data != driven.calls * size:
        missing = driven.calls - driven.data / size
        raise CheckFailed(f"about {missing:,.0f} of {driven.calls:,} calls ended with an error")


def client_of(servers: Servers) -> "redis.Redis":
    """A client of the plain Redis."""
    return redis.Redis(unix_socket_path=servers.redis.socket)
