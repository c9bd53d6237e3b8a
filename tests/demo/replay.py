"""Sends flights through several streams at once, each with a connection of its own."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

from tallyboard import IncrementProducer, TallyboardError, open_channel
from tests.demo.events import Flight, add_updates

FLUSH_TIMEOUT: Final = 120.0
_CHUNK: Final = 500
_TICK: Final = 0.05


class Replayed(NamedTuple):
    """What came of it: times in seconds, `failures` as sentences."""

    acknowledged: int
    seconds: float
    streams_opened: int
    failures: list[str]


def replay(
    flights: Sequence[Flight],
    target: str,
    tenant: str,
    streams: int,
    progress: Callable[[int], object],
) -> Replayed:
    """Send the increments of all flights, and wait until all are acknowledged.

    Args:
        progress: called some 20 times a second with the number of acknowledged updates.

    Raises:
        TallyboardError: the service refused a stream, or did not acknowledge it in time.
    """
    with ExitStack() as stack:
        producers = [
            IncrementProducer(
                stack.enter_context(open_channel(target)), tenant, timeout=FLUSH_TIMEOUT
            )
            for _ in range(streams)
        ]
        feeders = [
            _Feeder(producer, flights[index::streams]) for index, producer in enumerate(producers)
        ]
        started = time.monotonic()
        for feeder in feeders:
            feeder.start()
        while any(feeder.is_alive() for feeder in feeders):
            progress(sum(producer.acknowledged for producer in producers))
            next((f for f in feeders if f.is_alive()), feeders[0]).join(_TICK)
        seconds = time.monotonic() - started
        acknowledged = sum(producer.acknowledged for producer in producers)
        progress(acknowledged)
        for feeder in feeders:
            if feeder.error is not None:
                raise feeder.error
        opened = sum(producer.streams_opened for producer in producers)
        failures = [f"{f.counter}: {f.error}" for p in producers for f in p.failures]
        return Replayed(acknowledged, seconds, opened, failures)


class _Feeder(threading.Thread):
    """Gives one producer its share of the flights, and closes it."""

    def __init__(self, producer: IncrementProducer, flights: Sequence[Flight]) -> None:
        super().__init__(name="feeder", daemon=True)
        self.error: TallyboardError | None = None
        self._producer = producer
        self._flights = flights

    def run(self) -> None:
        try:
            with self._producer as producer:
                for start in range(0, len(self._flights), _CHUNK):
                    counters: list[str] = []
                    deltas: list[int] = []
                    for flight in self._flights[start : start + _CHUNK]:
                        add_updates(flight, counters, deltas)
                    producer.add_many(counters, deltas)
        except TallyboardError as error:
            self.error = error
