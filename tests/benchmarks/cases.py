"""What is measured: each case runs a number of operations, checks that they counted, and gives a
sample.

Cases of the same setting share a server. An operation is one call, or one update of a batch.
"""

import json
import time
from abc import ABC, abstractmethod

import redis
from google.protobuf.message import Message

from tallyboard.v1 import consistency_pb2
from tallyboard.v1 import counters_pb2 as pb
from tests.benchmarks import streams
from tests.benchmarks.bare import naive_keys
from tests.benchmarks.h2load import Driven, Load, closed_loop, frame, open_loop
from tests.benchmarks.model import CheckFailed, Latency, Sample, Target
from tests.benchmarks.processes import cpu_of, run, run_module, tool, usable_cores
from tests.benchmarks.servers import Bare, Cpu, Servers, Service, Setting

ONE_4, ONE_32, ALL_32 = Setting(1, 4), Setting(1, 32), Setting(0, 32)
LOADS = {ONE_4: Load(4, 8), ONE_32: Load(8, 16), ALL_32: Load(16, 8)}
_METRICS_PATIENCE = 3.0
_SERVICE = "/tallyboard.v1.CounterService"
_PIPELINE, _CLIENTS = 32, 50
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

    @abstractmethod
    def run(self, servers: Servers, operations: int) -> Sample:
        """About that many operations.

        Raises:
            CheckFailed: not all of them counted, or more did.
        """

    def latency(self, servers: Servers, rate: float, seconds: float) -> Latency | None:
        """Percentiles at an offered rate, for cases that are driven by h2load."""
        return None


