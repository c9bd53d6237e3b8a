"""Writes of counters: one delta, many, and what clears a counter."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tallyboard_server.counters.merge import in_range, largest
from tallyboard_server.counters.model import MAX_VALUE, MakeDurable
from tallyboard_server.counters.requests import RequestIds
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.errors import DeadlineExceeded, OutcomeUnknown, OutOfRange, TallyboardError
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import MAX_DELTA
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.keys import parse_counter_key
from tallyboard_server.redis.operations import Part, Token, Write
from tallyboard_server.redis.store import RedisStore

_OUT_OF_RANGE = "the counter would leave the signed 64-bit range; it keeps its value"


@dataclass
class WriteResult:
    """What became of a write.

    Attributes:
        duplicate: all of it had been applied before.
        failures: counters that did not count, and why; the others did.
        journaled: some of it is durable, and will be applied when Redis takes it.
    """

    duplicate: bool
    failures: dict[str, TallyboardError] = field(default_factory=dict)
    journaled: bool = False


class CounterWriter:
    """Writes for one worker. Deadlines are values of `time.monotonic()`."""

    def __init__(
        self,
        store: RedisStore,
        sharding: Sharding,
        wide: WideCounters,
        requests: RequestIds,
        make_durable: MakeDurable | None = None,
    ) -> None:
        """Keeps them.

        Args:
            make_durable: copies partitions to Postgres, before what is not journaled is
                acknowledged.
        """
        self._make_durable = make_durable
        self._store = store
        self._sharding = sharding
        self._wide = wide
        self._requests = requests

    def increment(
        self, tenant: str, counter: str, delta: int, request_id: str, deadline: float
    ) -> WriteResult:
        """Adds to one counter.

        Raises:
            OutOfRange: the counter would leave the signed 64-bit range.
            TallyboardError: see errors.py.
        """
        token = None
        if request_id:
            self._requests.claim(tenant, request_id, f"add\0{delta}\0{counter}", deadline)
            partition, key = self._sharding.place(tenant, counter, request_id)
            token = self._requests.token(partition, tenant, request_id)
        else:
            partition, key = self._sharding.place(tenant, counter)

        def parts(write: Write) -> None:
            write.add(Part(write, partition, {key: delta}, token, bound=abs(delta)))

        if -MAX_DELTA <= delta <= MAX_DELTA:
            write = self._store.write(parts, 1, deadline)
        else:
            write = self._store.write(parts, 1, deadline, self._submit)
        if write.out_of_range:
            raise OutOfRange(_OUT_OF_RANGE)
        return WriteResult(write.duplicate, journaled=write.journaled)

    def batch(
        self, tenant: str, merged: Mapping[str, int], request_id: str, deadline: float
    ) -> WriteResult:
        """Adds to many counters.

        Args:
            merged: counter to the sum of its deltas.

        Raises:
            TallyboardError: nothing counted, or, with a request id, a repeat will complete it.
        """
        token_of: Callable[[int], Token | None] = _no_token
        if request_id:
            contents = "\0".join(f"{delta}\0{name}" for name, delta in sorted(merged.items()))
            self._requests.claim(tenant, request_id, f"batch\0{contents}", deadline)

            def token_of(partition: int) -> Token | None:
                return self._requests.token(partition, tenant, request_id)

        result = WriteResult(False)
        fitting = self._fitting(merged, result)
        if fitting:
            write = self._store.write(
                lambda w: self.add_parts(w, tenant, fitting, request_id or None, token_of),
                len(fitting),
                deadline,
                self._submit,
                raises=False,
            )
            self._collect(write, result)
        return result

    def submit(
        self,
        tenant: str,
        merged: Mapping[str, int],
        producer: str,
        token_of: Callable[[int], Token | None],
        on_done: Callable[[], object],
    ) -> tuple[Write, WriteResult]:
        """Submits a stream's batch and returns at once; `on_done` is called when it is over.

        The result's failures are complete after `outcome` was called with both.
        """
        result = WriteResult(False)
        fitting = self._fitting(merged, result)
        write = Write(on_done)
        self.add_parts(write, tenant, fitting, producer, token_of)
        if write.parts:
            self._submit(write, len(fitting))
        else:
            write.over = True
            on_done()
        return write, result

    def outcome(self, write: Write, result: WriteResult) -> WriteResult:
        """The result of a submitted batch that is over.

        Raises:
            TallyboardError: the batch, or a part of it, has to be sent again.
        """
        if write.error is not None:
            raise write.error
        self._note_out_of_range(write, result)
        result.duplicate = bool(write.parts) and write.duplicate
        return result

    def clear(
        self, tenant: str, counter: str, verb: str, request_id: str, deadline: float
    ) -> tuple[bool, bool]:
        """Resets or deletes a counter.

        Args:
            verb: "reset" (to zero, if it is there) or "delete".

        Returns:
            whether it existed, and whether this was a repeat.
        """
        if request_id:
            self._requests.claim(tenant, request_id, f"{verb}\0{counter}", deadline)
        shards = self._sharding.all_shards(tenant, counter)
        for partition, _ in shards:
            # It must not be done in some partitions only, nor before what is in a journal.
            if self._store.fences.expected(partition) is None:
                raise closed(partition)

        def parts(write: Write) -> None:
            for partition, key in shards:
                token = None
                if request_id:
                    token = self._requests.token(partition, tenant, request_id)
                write.add(Part(write, partition, {key: verb}, token, scripts.CLEAR))

        write = self._store.write(parts, len(shards), deadline, raises=False)
        _raise_error(write)
        if self._make_durable is not None:
            self._make_durable({partition for partition, _ in shards}, deadline)
        return write.existed > 0, write.duplicate

    def add_parts(
        self,
        write: Write,
        tenant: str,
        merged: Mapping[str, int],
        placed_by: str | None,
        token_of: Callable[[int], Token | None],
    ) -> None:
        """Adds one part a partition."""
        by_partition: defaultdict[int, dict[str, int]] = defaultdict(dict)
        places = self._sharding.places(tenant, placed_by)
        for counter, delta in merged.items():
            partition, key = places[counter]
            by_partition[partition][key] = delta
        bound = largest(merged)
        for partition, operations in by_partition.items():
            write.add(Part(write, partition, operations, token_of(partition), bound=bound))

    def _submit(self, write: Write, size: int) -> None:
        """Submits what shards can hold, and hands the rest to the wide counters."""
        ready = []
        large = []
        for part in write.parts:
            keys = []
            if part.bound > MAX_DELTA:
                keys = [k for k, d in part.operations.items() if not -MAX_DELTA <= d <= MAX_DELTA]
            if keys:
                large.append((part, keys))
            else:
                ready.append(part)
        if ready:
            self._store.submit(ready, size)
        for part, keys in large:
            self._wide.take_over(part, keys)

    def _fitting(self, merged: Mapping[str, int], result: WriteResult) -> Mapping[str, int]:
        if largest(merged) <= MAX_VALUE:
            return merged
        for counter, delta in merged.items():
            if not in_range(delta):
                result.failures[counter] = OutOfRange(_OUT_OF_RANGE)
        return {name: delta for name, delta in merged.items() if in_range(delta)}

    def _collect(self, write: Write, result: WriteResult) -> None:
        """Turns the outcome of a unary batch into one result."""
        if write.parts[0].token is not None or all(part.error for part in write.parts):
            _raise_error(write)
        for part in write.parts:
            if part.error is not None:
                for key in part.operations:
                    result.failures[parse_counter_key(key.encode()).counter] = part.error
        self._note_out_of_range(write, result)
        result.duplicate = write.duplicate
        result.journaled = write.journaled

    @staticmethod
    def _note_out_of_range(write: Write, result: WriteResult) -> None:
        for key in write.out_of_range:
            counter = parse_counter_key(key.encode()).counter
            result.failures[counter] = OutOfRange(_OUT_OF_RANGE)


def _raise_error(write: Write) -> None:
    """Raises the error of a write that failed, in whole or in part.

    Raises:
        OutcomeUnknown: some of it may have counted, and sending it again could count it twice.
        TallyboardError: otherwise, the first error.
    """
    errors = [part.error for part in write.parts if part.error is not None]
    for error in errors:
        if isinstance(error, OutcomeUnknown | DeadlineExceeded):
            raise error
    if errors and len(errors) < len(write.parts) and write.parts[0].token is None:
        raise OutcomeUnknown(f"a part of the write was applied, and another was not: {errors[0]}")
    if errors:
        raise errors[0]


def _no_token(partition: int) -> Token | None:
    return None
