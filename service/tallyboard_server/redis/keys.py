"""Names of keys in Redis, and the placement of counters in partitions.

The table of keys is in docs/architecture.md. Every key of a partition carries its hash tag, and
a tenant is written with its length in bytes, so no name can run into another key.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis.crc import key_slot

PARTITION_META = "tb:meta"

# Shards of a counter are this many partitions apart: odd, so that it walks through all partitions
# of any power of two, and not 1, so that neighbouring counters do not share all their partitions.
_SHARD_STRIDE = 7


class CounterKey(NamedTuple):
    """A parsed key of a counter: kind is "c" for a shard and "w" for a wide counter's value."""

    kind: str
    partition: int
    tenant: str
    counter: str


def _name(tenant: str, name: str) -> str:
    return f"{len(tenant.encode())}:{tenant}:{name}"


def shard_key(partition: int, tenant: str, counter: str) -> str:
    """Key of the counter's shard in this partition."""
    return f"{{tb:{partition}}}:c:{_name(tenant, counter)}"


def wide_key(partition: int, tenant: str, counter: str) -> str:
    """Key of a wide counter's value; partition is the counter's home."""
    return f"{{tb:{partition}}}:w:{_name(tenant, counter)}"


def aggregate_key(partition: int, tenant: str, counter: str) -> str:
    """Key of the shared aggregate; partition is the counter's home."""
    return f"{{tb:{partition}}}:a:{_name(tenant, counter)}"


def producer_key(partition: int, tenant: str, producer: str) -> str:
    """Key of the ring that remembers a producer's last sequences in this partition."""
    return f"{{tb:{partition}}}:p:{_name(tenant, producer)}"


def late_key(ring: str, sequence: int) -> str:
    """Key of a producer's sequence that is applied when its ring, by its key, is far ahead."""
    tag, rest = ring.split("}:", 1)
    return f"{tag}}}:e:{sequence}:{rest}"


def link_key(partition: int, link: str) -> str:
    """Key of the ring that remembers a link's last sequences in this partition."""
    return f"{{tb:{partition}}}:l:{link}"


def request_key(partition: int, tenant: str, request_id: str) -> str:
    """Key that says that a request was applied in this partition."""
    return f"{{tb:{partition}}}:r:{_name(tenant, request_id)}"


def score_producer_key(partition: int, tenant: str, producer: str, chunk: int) -> str:
    """Key of the ring that remembers a producer's last batches of scores, for one chunk of each."""
    return f"{{tb:{partition}}}:P:{chunk}:{_name(tenant, producer)}"


def score_request_key(partition: int, tenant: str, request_id: str, chunk: int) -> str:
    """Key that says that one chunk of a request's scores was applied in this partition."""
    return f"{{tb:{partition}}}:R:{chunk}:{_name(tenant, request_id)}"


def claim_key(partition: int, tenant: str, request_id: str) -> str:
    """Key that holds the fingerprint of the contents a request id stands for."""
    return f"{{tb:{partition}}}:q:{_name(tenant, request_id)}"


def incarnation_key(partition: int) -> str:
    """Key of the partition's incarnation."""
    return f"{{tb:{partition}}}:i"


def probe_key(partition: int) -> str:
    """Key that is written to see whether a node takes writes."""
    return f"{{tb:{partition}}}:probe"


def dirty_key(partition: int) -> str:
    """Key of the set of counter keys changed since the last checkpoint."""
    return f"{{tb:{partition}}}:d"


def in_flight_key(partition: int) -> str:
    """Key of the set of counter keys that a checkpoint has taken."""
    return f"{{tb:{partition}}}:f"


def checkpoint_id_key(partition: int) -> str:
    """Key of the id of the checkpoint that has taken the in-flight set."""
    return f"{{tb:{partition}}}:F"


def version_key(partition: int) -> str:
    """Key of the number of the last checkpoint that was taken whole."""
    return f"{{tb:{partition}}}:v"


def journaled_key(partition: int) -> str:
    """Key of the set of numbers of journal rows that were applied and are in no checkpoint yet."""
    return f"{{tb:{partition}}}:j"


def definition_key(partition: int, tenant: str, leaderboard_id: str) -> str:
    """Key of a leaderboard's definition; partition is its home."""
    return f"{{tb:{partition}}}:b:{_name(tenant, leaderboard_id)}"


