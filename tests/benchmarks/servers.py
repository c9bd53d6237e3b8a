"""The servers of one run: bare ones, a plain Redis, and the service itself, started on demand."""

import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import psutil
import redis

from tallyboard.v1 import consistency_pb2, operations_pb2, operations_pb2_grpc
from tallyboard.v1 import counters_pb2 as pb
from tallyboard.v1.counters_pb2_grpc import CounterServiceStub
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.benchmarks import bare
from tests.benchmarks.boards import Boards
from tests.benchmarks.model import CheckFailed, Unusable
from tests.benchmarks.processes import (
    Daemon,
    cpu_of,
    cpu_of_trees,
    free_address,
    usable_cores,
)

_TIMEOUT = 60.0
_SETTLE_TIMEOUT = 900.0
_METRICS_PATIENCE = 3.0
_READ = 1_000
_CALLS = re.compile(
    r'^tallyboard_rpc_seconds_count\{method="(\w+)",status="(\w+)"\} ([0-9.e+]+)', re.MULTILINE
)


class Setting(NamedTuple):
    """How a server runs: its workers (0: one a core), and the threads of each.

    Services of the same setting are one, unless their names differ.
    """

    workers: int
    threads: int
    name: str = ""

    @property
    def processes(self) -> int:
        """How many workers there are."""
        return self.workers or len(usable_cores())

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else "all workers"
        return f"{workers}, {self.threads} threads"


class Cpu(NamedTuple):
    """CPU seconds used so far by the serving processes, and by their stores."""

    server: float
    store: float


class PlainRedis(EmbeddedRedis):
    """An embedded Redis of its own for what does not go through the service."""

    @property
    def socket(self) -> str:
        """Its unix socket."""
        return str(self.socket_path)


class PlainPostgres(EmbeddedPostgres):
    """An embedded Postgres of its own for what does not go through the service."""


class Bare:
    """Bare servers, one a core when there are several, on one port.

    Args:
        stores: what they use, by what they are told of it: a socket or a URL.
    """

    def __init__(
        self,
        kind: str,
        setting: Setting,
        stores: Mapping[str, PlainRedis | PlainPostgres] | None = None,
    ) -> None:
        self.setting = setting
        self._kind, self._stores, self._own = kind, stores or {}, ExitStack()

    def __enter__(self) -> Self:
        self.address = free_address()
        command = [sys.executable, "-m", bare.__name__, self._kind, self.address]
        command += [str(self.setting.threads), *self._stores]
        daemons = [
            self._own.enter_context(Daemon(command, bare.READY, core))
            for core in usable_cores()[: self.setting.processes]
        ]
        for daemon in daemons:
            daemon.wait_ready()
        self._pids = [daemon.pid for daemon in daemons]
        return self

    def __exit__(self, *_: object) -> None:
        self._own.close()

    @property
    def path(self) -> str:
        """The HTTP path of the method of an echo."""
        return self.path_of(bare.METHOD)

    def path_of(self, method: str) -> str:
        """The HTTP path of a method."""
        return f"/{bare.SERVICE}/{method}"

    def cpu(self) -> Cpu:
        """CPU used so far."""
        stores = [store.pid for store in self._stores.values() if store.pid is not None]
        return Cpu(cpu_of(self._pids), cpu_of_trees(stores))

    def try_call(self) -> None:
        """One real call whose answer is compared, of those that answer the request itself.

        Raises:
            CheckFailed: it is wrong.
        """
        if self._kind == bare.NAIVE_BOARDS:
            return
        request = pb.IncrementRequest(counter="post:42", delta=1)
        with grpc.insecure_channel(self.address) as channel:
            call = channel.unary_unary(
                self.path, pb.IncrementRequest.SerializeToString, pb.IncrementRequest.FromString
            )
            if call(request, timeout=_TIMEOUT) != request:
                raise CheckFailed(f"the bare {self._kind} server answered something else")


