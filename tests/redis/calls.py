"""Calls the scripts of the service on a Redis, one by one, as a link would."""

import itertools
import uuid
from collections.abc import Mapping
from typing import Any

from redis import Redis

from tallyboard_server.redis import keys, scripts
from tallyboard_server.redis.operations import Token

LINK_RING = 64
TENANT = "acme"


class Caller:
    """Calls scripts for one partition, under link sequences of its own.

    Args:
        redis: where; the partition is made there.
        partition: one that nobody else uses; a random one by default.
        incarnation: that of a partition that is there already.
    """

    def __init__(
        self, redis: Redis, partition: int | None = None, incarnation: str | None = None
    ) -> None:
        self.redis = redis
        self.partition = uuid.uuid4().int >> 66 if partition is None else partition
        self.incarnation = incarnation or uuid.uuid4().hex
        self.link = uuid.uuid4().hex
        self._sequences = itertools.count(1)
        redis.set(keys.incarnation_key(self.partition), self.incarnation)

    def shard(self, counter: str) -> str:
        """The key of a counter's shard here."""
        return keys.shard_key(self.partition, TENANT, counter)

    def wide(self, counter: str) -> str:
        """The key of a wide counter here."""
        return keys.wide_key(self.partition, TENANT, counter)

    def producer(self, sequence: int, name: str = "ann", ttl: int = 600) -> Token:
        """A producer's token."""
        return Token("p", keys.producer_key(self.partition, TENANT, name), sequence, ttl)

    def request(self, request_id: str = "r1", ttl: int = 600) -> Token:
        """A request's token."""
        return Token("r", keys.request_key(self.partition, TENANT, request_id), "", ttl)

    def call(
        self,
        script: scripts.Script,
        operations: Mapping[str, Any],
        *tokens: Token,
        sequence: int | None = None,
        incarnation: str | None = None,
        row: int | None = None,
        keeps_tokens: bool = False,
    ) -> list[Any]:
        """The answer of a script behind the frame, as `command` describes it."""
        command = self.command(
            script,
            operations,
            *tokens,
            sequence=sequence,
            incarnation=incarnation,
            row=row,
            keeps_tokens=keeps_tokens,
        )
        answer: Any = self.redis.execute_command(*command)
        return list(answer)

    def command(
        self,
        script: scripts.Script,
        operations: Mapping[str, Any],
        *tokens: Token,
        sequence: int | None = None,
        incarnation: str | None = None,
        row: int | None = None,
        keeps_tokens: bool = False,
    ) -> tuple[Any, ...]:
        """The command that calls a script behind the frame, under a new link sequence unless given.

        Args:
            row: its number in the journal.
            keeps_tokens: whether tokens are part of checkpoints.
        """
        names = [
            keys.incarnation_key(self.partition),
            keys.dirty_key(self.partition),
            keys.link_key(self.partition, self.link),
            keys.journaled_key(self.partition),
            *(token.key for token in tokens),
            *operations,
        ]
        number = next(self._sequences) if sequence is None else sequence
        arguments: list[Any] = [incarnation or self.incarnation, number, LINK_RING, 600]
        arguments += ("" if row is None else row, "k" if keeps_tokens else "", len(tokens))
        for token in tokens:
            arguments += (token.kind, f"{token.sequence}{token.note}", token.ttl)
        arguments += operations.values()
        return ("EVAL", script.source, len(names), *names, *arguments)

    def add(
        self,
        counter: str,
        delta: int,
        *tokens: Token,
        sequence: int | None = None,
        row: int | None = None,
        keeps_tokens: bool = False,
    ) -> Any:
        """The answer to one addition."""
        operations = {self.shard(counter): delta}
        return self.call(
            scripts.ADD,
            operations,
            *tokens,
            sequence=sequence,
            row=row,
            keeps_tokens=keeps_tokens,
        )

    def dirty(self) -> set[str]:
        """What the partition's next checkpoint has to copy."""
        found: Any = self.redis.smembers(keys.dirty_key(self.partition))
        return {key.decode() for key in found}

    def journaled(self) -> set[int]:
        """The rows of the journal that were applied and are in no checkpoint yet."""
        found: Any = self.redis.smembers(keys.journaled_key(self.partition))
        return {int(row) for row in found}

    def plain(self, script: scripts.Script, key: str, *arguments: Any) -> list[Any]:
        """The answer of FREEZE or WIDEN."""
        names = [keys.incarnation_key(self.partition), keys.dirty_key(self.partition), key]
        return self._run(script, names, [self.incarnation, *arguments])

    def value(self, counter: str) -> bytes | None:
        """What the counter's shard holds."""
        found: Any = self.redis.get(self.shard(counter))
        return None if found is None else bytes(found)

    def _run(self, script: scripts.Script, names: list[str], arguments: list[Any]) -> list[Any]:
        answer: Any = self.redis.eval(script.source, len(names), *names, *arguments)
        return list(answer)
