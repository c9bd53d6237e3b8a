"""How fast the buffer of the Python library takes updates: `python -m tests.benchmarks.buffer`.

Beside it, in the same run, what people put on a hot path otherwise: a counter of prometheus-client,
which adds in memory and sends nothing. One thread adds; all else of the machine may do the rest.
"""

import argparse
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Metric

from tallyboard import Client, CounterBuffer
from tests.service import RunningService

COUNTERS = 1_000
_TIMEOUT = 120.0


def main() -> None:
    """Measures, and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adds", type=int, default=3_000_000, help="updates for each figure")
    given = parser.parse_args()
    names = [f"post:{i}" for i in range(COUNTERS)]
    with RunningService(workers=2) as service, Client(service.target) as client:
        with client.buffered() as buffer:
            peer = _rate(_metrics(names), given.adds)
            print(f"prometheus-client, {COUNTERS:,} counters: {peer:,.0f} additions/s")
            own = _rate(_adders(buffer, names), given.adds)
            print(f"add(), {COUNTERS:,} counters: {own:,.0f}/s, {own / peer:.2f} of it")
            buffer.flush(_TIMEOUT)
            whole = _acknowledged(buffer, names, given.adds)
            print(f"add() to acknowledged: {whole:,.0f}/s")
            broken = _acknowledged(buffer, names, given.adds, service.kill_worker)
            print(f"the same, a worker killed at half way: {broken:,.0f}/s")
        total = sum(count.value for count in client.get_many(names, exact=True))
    print(f"ledger {3 * given.adds:,}, counters {total:,}: difference {total - 3 * given.adds}")


def _metrics(names: Sequence[str]) -> list[Callable[[], object]]:
    metric = Metric("updates", "Updates.", ["name"], registry=CollectorRegistry())
    return [metric.labels(name).inc for name in names]


def _adders(buffer: CounterBuffer, names: Sequence[str]) -> list[Callable[[], object]]:
    return [buffer.counter(name).add for name in names]


def _rate(adders: Sequence[Callable[[], object]], adds: int) -> float:
    """Calls a second, of all in turns."""
    started = time.perf_counter()
    for _ in range(adds // len(adders)):
        for add in adders:
            add()
    return adds / (time.perf_counter() - started)


def _acknowledged(
    buffer: CounterBuffer,
    names: Sequence[str],
    adds: int,
    at_half_way: Callable[[], object] = lambda: None,
) -> float:
    """Updates a second from the first call to the last acknowledgement."""
    adders = _adders(buffer, names)
    started = time.perf_counter()
    _rate(adders, adds // 2)
    at_half_way()
    _rate(adders, adds // 2)
    buffer.flush(_TIMEOUT)
    return adds / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
