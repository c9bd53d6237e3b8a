"""Something that is closed while other threads still give it updates."""

import threading
from collections.abc import Callable
from contextlib import suppress

from tallyboard import FailedPreconditionError
from tests.waiting import wait_for


def close_while_others_add(add: Callable[[], object], close: Callable[[], object]) -> int:
    """Closes it under two threads that add until they are refused; gives how many it took."""
    taken = [0, 0]

    def add_on(index: int) -> None:
        with suppress(FailedPreconditionError):
            while True:
                add()
                taken[index] += 1

    threads = [threading.Thread(target=add_on, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: min(taken) > 1000, "both to add")
    close()
    for thread in threads:
        thread.join(10)
    return sum(taken)
