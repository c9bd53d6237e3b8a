"""A Redis of a stage: a server, or one node of a cluster, and the line before it."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.faults.proxy import Proxy
from tests.redis.node import RedisNode

_COPY_ATTEMPTS: Final = 5
# By which a node of a cluster is the same one again, whatever becomes of its data.
_IDENTITY: Final = "nodes.conf"


class StagedRedis:
    """What faults of Redis happen to.

    Args:
        node: the server.
        line: a proxy on the way to it.

    Attributes:
        is_up: whether the schedule wants it to run.
    """

    def __init__(self, node: RedisNode, line: Proxy) -> None:
        self.node = node
        self.line = line
        self.is_up = True
        self._copy = Path(f"{node.folder}.old")

    def kill(self) -> None:
        """As a crash would."""
        self.is_up = False
        self.node.kill()

    def start(self) -> None:
        """On the data that there are; does not wait for it."""
        self.node.spawn()
        self.is_up = True

    def wipe(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        for path in self.node.folder.iterdir():
            if path.name == _IDENTITY:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def copy(self) -> None:
        """Keep its data as they are on the disk now, for `restore`."""
        for _ in range(_COPY_ATTEMPTS):
            shutil.rmtree(self._copy, ignore_errors=True)
            with suppress(OSError, shutil.Error):  # it rewrites a file meanwhile
                ignored = shutil.ignore_patterns("*.sock", "*.pid", "temp-*", _IDENTITY)
                shutil.copytree(self.node.folder, self._copy, ignore=ignored)
                return

    def restore(self) -> None:
        """Kill it and put the copy in the place of its data."""
        self.wipe()
        if self._copy.exists():
            shutil.copytree(self._copy, self.node.folder, dirs_exist_ok=True)
