"""A client of the published library in a process of its own, which can be killed and stopped.

`python -m tests.faults.soak.client TARGET PRODUCER_ID LEDGER PREFIX SEED` sends batches until
SIGTERM and then waits until all are acknowledged. Each batch is in the file LEDGER before it is
sent, and so is each acknowledgement that was seen. Started on the ledger of a client that is dead,
it goes on for that one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from tallyboard import IncrementProducer, TallyboardError, WindowFullError, open_channel
from tallyboard_server.processes import child_setup
from tests.faults.ledger import Ledger

FINISH_TIMEOUT: Final = 45.0
_BATCH: Final = 10
_PAUSE: Final = 0.02


class Notes(NamedTuple):
    """What the ledger of a client says.

    Attributes:
        batches: by sequence, the deltas by counter.
        acknowledged: all batches up to this one are.
        failures: what the service said that it can't count.
    """

    batches: dict[int, dict[str, int]]
    acknowledged: int
    failures: list[str]


def read_notes(path: Path) -> Notes:
    """Reads a ledger; nothing if there is none."""
    notes: dict[int, dict[str, int]] = {}
    acknowledged, failures = 0, []
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        if "deltas" in entry:
            notes[entry["sequence"]] = entry["deltas"]
        elif "failure" in entry:
            failures.append(entry["failure"])
        else:
            acknowledged = entry["acknowledged"]
    return Notes(notes, acknowledged, failures)


class ClientProcess:
    """The process, and its successors, as the schedule sees them; for the main thread only.

    Args:
        target: the service.
        folder: for ledgers.
        prefix: of the names of counters.
        seed: of what it sends.
    """

    def __init__(self, target: str, folder: Path, prefix: str, seed: int) -> None:
        self._target = target
        self._folder = folder
        self._prefix = prefix
        self._seed = seed
        self._lives = 0
        self._ledgers: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def notes(self) -> Notes:
        """What the ledger of the last one says now."""
        return read_notes(self._ledgers[-1]) if self._ledgers else Notes({}, 0, [])

    def start(self, *, goes_on: bool = False) -> None:
        """Start it, as a new producer, or as the successor of the last one."""
        if not (goes_on and self._ledgers):
            self._ledgers.append(self._folder / f"client-{self._seed}-{len(self._ledgers)}")
        ledger = self._ledgers[-1]
        self._lives += 1
        command = [sys.executable, "-m", "tests.faults.soak.client", self._target]
        command += [f"{self._prefix}{ledger.name}", str(ledger), self._prefix, str(self._lives)]
        self._process = subprocess.Popen(command, preexec_fn=child_setup(signal.SIGKILL))

    def kill(self) -> None:
        """With SIGKILL; what it has not seen acknowledged is not known to count."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Hold it with SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a held one go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """No new batches; does not wait for those under way."""
        self.resume()
        self._signal(signal.SIGTERM)

    def finish(self, ledger: Ledger) -> int:
        """Wait for its end and put down what it knows; how many updates were acknowledged."""
        self.stop()
        if self._process is not None:
            try:
                status: int | None = self._process.wait(FINISH_TIMEOUT)
            except subprocess.TimeoutExpired:
                status = None
            # One that was stopped before it could listen has sent nothing new.
            if status not in (0, -signal.SIGTERM):
                ledger.problem(f"the client process ended with status {status}")
        self.kill()
        return sum(self._put_down(path, ledger) for path in self._ledgers)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _put_down(self, path: Path, ledger: Ledger) -> int:
        notes, updates = read_notes(path), 0
        for failure in notes.failures:
            ledger.problem(f"client: {failure}")
        for sequence, deltas in notes.batches.items():
            if sequence <= notes.acknowledged:
                updates += len(deltas)
            for name, delta in deltas.items():
                if sequence <= notes.acknowledged:
                    ledger.counted(name, delta)
                else:
                    ledger.unknown(name, delta)
        return updates


class _Writer:
    """Sends batches and keeps the ledger of them."""

    def __init__(self, producer: IncrementProducer, ledger: Path, notes: Notes) -> None:
        self._producer = producer
        self._file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._acknowledged = notes.acknowledged
        self._next = max(notes.batches, default=0) + 1

    def note(self, **entry: Any) -> None:
        """A line of the ledger; one write, so it is there whole, whatever kills this process."""
        os.write(self._file, f"{json.dumps(entry)}\n".encode())

    def send(self, deltas: dict[str, int]) -> None:
        """A new batch."""
        self.note(sequence=self._next, deltas=deltas)
        self.send_again(deltas)
        self._next += 1

    def send_again(self, deltas: dict[str, int]) -> None:
        """A batch that is in the ledger."""
        while True:
            with suppress(WindowFullError):
                self._producer.send_batch(list(deltas), list(deltas.values()), timeout=1.0)
                return

    def look(self) -> None:
        """Notes what is acknowledged by now."""
        seen = self._producer.acknowledged_sequence
        if seen > self._acknowledged:
            self._acknowledged = seen
            self.note(acknowledged=seen)


def _deltas(prefix: str, source: random.Random) -> Iterator[dict[str, int]]:
    while True:
        names = [f"{prefix}client{source.randint(0, 49)}" for _ in range(_BATCH)]
        yield {name: source.randint(1, 1000) for name in names}


def _main(target: str, producer_id: str, path: Path, prefix: str, seed: int) -> int:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    notes = read_notes(path)
    waiting = {s: d for s, d in sorted(notes.batches.items()) if s > notes.acknowledged}
    first = min(waiting, default=max(notes.batches, default=0) + 1)
    with (
        open_channel(target) as channel,
        IncrementProducer(
            channel, producer_id=producer_id, first_sequence=first, stall_timeout=4.0
        ) as producer,
    ):
        writer = _Writer(producer, path, notes)
        for deltas in waiting.values():
            writer.send_again(deltas)
        for deltas in _deltas(prefix, random.Random(f"{producer_id} {seed}")):
            if stopping.wait(_PAUSE):
                break
            writer.send(deltas)
            writer.look()
        with suppress(TallyboardError):
            producer.flush(FINISH_TIMEOUT - 5.0)
        writer.look()
        for failure in producer.failures:
            writer.note(failure=str(failure))
        return 0 if not producer.pending else 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
