"""Reads of entries that share one call of `entries.lua`."""

from typing import Any, Final

import hiredis

from tallyboard_server.errors import TallyboardError
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import Outcome, is_elsewhere, pack, redis_said
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.rankings import EntriesRead, Found, check_reply

MAX_MEMBERS: Final = 4000


class EntriesCall:
    """Reads of one ranking that share a call."""

    def __init__(self, first: EntriesRead) -> None:
        self.ranking = first.ranking
        self.reads = [first]
        self._size = len(first.members)

    def takes(self, read: EntriesRead) -> bool:
        """Adds the read, unless the call is full."""
        if self._size + len(read.members) > MAX_MEMBERS:
            return False
        self.reads.append(read)
        self._size += len(read.members)
        return True

    def pack(self) -> bytes:
        """The EVALSHA command."""
        names = self.ranking.names()
        members = [member for read in self.reads for member in read.members]
        sha = scripts.ENTRIES.sha
        return pack("EVALSHA", sha, len(names), *names, *self.ranking.rules(), *members)

    def settle(self, reply: Any, fences: Fences, outcome: Outcome) -> None:
        """Gives every read its members, or its error."""
        if isinstance(reply, hiredis.ReplyError):
            outcome.reconnect |= str(reply).startswith("NOSCRIPT")
            if is_elsewhere(reply, outcome) or str(reply).startswith("NOSCRIPT"):
                outcome.again += self.reads
                return
            self._fail(redis_said(reply))
            return
        error = check_reply(reply, self.ranking.partition, fences)
        if error is not None:
            self._fail(error)
            return
        _, meta, size, records, ranks, positions = reply
        at = 0
        for read in self.reads:
            to = at + len(read.members)
            read.found = Found(
                meta is not None, size, records[at:to], ranks[at:to], positions[at:to]
            )
            at = to
            read.on_done()

    def _fail(self, error: TallyboardError) -> None:
        for read in self.reads:
            read.fail(error)