class Service:
    """`tallyboard-server serve` with embedded stores of its own in a new folder."""

    def __init__(self, setting: Setting, data: Path) -> None:
        self.setting = setting
        self._data = data
        self._own = ExitStack()
        self._expected: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.address, self._metrics = free_address(), free_address()
        folder = self._own.enter_context(store_folder(self._data))
        self._redis_socket = EmbeddedRedis(folder).socket_path
        threads = str(self.setting.threads)
        options = {
            "--listen": self.address,
            "--metrics-listen": self._metrics,
            "--data-dir": str(folder),
            "--workers": str(self.setting.workers),
            "--write-threads": threads,
            "--read-threads": threads,
            "--durability": "fsynced",
            "--log-format": "json",
        }
        command = [sys.executable, "-m", "tallyboard_server", "serve"]
        command += [text for option in options.items() for text in option]
        self._daemon = self._own.enter_context(Daemon(command, "Tallyboard listens on"))
        return self

    def wait_ready(self) -> None:
        """Waits until it serves, and connects."""
        self._daemon.wait_ready()
        channel = self._own.enter_context(grpc.insecure_channel(self.address))
        self.counters = CounterServiceStub(channel)
        self._operations = operations_pb2_grpc.OperationsServiceStub(channel)
        self.boards = Boards(self.address, channel)
        children = psutil.Process(self._daemon.pid).children(recursive=True)
        self._workers = [p.pid for p in children if "worker" in p.cmdline()]
        self._redis = [p.pid for p in children if "redis-server" in p.name()]
        if len(self._workers) != self.setting.processes or len(self._redis) != 1:
            raise Unusable("The processes of the service could not be told apart.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._own.close()

    def terminate(self) -> None:
        """Asks it to stop; `__exit__` waits until it has."""
        self._daemon.terminate()

    def cpu(self) -> Cpu:
        """CPU used so far by the workers and by Redis; the keeper and Postgres are not in it."""
        return Cpu(cpu_of(self._workers), cpu_of(self._redis))

    def settle(self) -> None:
        """Checkpoints now, so that the keeper does not do it while something else is measured."""
        until = time.monotonic() + _SETTLE_TIMEOUT
        while True:
            try:
                self._operations.Checkpoint(operations_pb2.CheckpointRequest(), timeout=_TIMEOUT)
                return
            except grpc.RpcError as error:  # a call ends before all of a large board is copied
                is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                if not is_late or time.monotonic() > until:
                    raise

    def redis_memory(self) -> int:
        """Bytes that Redis uses for data."""
        found = self._redis_info("memory")
        return int(found["used_memory"]) - int(found["mem_aof_buffer"])

    def redis_cpu(self) -> float:
        """CPU seconds of Redis so far, finer than `cpu` has them."""
        found = self._redis_info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    def _redis_info(self, section: str) -> dict[str, Any]:
        with redis.Redis(unix_socket_path=str(self._redis_socket)) as client:
            found: dict[str, Any] = client.info(section)
        return found

    def calls(self, method: str) -> tuple[int, int]:
        """How many calls of a method have ended well so far, and how many have not."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=_TIMEOUT) as page:
            found = _CALLS.findall(page.read().decode())
        counts = [(status == "OK", int(float(n))) for name, status, n in found if name == method]
        return sum(n for ok, n in counts if ok), sum(n for ok, n in counts if not ok)

    def check_calls(self, method: str, before: tuple[int, int], calls: int) -> None:
        """Compares how many calls of a method have ended well with how many were made.

        Args:
            before: what `calls` gave before they were made.

        Raises:
            CheckFailed: some did not end well.
        """
        until = time.monotonic() + _METRICS_PATIENCE
        while True:  # a worker adds its calls up twice a second
            ended = self.calls(method)
            ok, failed = ended[0] - before[0], ended[1] - before[1]
            if ok + failed >= calls or time.monotonic() > until:
                break
        if (ok, failed) != (calls, 0):
            raise CheckFailed(f"of {calls:,} {method} {ok:,} ended well, {failed:,} not")

    def complaints(self) -> list[str]:
        """The last entries of its log."""
        lines = self._daemon.log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.startswith("{")][-3:]

    def check_gained(self, gained: dict[str, int]) -> None:
        """Compares counters with all that they should have gained so far.

        Args:
            gained: what they gained since the last check.

        Raises:
            CheckFailed: a count differs.
        """
        for name, delta in gained.items():
            self._expected[name] = self._expected.get(name, 0) + delta
        wrong = []
        names = list(gained)
        for at in range(0, len(names), _READ):
            request = pb.BatchGetCountersRequest(
                counters=names[at : at + _READ],
                consistency=consistency_pb2.Consistency(exact=True),
            )
            for count in self.counters.BatchGetCounters(request, timeout=_TIMEOUT).counts:
                if count.value != self._expected[count.counter]:
                    expected = self._expected[count.counter]
                    wrong.append(f"{count.counter} is {count.value:,}, not {expected:,}")
        if wrong:
            raise CheckFailed(f"{len(wrong):,} counts are wrong: {'; '.join(wrong[:5])}")


@contextmanager
def store_folder(parent: Path) -> Iterator[Path]:
    """A folder with a short path that every user may enter, as Postgres below root needs."""
    with tempfile.TemporaryDirectory(
        prefix="tb-bench-", dir=parent, ignore_cleanup_errors=True
    ) as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Servers:
    """Starts each server when it is first asked for, and ends all of them.

    Args:
        data: the folder that the stores' own folders are made in.
        with_postgres: whether naive leaderboards are asked for, which need a plain Postgres, too.

    Attributes:
        redis: the plain Redis.
    """

    def __init__(self, data: Path | None = None, *, with_postgres: bool = False) -> None:
        self.data = data or Path(tempfile.gettempdir())
        self._with_postgres = with_postgres
        self._own = ExitStack()
        self._bare: dict[tuple[str, Setting], Bare] = {}
        self._services: dict[Setting, Service] = {}

    def __enter__(self) -> Self:
        # Before gRPC has threads, for it forks.
        folder = self._own.enter_context(store_folder(self.data))
        self.redis = self._own.enter_context(PlainRedis(folder))
        if self._with_postgres:
            self._postgres = self._own.enter_context(PlainPostgres(folder))
        return self

    def __exit__(self, *_: object) -> None:
        for service in self._services.values():
            service.terminate()
        self._own.close()

    def start_services(self, settings: list[Setting]) -> None:
        """Starts services side by side, which is faster than one by one."""
        for setting in settings:
            self._services[setting] = self._own.enter_context(Service(setting, self.data))
        for service in self._services.values():
            service.wait_ready()

    def service(self, setting: Setting | None) -> Service:
        """A service that `start_services` has started."""
        assert setting is not None, "cases of the service have a setting"
        return self._services[setting]

    def bare(self, kind: str, setting: Setting) -> Bare:
        """The bare server of a kind; see bare.py."""
        key = kind, setting._replace(name="")
        if key not in self._bare:
            stores: dict[str, PlainRedis | PlainPostgres] = {}
            if kind != bare.ECHO:
                stores[self.redis.socket] = self.redis
            if kind == bare.NAIVE_BOARDS:
                stores[self._postgres.url] = self._postgres
            self._bare[key] = self._own.enter_context(Bare(kind, setting, stores))
            self._bare[key].try_call()
        return self._bare[key]
