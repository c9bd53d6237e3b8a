"""Reads that share one MGET."""

from typing import Any

import hiredis

from tallyboard_server.redis import keys
from tallyboard_server.redis.calls import Outcome, is_elsewhere, pack, redis_said
from tallyboard_server.redis.fences import Fences, closed
from tallyboard_server.redis.operations import Read

MAX_MGET_KEYS = 8192


class Gets:
    """Reads that share one MGET, with the incarnations of all their partitions behind them."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.size = 0
        self._partitions: set[int] = set()

    def takes(self, read: Read) -> bool:
        """Adds the read, unless the MGET is full. An empty one takes any read."""
        if self.reads and self.size + len(read.keys) > MAX_MGET_KEYS:
            return False
        self.reads.append(read)
        self.size += len(read.keys)
        self._partitions.update(read.partitions)
        return True

    def pack(self) -> bytes:
        """The MGET command."""
        names = [key for read in self.reads for key in read.keys]
        names += [keys.incarnation_key(partition) for partition in self._partitions]
        return pack("MGET", *names)

    def settle(self, reply: Any, fences: Fences, outcome: Outcome) -> None:
        """Gives every read its values or its error."""
        if isinstance(reply, hiredis.ReplyError) and is_elsewhere(reply, outcome):
            outcome.again += self.reads
            return
        error = redis_said(reply) if isinstance(reply, hiredis.ReplyError) else None
        lost: set[int] = set()
        if error is None:
            found = zip(self._partitions, reply[self.size :], strict=True)
            lost = {p for p, value in found if not value or value.decode() != fences.expected(p)}
        at = 0
        for read in self.reads:
            read.error = error
            if error is None:
                read.values = reply[at : at + len(read.keys)]
                at += len(read.keys)
                mine = lost.intersection(read.partitions)
                if mine:
                    read.error = closed(min(mine))
            read.on_done()
