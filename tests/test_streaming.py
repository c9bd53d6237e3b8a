"""Streams of numbered batches, without what is in them."""

from tallyboard_server.streaming import BatchStream


class Failed:
    """A batch of which no item counted."""

    over = True

    def __init__(self, size: int) -> None:
        self._size = size

    def failures(self) -> list[str]:
        """One for each item."""
        return ["NAME_INVALID"] * self._size


def acknowledged(batches: int, size: int) -> list[tuple[int, int]]:
    """The sequence and the number of failures of each acknowledgement of a whole stream."""
    stream: BatchStream[str] = BatchStream(10.0)
    for sequence in range(1, batches + 1):
        stream.take_batch("producer", sequence, size, lambda: Failed(size))
    stream.finish()
    return [(one.sequence, len(one.failures)) for one in stream.acknowledgements()]


def test_batches_that_are_over_share_an_acknowledgement() -> None:
    assert acknowledged(60, 100) == [(60, 6_000)]


def test_an_acknowledgement_with_many_failures_takes_in_no_more() -> None:
    assert acknowledged(5, 6_000) == [(2, 12_000), (4, 12_000), (5, 6_000)]
