"""A real Redis and a real Postgres from wheels, as children of this process.

Both listen on a unix socket only, keep their data in a folder that survives restarts, and end
with the process that started them, whatever ends it.
"""

from tallyboard_server.embedded.errors import EmbeddedError
from tallyboard_server.embedded.folder import DataFolderLock
from tallyboard_server.embedded.postgres import EmbeddedPostgres, find_postgres_binaries
from tallyboard_server.embedded.redis import EmbeddedRedis, find_redis_server
from tallyboard_server.embedded.server import EmbeddedServer

__all__ = [
    "DataFolderLock",
    "EmbeddedError",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "EmbeddedServer",
    "find_postgres_binaries",
    "find_redis_server",
]
