"""The cases of counters. An operation is one call, or one update of a batch."""

from google.protobuf.message import Message

from tallyboard.v1 import consistency_pb2
from tallyboard.v1 import counters_pb2 as pb
from tests.benchmarks import messages, streams
from tests.benchmarks.bare import naive_keys
from tests.benchmarks.base import (
    ALL_32,
    ONE_4,
    ONE_32,
    Case,
    Echo,
    Framed,
    FramedEcho,
    Unary,
    check_data,
    client_of,
    core_beside,
    printed,
    used_between,
)
from tests.benchmarks.h2load import Driven, frame
from tests.benchmarks.model import CheckFailed, Sample, Target
from tests.benchmarks.peers import RedisBenchmark
from tests.benchmarks.processes import cpu_of, run_module
from tests.benchmarks.servers import Bare, Servers, Service, Setting

_SERVICE = "/tallyboard.v1.CounterService"


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
        check_data(driven, len(frame(pb.IncrementResponse())))
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
        self.server(servers).check_calls("GetCounter", self._ended, driven.calls)


class IncrementIds(Framed):
    """Increments with a request id each."""

    needs_service = True

    def server(self, servers: Servers) -> Service:
        return servers.service(self.setting)

    def path(self, servers: Servers) -> str:
        return f"{_SERVICE}/Increment"

    def messages(self) -> tuple[str, str, int]:
        return messages.INCREMENT, "post:77", 0

    def check(self, servers: Servers, calls: int) -> None:
        service = self.server(servers)
        service.check_gained({"post:77": calls})
        service.settle()


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
        finished = run_module("streams", *arguments, core=core_beside(self.setting))
        used = used_between(before, service.cpu())
        result = printed(finished.output)
        sent = batches * self._streams
        if result["batches"] != sent or result["failures"]:
            raise CheckFailed(f"of {sent:,} batches {result['batches']:,.0f} were acknowledged")
        service.check_gained(streams.plan(self._kind, prefix).expected(batches, self._streams))
        service.settle()
        updates, seconds = sent * streams.BATCH, result["seconds"]
        return Sample(updates, updates / seconds, used.server, used.store, result["cpu"] / seconds)


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


def _forget(servers: Servers, counter: str) -> None:
    with client_of(servers) as client:
        client.delete(*naive_keys(counter))


def _check_naive(servers: Servers, counter: str, calls: int) -> None:
    with client_of(servers) as client:
        counted = sum(int(value or 0) for value in client.mget(naive_keys(counter)))
    if counted != calls:
        raise CheckFailed(f"{calls:,} INCR were answered, and Redis has {counted:,}")


_WRITE, _READ = Target(ratio=0.85), Target(ratio=0.9)
_HOT, _MANY = Target(rate=1_000_000), Target(rate=300_000)


def counter_cases() -> list[Case]:
    """The cases of counters, in the order of a round: what is compared stands together."""
    cases: list[Case] = [
        *_compared(ONE_4, 8_000),
        *_compared(ONE_32, 6_000),
        Get("get-exact", "GetCounter, exact", ONE_32, 3_000, exact=True),
        Naive("naive", "INCR a request behind a bare server", ONE_32, 3_000),
        FramedEcho("echo-ids", "echo", ONE_32, 6_000),
        IncrementIds("increment-ids", "Increment with request_id", ONE_32, 3_000),
        *_compared(ALL_32, 8_000),
        Loop("naive-loop", "INCR a request in a loop, no server", None, 8_000),
        RedisBenchmark("redis-benchmark", "redis-benchmark INCR", 500_000, "INCR", "benchmark"),
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
    for case in cases:
        if isinstance(case, Unary) and not (isinstance(case, Echo) and not isinstance(case, Naive)):
            case.baseline = "echo/" + case.name.partition("/")[2]
        elif isinstance(case, IncrementIds):
            case.baseline = "echo-ids/1x32"
    return [*cases, *_streams()]


def _compared(setting: Setting, rate: float) -> list[Case]:
    increment = Increment("increment", "Increment", setting, rate / 2)
    increment.target = _WRITE
    cached = Get("get-cached", "GetCounter, cached", setting, rate / 2, exact=False)
    cached.target = _READ
    return [Echo("echo", "echo", setting, rate), increment, cached]


def _streams() -> list[Case]:
    cases: list[Case] = []
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
    return cases
