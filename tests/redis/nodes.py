"""What the service knows a Redis by, for tests that have a URL or a client of one server."""

from redis import Redis

from tallyboard_server.redis.nodes import RedisNodes
from tallyboard_server.redis.topology import Topology


def topology_of(url: str, partitions: int) -> Topology:
    """One server that has all partitions, or a cluster."""
    topology = Topology(url, partitions)
    topology.refresh()
    return topology


def nodes_of(client: Redis, partitions: int) -> RedisNodes:
    """A server that is asked through this client, which stays the caller's to close."""
    held = client.connection_pool.connection_kwargs
    if "path" in held:
        url = f"unix://{held['path']}?db={held.get('db', 0)}"
    else:
        url = f"redis://{held['host']}:{held['port']}/{held.get('db', 0)}"
    nodes = RedisNodes(Topology(url, partitions))
    nodes._clients[url] = client
    return nodes
