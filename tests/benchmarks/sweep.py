"""Where echo itself is best on one pinned core: threads, connections, calls under way."""

from typing import NamedTuple

from tests.benchmarks.base import ONE_32, Echo
from tests.benchmarks.h2load import Load, closed_loop, frame
from tests.benchmarks.processes import usable_cores
from tests.benchmarks.servers import Bare, Setting

THREADS = (1, 4, 16, 32, 64)
LOADS = (Load(1, 8), Load(4, 8), Load(8, 16))


class Swept(NamedTuple):
    """The rate of echo at one setting."""

    threads: int
    load: str
    rate: float


def sweep(seconds: float) -> list[Swept]:
    """Echo's rate at every setting, one short run each."""
    found = []
    request = frame(Echo("echo", "echo", ONE_32, 0).request())
    core = usable_cores()[-1]
    for threads in THREADS:
        with Bare("echo", Setting(1, threads)) as server:
            for load in LOADS:
                warm = closed_loop(server.address, server.path, request, 1_000, load, core)
                calls = int(warm.rate(0.2, 0.98) * seconds)
                driven = closed_loop(server.address, server.path, request, calls, load, core)
                found.append(Swept(threads, str(load), driven.rate(0.02, 0.98)))
    return found
