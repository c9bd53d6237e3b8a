"""The naive way without a server: a plain loop of redis-py INCRs.

A program: `python -m tests.benchmarks.loop SOCKET COUNTER CALLS` prints the seconds it took.
"""

import random
import sys
import time

import redis

from tests.benchmarks.bare import NAIVE_SHARDS


def main() -> None:
    """Sends the INCRs one after the other."""
    client = redis.Redis(unix_socket_path=sys.argv[1])
    counter, calls = sys.argv[2], int(sys.argv[3])
    client.ping()
    started = time.monotonic()
    for _ in range(calls):
        client.incr(f"naive:{counter}:{random.randrange(NAIVE_SHARDS)}")
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
