"""Names of keys in Redis, and the placement of counters in partitions.

The table of keys is in docs/architecture.md. Every key of a partition carries its hash tag, and
a tenant is written with its length in bytes, so no name can run into another key.
"""

import zlib
from typing import NamedTuple

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


def link_key(partition: int, link: str) -> str:
    """Key of the ring that remembers a link's last sequences in this partition."""
    return f"{{tb:{partition}}}:l:{link}"


def request_key(partition: int, tenant: str, request_id: str) -> str:
    """Key that says that a request was applied in this partition."""
    return f"{{tb:{partition}}}:r:{_name(tenant, request_id)}"


def claim_key(partition: int, tenant: str, request_id: str) -> str:
    """Key that holds the fingerprint of the contents a request id stands for."""
    return f"{{tb:{partition}}}:q:{_name(tenant, request_id)}"


def incarnation_key(partition: int) -> str:
    """Key of the partition's incarnation."""
    return f"{{tb:{partition}}}:i"


def dirty_key(partition: int) -> str:
    """Key of the set of counter keys changed since the last checkpoint."""
    return f"{{tb:{partition}}}:d"


def in_flight_key(partition: int) -> str:
    """Key of the set of counter keys that a checkpoint has taken."""
    return f"{{tb:{partition}}}:f"


def checkpoint_id_key(partition: int) -> str:
    """Key of the id of the checkpoint that has taken the in-flight set."""
    return f"{{tb:{partition}}}:F"


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


def home_partition(tenant: str, name: str, partitions: int) -> int:
    """The partition that a name belongs to: where its first shard is."""
    return zlib.crc32(name.encode(), zlib.crc32(tenant.encode())) % partitions


def place_shard(tenant: str, counter: str, shard: int, partitions: int) -> tuple[int, str]:
    """Partition and key of one shard of a counter."""
    partition = (home_partition(tenant, counter, partitions) + shard * _SHARD_STRIDE) % partitions
    return partition, shard_key(partition, tenant, counter)
