"""A stream of increments. A producer's token makes each batch count once, however it comes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tallyboard_server.counters.merge import merge
from tallyboard_server.counters.writes import CounterWriter, WriteResult
from tallyboard_server.errors import FieldViolation, InvalidArgument, TallyboardError
from tallyboard_server.names import are_plain, name_problem
from tallyboard_server.redis.keys import producer_key
from tallyboard_server.redis.operations import Token, Write
from tallyboard_server.streaming import BatchStream

IncrementFailure = tuple[str, TallyboardError]


class _Increments(NamedTuple):
    """A batch of increments that was submitted."""

    writer: CounterWriter
    write: Write
    result: WriteResult

    @property
    def over(self) -> bool:
        return self.write.over

    def failures(self) -> list[IncrementFailure]:
        return list(self.writer.outcome(self.write, self.result).failures.items())


class IncrementStream(BatchStream[IncrementFailure]):
    """The state of one stream; failures are (counter, error).

    Args:
        producer_ttl: seconds that a silent producer is remembered.
        patience: seconds that one batch may take.
    """

    def __init__(
        self, writer: CounterWriter, tenant: str, producer_ttl: int, patience: float
    ) -> None:
        super().__init__(patience)
        self._writer = writer
        self._tenant = tenant
        self._ttl = producer_ttl

    def take(
        self, producer: str, sequence: int, counters: Sequence[str], deltas: Sequence[int]
    ) -> None:
        """Takes one batch; waits while too many are ahead of their acknowledgement.

        Raises:
            TallyboardError: the stream is over; the batch was not taken.
        """
        merged, failures = self._merged(counters, deltas)

        def submit() -> _Increments:
            token_of = partial(self._token, sequence)
            write, result = self._writer.submit(
                self._tenant, merged, self.producer, token_of, self.wake_up
            )
            result.failures |= failures
            return _Increments(self._writer, write, result)

        self.take_batch(producer, sequence, len(deltas), submit)

    def _merged(
        self, counters: Sequence[str], deltas: Sequence[int]
    ) -> tuple[Mapping[str, int], dict[str, TallyboardError]]:
        failures: dict[str, TallyboardError] = {}
        if 0 in deltas:
            names = counters if len(counters) > 1 else [counters[0]] * len(deltas)
            for name, delta in zip(names, deltas, strict=True):
                if delta == 0:
                    failures[name] = _invalid("DELTA_ZERO", "deltas", "must not be 0")
        merged = merge(counters, deltas)
        if not are_plain(merged):
            for name in merged:
                problem = name_problem(name)
                if problem:
                    failures[name] = _invalid("NAME_INVALID", "counters", problem)
        if failures:
            merged = {name: delta for name, delta in merged.items() if name not in failures}
        return merged, failures

    def _token(self, sequence: int, partition: int) -> Token:
        key = producer_key(partition, self._tenant, self.producer)
        return Token("p", key, sequence, self._ttl)


def _invalid(reason: str, field: str, description: str) -> InvalidArgument:
    return InvalidArgument(reason, [FieldViolation(field, description)])