def fence_key(partition: int, board_key: str) -> str:
    """Key of the revision that submissions to a leaderboard must have been made under."""
    return f"{{tb:{partition}}}:g:{board_key}"


def windows_key(partition: int, board_key: str) -> str:
    """Key of the set of a leaderboard's windows that have data in this partition."""
    return f"{{tb:{partition}}}:o:{board_key}"


class WindowKeys(NamedTuple):
    """The keys of one window's data in one partition."""

    ranking: str
    entries: str
    dirty: str
    distinct: str
    distinct_state: str
    in_flight: str


def window_keys(partition: int, board_key: str, window: str) -> WindowKeys:
    """Keys of a window: what a board key and a window id are made of can't run together."""
    return WindowKeys(*(f"{{tb:{partition}}}:{kind}:{board_key}:{window}" for kind in "zhystY"))


class EntriesKey(NamedTuple):
    """A parsed key of a window's entries."""

    partition: int
    board_key: str
    window: str


def parse_entries_key(key: bytes) -> EntriesKey:
    """The parts of a key of a window's entries.

    Raises:
        ValueError: the key is not one of these.
    """
    tag, separator, rest = key.decode().partition("}:h:")
    board, _, window = rest.partition(":")
    if not separator or not board or not window or not tag.startswith("{tb:"):
        raise ValueError(f"not a key of a window's entries: {key!r}")
    return EntriesKey(int(tag.removeprefix("{tb:")), board, window)


def segment_partition(tenant: str, leaderboard_id: str, segment: int, partitions: int) -> int:
    """The partition that holds one segment of a leaderboard."""
    return (
        home_partition(tenant, leaderboard_id, partitions) + segment * _SHARD_STRIDE
    ) % partitions


def segment_of(member: str, segments: int) -> int:
    """The segment that a member belongs to."""
    return zlib.crc32(member.encode()) % segments if segments > 1 else 0


def parse_counter_key(key: bytes) -> CounterKey:
    """The parts of a key made by `shard_key` or `wide_key`.

    Raises:
        ValueError: the key is not one of these.
    """
    try:
        tag, rest = key.split(b"}:", 1)
        kind, length, names = rest.split(b":", 2)
        size = int(length)
        partition = int(tag.removeprefix(b"{tb:"))
        if kind not in (b"c", b"w") or names[size : size + 1] != b":":
            raise ValueError
        return CounterKey(
            kind.decode(), partition, names[:size].decode(), names[size + 1 :].decode()
        )
    except ValueError:
        raise ValueError(f"not a counter's key: {key!r}") from None


_KEY: Final = re.compile(rb"\{tb:(\d{1,9})\}:(\w)(?::|$)")
_TOKEN_KINDS: Final = frozenset(b"elpPrRq")


class KeyKind(NamedTuple):
    """What the name of any key of a partition says: the partition, and the letter of its kind."""

    partition: int
    kind: str

    @property
    def is_token(self) -> bool:
        """Whether it remembers what was applied, for whom, or what a request id stands for."""
        return ord(self.kind) in _TOKEN_KINDS


def kind_of_key(key: bytes) -> KeyKind | None:
    """Whose key it is and what it is for; None if it belongs to no partition."""
    found = _KEY.match(key)
    return None if found is None else KeyKind(int(found[1]), found[2].decode())


def key_of(command: Sequence[Any]) -> str | bytes:
    """The first key of a command: what says which node is to run it."""
    key: str | bytes = command[3] if command[0] in ("EVAL", "EVALSHA") else command[1]
    return key


def slot_of(key: str | bytes) -> int:
    """The slot of a cluster that a key is in."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def home_partition(tenant: str, name: str, partitions: int) -> int:
    """The partition that a name belongs to: where its first shard is."""
    return zlib.crc32(name.encode(), zlib.crc32(tenant.encode())) % partitions


def place_shard(tenant: str, counter: str, shard: int, partitions: int) -> tuple[int, str]:
    """Partition and key of one shard of a counter."""
    partition = (home_partition(tenant, counter, partitions) + shard * _SHARD_STRIDE) % partitions
    return partition, shard_key(partition, tenant, counter)