def _core_beside(setting: Setting) -> int | None:
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
            _core_beside(self.setting),
        )
        used = _used(before, server.cpu())
        self.check(servers, driven)
        rate = driven.rate(*(_WHOLE if self.setting.workers == 1 else _ALL_BUSY))
        return Sample(
            driven.calls * self._updates, rate * self._updates, used.server, used.redis,
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
            _core_beside(self.setting),
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
        _check_data(driven, len(frame(self.request())))


class Naive(Echo):
    """The bare server that sends one INCR a request."""

    def server(self, servers: Servers) -> Bare:
        return servers.bare("naive", self.setting)

    def before(self, servers: Servers) -> None:
        self.server(servers)
        _forget(servers, "post:42")

    def check(self, servers: Servers, driven: Driven) -> None:
        super().check(servers, driven)
        _check_naive(servers, "post:42", driven.calls)


class Increment(Unary):
    """Increment, or BatchIncrement of a number of counters."""

    needs_service = True

    def server(self, servers: Servers) -> Service:
        return servers.service(self.setting)

    def path(self, servers: Servers) -> str:
        return f"{_SERVICE}/{'Increment' if self._updates == 1 else 'BatchIncrement'}"

    def request(self) -> Message:
        if self._updates == 1:
            return pb.IncrementRequest(counter="post:42", delta=1)
        return pb.BatchIncrementRequest(
            deltas=[pb.CounterDelta(counter=f"post:{i}", delta=1) for i in range(self._updates)]
        )

    def check(self, servers: Servers, driven: Driven) -> None:
        _check_data(driven, len(frame(pb.IncrementResponse())))
        names = ["post:42"] if self._updates == 1 else [f"post:{i}" for i in range(self._updates)]
        service = self.server(servers)
        service.check_gained(dict.fromkeys(names, driven.calls))
        service.settle()


class Get(Unary):
    """GetCounter, from the cache or exact."""

    needs_service = True

    def __init__(
        self, kind: str, title: str, setting: Setting, first_rate: float, *, exact: bool
    ) -> None:
        super().__init__(kind, title, setting, first_rate)
        self._exact = exact

    def server(self, servers: Servers) -> Service:
        return servers.service(self.setting)

    def path(self, servers: Servers) -> str:
        return f"{_SERVICE}/GetCounter"

    def request(self) -> pb.GetCounterRequest:
        if self._exact:
            consistency = consistency_pb2.Consistency(exact=True)
            return pb.GetCounterRequest(counter="post:7", consistency=consistency)
        return pb.GetCounterRequest(counter="post:7")

    def before(self, servers: Servers) -> None:
        service = self.server(servers)
        service.counters.Increment(pb.IncrementRequest(counter="post:7", delta=1))
        service.check_gained({"post:7": 1})
        self._ended = service.calls("GetCounter")

    def check(self, servers: Servers, driven: Driven) -> None:
        service = self.server(servers)
        until = time.monotonic() + _METRICS_PATIENCE
        while True:  # a worker adds its calls up twice a second
            ended = service.calls("GetCounter")
            ok, failed = ended[0] - self._ended[0], ended[1] - self._ended[1]
            if ok + failed >= driven.calls or time.monotonic() > until:
                break
        if (ok, failed) != (driven.calls, 0):
            raise CheckFailed(f"of {driven.calls:,} GetCounter {ok:,} ended well, {failed:,} not")


class Distinct(Case):
    """Increments with a request id each, or the echo of the same, from our own generator."""

    setting: Setting

    def __init__(
        self, kind: str, title: str, setting: Setting, first_rate: float, *, echo: bool
    ) -> None:
        super().__init__(kind, title, setting, first_rate)
        self._echo = echo
        self.needs_service = not echo

    @property
    def conditions(self) -> str:
        return f"{self.setting}, own generator {LOADS[self.setting]}"

    def run(self, servers: Servers, operations: int) -> Sample:
        server: Bare | Service = servers.bare("echo", self.setting)
        path = servers.bare("echo", self.setting).path
        if not self._echo:
            server, path = servers.service(self.setting), f"{_SERVICE}/Increment"
        load = LOADS[self.setting]
        calls = max(operations, load.connections * load.streams)
        arguments = (server.address, path, "post:77", calls, load.connections, load.streams)
        before = server.cpu()
        finished = run_module("frames", *arguments, core=_core_beside(self.setting))
        used = _used(before, server.cpu())
        result = _printed(finished.output)
        if result["ok"] != calls:
            raise CheckFailed(f"of {calls:,} calls only {result['ok']:,.0f} have grpc-status 0")
        if isinstance(server, Service):
            server.check_gained({"post:77": calls})
            server.settle()
        seconds = result["seconds"]
        return Sample(calls, calls / seconds, used.server, used.redis, result["cpu"] / seconds)


class Streamed(Case):
    """StreamIncrements from a generator in a process of its own."""

    setting: Setting
    unit = "updates"
    needs_service = True

    def __init__(
        self, kind: str, title: str, setting: Setting, first_rate: float, *, batches_of: str
    ) -> None:
        super().__init__(kind, title, setting, first_rate)
        self._kind = batches_of
        # One connection reaches one worker: enough of them that no worker is left out.
        self._streams = 1 if setting.workers == 1 else 3 * setting.processes

    @property
    def conditions(self) -> str:
        return f"{self.setting.processes} worker(s), {self._streams} stream(s), 10,000 a batch"

    def run(self, servers: Servers, operations: int) -> Sample:
        service, prefix = servers.service(self.setting), self._kind
        kinds = streams.DISTINCT // streams.BATCH
        batches = max(-(-kinds // self._streams) + 1, operations // (streams.BATCH * self._streams))
        arguments = (service.address, self._kind, prefix, self._streams, batches)
        before = service.cpu()
        finished = run_module("streams", *arguments, core=_core_beside(self.setting))
        used = _used(before, service.cpu())
        result = _printed(finished.output)
        sent = batches * self._streams
        if result["batches"] != sent or result["failures"]:
            raise CheckFailed(f"of {sent:,} batches {result['batches']:,.0f} were acknowledged")
        service.check_gained(streams.plan(self._kind, prefix).expected(batches, self._streams))
        service.settle()
        updates, seconds = sent * streams.BATCH, result["seconds"]
        return Sample(updates, updates / seconds, used.server, used.redis, result["cpu"] / seconds)


class Loop(Case):
    """A plain loop of redis-py INCRs, without any server."""

    def run(self, servers: Servers, operations: int) -> Sample:
        calls, pid = max(100, operations), servers.redis.pid
        _forget(servers, "loop")
        before = cpu_of([pid] if pid else [])
        finished = run_module("loop", servers.redis.socket, "loop", calls)
        used = cpu_of([pid] if pid else []) - before
        _check_naive(servers, "loop", calls)
        seconds = float(finished.output.split()[-1])
        return Sample(calls, calls / seconds, 0.0, used, finished.cpu / finished.wall)


class RedisBenchmark(Case):
    """redis-benchmark INCR -P 32: what Redis itself can do."""

    unit = "commands"

    @property
    def conditions(self) -> str:
        return f"-P {_PIPELINE} -c {_CLIENTS}"

    def run(self, servers: Servers, operations: int) -> Sample:
        calls, pid = max(10_000, operations), servers.redis.pid
        calls -= calls % (_PIPELINE * _CLIENTS)
        command = [tool("redis-benchmark"), "-s", servers.redis.socket, "-P", str(_PIPELINE)]
        command += ["-c", str(_CLIENTS), "-n", str(calls), "--csv", "INCR", "benchmark"]
        with _client(servers) as client:
            client.delete("benchmark")
            before = cpu_of([pid] if pid else [])
            started = time.monotonic()
            finished = run(command)
            seconds = time.monotonic() - started
            used = cpu_of([pid] if pid else []) - before
            counted = int(client.get("benchmark") or 0)
        if counted != calls:
            raise CheckFailed(f"redis-benchmark sent {calls:,} INCR, and Redis has {counted:,}")
        return Sample(calls, calls / seconds, 0.0, used, finished.cpu / finished.wall)


def _used(before: Cpu, after: Cpu) -> Cpu:
    return Cpu(after.server - before.server, after.redis - before.redis)


def _printed(output: str) -> dict[str, float]:
    """The JSON in the last line."""
    found: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return found


def _check_data(driven: Driven, size: int) -> None:
    """An error has no response message, so it shows in the bytes, though not in HTTP's status."""
    if driven.data != driven.calls * size:
        missing = driven.calls - driven.data / size
        raise CheckFailed(f"about {missing:,.0f} of {driven.calls:,} calls ended with an error")


def _client(servers: Servers) -> "redis.Redis":
    return redis.Redis(unix_socket_path=servers.redis.socket)


def _forget(servers: Servers, counter: str) -> None:
    with _client(servers) as client:
        client.delete(*naive_keys(counter))


def _check_naive(servers: Servers, counter: str, calls: int) -> None:
    with _client(servers) as client:
        counted = sum(int(value or 0) for value in client.mget(naive_keys(counter)))
    if counted != calls:
        raise CheckFailed(f"{calls:,} INCR were answered, and Redis has {counted:,}")


_WRITE, _READ = Target(ratio=0.85), Target(ratio=0.9)
_HOT, _MANY = Target(rate=1_000_000), Target(rate=300_000)


def all_cases() -> list[Case]:
    """Every case, in the order of a round: what is compared stands together."""
    cases: list[Case] = [
        *_compared(ONE_4, 8_000),
        *_compared(ONE_32, 6_000),
        Get("get-exact", "GetCounter, exact", ONE_32, 3_000, exact=True),
        Naive("naive", "INCR a request behind a bare server", ONE_32, 3_000),
        Distinct("echo-ids", "echo", ONE_32, 6_000, echo=True),
        Distinct("increment-ids", "Increment with request_id", ONE_32, 3_000, echo=False),
        *_compared(ALL_32, 8_000),
        Loop("naive-loop", "INCR a request in a loop, no server", None, 8_000),
        RedisBenchmark("redis-benchmark", "redis-benchmark INCR", None, 500_000),
        *(
            Increment(
                f"batch-{size}",
                f"BatchIncrement, {size:,} counters",
                ONE_32,
                100_000,
                updates=size,
                timed=False,
            )
            for size in (100, 1_000)
        ),
    ]
    for setting in (ONE_32, ALL_32):
        for kind, title, first_rate, target in (
            (streams.HOT, "one hot counter", 2_000_000, _HOT),
            (streams.NAMED, "one hot counter, named by each delta", 1_000_000, _HOT),
            (streams.DISTINCT_KIND, "100,000 counters", 200_000, _MANY),
        ):
            case = Streamed(
                f"stream-{kind}", f"StreamIncrements, {title}", setting, first_rate,
                batches_of=kind,
            )  # fmt: skip
            case.target = target
            cases.append(case)
    _find_baselines(cases)
    return cases


def _compared(setting: Setting, rate: float) -> list[Case]:
    increment = Increment("increment", "Increment", setting, rate / 2)
    increment.target = _WRITE
    cached = Get("get-cached", "GetCounter, cached", setting, rate / 2, exact=False)
    cached.target = _READ
    return [Echo("echo", "echo", setting, rate), increment, cached]


def _find_baselines(cases: list[Case]) -> None:
    for case in cases:
        if isinstance(case, Echo) and not isinstance(case, Naive):
            continue
        if isinstance(case, Distinct):
            case.baseline = None if case.name.startswith("echo") else "echo-ids/1x32"
        elif isinstance(case, Unary):
            case.baseline = "echo/" + case.name.partition("/")[2]
