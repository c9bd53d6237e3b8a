"""Moments and sources as the contract has them."""

from google.protobuf.timestamp_pb2 import Timestamp

from tallyboard.v1 import consistency_pb2
from tallyboard_server.counters.model import Source

MICROS = 1_000_000
SOURCES = {
    Source.LIVE: consistency_pb2.SOURCE_LIVE,
    Source.CACHE: consistency_pb2.SOURCE_CACHE,
    Source.DURABLE: consistency_pb2.SOURCE_DURABLE,
}


def set_as_of(timestamp: Timestamp, as_of: float) -> None:
    """Sets a timestamp in place to seconds since the epoch; a message put into another is copied
    by way of its bytes.
    """
    seconds = int(as_of)
    timestamp.seconds = seconds
    timestamp.nanos = int((as_of - seconds) * 1e9)


def set_moment(timestamp: Timestamp, moment: int) -> None:
    """Sets a timestamp in place to microseconds since the epoch."""
    timestamp.seconds, micros = divmod(moment, MICROS)
    timestamp.nanos = micros * 1000
