"""Wide counters: totals that shards can't hold. How and why: docs/architecture.md.

Rare and slower by design: one thread freezes the shards, adds them up, and sends what they
refused to the wide key, where Redis itself checks 64 bits.
"""

import threading
import time
from queue import Full, Queue

import structlog

from tallyboard_server.counters.model import MakeDurable
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.errors import (
    OutOfRange,
    Overloaded,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import (
    dirty_key,
    incarnation_key,
    parse_counter_key,
    wide_key,
)
from tallyboard_server.redis.operations import Part, Token, Write
from tallyboard_server.redis.store import RedisStore

_log = structlog.get_logger(__name__)
_MAX_WAITING = 10_000
_VERBS = {"reset": "wide_reset", "delete": "wide_delete"}


class WideCounters:
    """Takes over parts whose keys a shard can't hold.

    The order matters for exactly once: first the wide keys, each with a token of its own, then the
    rest of the part with the part's token. A part whose token was seen is therefore done whole.
    """

    def __init__(
        self,
        store: RedisStore,
        sharding: Sharding,
        timeout: float,
        make_durable: MakeDurable | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            timeout: seconds that one step may take.
            make_durable: copies partitions to Postgres before the next step is taken, where what
                is journaled must find them as they are; raises TallyboardError.
        """
        self._make_durable = make_durable
        self._store = store
        self._sharding = sharding
        self._timeout = timeout
        self._queue: Queue[tuple[Part, list[str]] | None] = Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="wide", daemon=True)
        self._thread.start()

    def take_over(self, part: Part, keys: list[str]) -> None:
        """Ends the part some time later; does not block."""
        if part.script is scripts.ADD_WIDE:
            part.done(OutOfRange("the counter would leave the signed 64-bit range"))
            return
        try:
            self._queue.put_nowait((part, keys))
        except Full:
            part.done(Overloaded("too many updates of very large counters wait"))

    def close(self) -> None:
        """Ends the thread after what waits, within a limit."""
        try:
            self._queue.put(None, timeout=self._timeout)
        except Full:
            _log.warning("wide counters given up at the end", waiting=self._queue.qsize())
        self._thread.join(self._timeout)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            part, keys = item
            try:
                self._settle(part, keys)
            except TallyboardError as error:
                part.done(error)
            except Exception as error:
                _log.exception("wide counter failed")
                part.done(TallyboardError(f"internal error: {type(error).__name__}"))

    def _settle(self, part: Part, keys: list[str]) -> None:
        for key in keys:
            part.counted |= self.apply(part, key)
        part.operations = {k: v for k, v in part.operations.items() if k not in keys}
        if part.operations or part.token is not None:
            self._store.submit((part,), len(part.operations))
        else:
            part.done()

    def apply(self, part: Part, key: str) -> bool:
        """Applies one operation of a part now; False if the counter would leave its range.

        Raises:
            TallyboardError: it is not known to be applied; with a token it can be tried again.
        """
        _, _, tenant, counter = parse_counter_key(key.encode())
        self.widen(tenant, counter)
        home = self._sharding.home(tenant, counter)
        token = part.token and _token_of(part.token, home, counter)
        what = part.operations[key]
        script = scripts.ADD_WIDE
        if part.script is scripts.CLEAR:
            what, script = _VERBS[what], scripts.CLEAR
        operations = {wide_key(home, tenant, counter): what}

        def parts(write: Write) -> None:
            write.add(Part(write, home, operations, token, script))

        try:
            write = self._store.write(parts, 1, time.monotonic() + self._timeout)
        except OutOfRange:
            part.write.out_of_range.append(key)
            if part.token is not None:
                part.token = part.token._replace(note=f"{part.token.note}\n{key}")
            return False
        part.write.existed += write.existed
        return True

    def widen(self, tenant: str, counter: str) -> None:
        """Makes the counter wide; again, or by two at once, changes nothing.

        Raises:
            TallyboardError: it is not known to be done; it can be tried again.
        """
        deadline = time.monotonic() + self._timeout
        home = self._sharding.home(tenant, counter)
        key = wide_key(home, tenant, counter)
        if self._store.get([key], deadline, (home,))[0] is not None:
            return
        # All that any setting could give it: a shard that is added later must be frozen too.
        shards = self._sharding.possible_shards(tenant, counter)
        freezes = [self._call(scripts.FREEZE, *shard) for shard in shards]
        total = sum(int(value) for value in self._values(freezes, deadline))
        if self._make_durable is not None:
            # A rebuild must never find a shard that takes deltas beside a wide value.
            self._make_durable({partition for partition, _ in shards})
        self._values([self._call(scripts.WIDEN, home, key, total)], deadline)
        if self._make_durable is not None:
            self._make_durable({home})

    def _call(
        self, script: scripts.Script, partition: int, key: str, *arguments: int
    ) -> tuple[str | int, ...]:
        incarnation = self._store.fences.expected(partition)
        if incarnation is None:
            raise Unavailable(f"partition {partition} is closed", reason="PARTITION_UNAVAILABLE")
        names = (incarnation_key(partition), dirty_key(partition), key)
        return ("EVALSHA", script.sha, len(names), *names, incarnation, *arguments)

    def _values(self, calls: list[tuple[str | int, ...]], deadline: float) -> list[bytes]:
        values = []
        for verdict, *rest in self._store.commands(calls, deadline):
            if verdict != b"ok":
                raise Unavailable("a partition is closed", reason="PARTITION_UNAVAILABLE")
            values += rest
        return values


def _token_of(token: Token, home: int, counter: str) -> Token:
    """A token for one counter of a part, in the counter's home partition."""
    _, name = token.key.split("}", 1)
    return token._replace(key=f"{{tb:{home}}}{name}\x1f{counter}", note="")
