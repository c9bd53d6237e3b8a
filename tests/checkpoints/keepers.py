"""Keepers that die at a moment of their checkpoints, and what goes on beside them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.redis.keys import version_key
from tests.postgres.support import incarnations, rows
from tests.redis.calls import Caller


def caller_of(redis: Redis, partition: int = 0) -> Caller:
    """Calls of a new link for a partition that Postgres knows."""
    return Caller(redis, partition, incarnations(redis)[partition])


def version_in_redis(redis: Redis, partition: int = 0) -> int:
    """The number of the last checkpoint that was taken."""
    return int(redis.execute_command("GET", version_key(partition)) or 0)


def version_in_postgres(database: str, partition: int = 0) -> int:
    """The number of the last checkpoint that was committed."""
    query = f"SELECT version FROM tallyboard.partitions WHERE partition = {partition}"
    return int(rows(database, query)[0][0])


class Died(Exception):
    """Stands for the end of a keeper."""


class Mortal(Checkpointer):
    """A checkpointer that does something at a moment that it never sees, such as dying.

    Attributes:
        between: done before each step but the first.
        before_commit, after_commit: done then.
    """

    between: Callable[[], object] = staticmethod(lambda: None)
    before_commit: Callable[[], object] = staticmethod(lambda: None)
    after_commit: Callable[[], object] = staticmethod(lambda: None)

    def _take_keys(self, lives: Any, checkpoint: Any, limit: Any, what: Any, cut: Any) -> Any:
        if what == "more":
            self.between()
        return super()._take_keys(lives, checkpoint, limit, what, cut)

    def _copy(self, *arguments: Any) -> None:
        super()._copy(*arguments)
        self.before_commit()

    def _forget_keys(self, *arguments: Any) -> None:
        self.after_commit()
        super()._forget_keys(*arguments)


def die() -> None:
    """Ends a keeper."""
    raise Died


@contextmanager
def running(*work: Callable[[], object]) -> Iterator[None]:
    """Each is done over and over, on a thread of its own, while inside; none may fail."""
    over, errors = threading.Event(), []

    def repeat(one: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                one()
        except BaseException as error:  # whatever it is, the test has to show it
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30.0)
    assert errors == []
