"""The embedded stores: durable, alone on their folder, and never orphans."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from tallyboard_server.embedded import (
    DataFolderLock,
    EmbeddedError,
    EmbeddedPostgres,
    EmbeddedRedis,
    EmbeddedServer,
    find_postgres_binaries,
    find_redis_server,
)
from tests.waiting import wait_for

# Starts the store, tells its process id, and waits to be killed.
_OWNER = """
import sys, time
from tallyboard_server import embedded
with getattr(embedded, sys.argv[1])(sys.argv[2]) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""

both = pytest.mark.parametrize("kind", [EmbeddedRedis, EmbeddedPostgres])


@contextmanager
def owned_by_another(kind: type[EmbeddedServer], folder: Path) -> Iterator[tuple[int, int]]:
    """A store that another process started: the ids of that process and of the server."""
    command = [sys.executable, "-c", _OWNER, kind.__name__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        try:
            yield owner.pid, int(owner.stdout.readline())
        finally:
            owner.kill()


def is_gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for has, too."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_redis_syncs_every_write(redis_server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_redis_has_no_tcp_port(redis_server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.config_get("port") == {"port": "0"}


def test_redis_takes_extra_arguments(short_folder: Path) -> None:
    with (
        EmbeddedRedis(short_folder, ["--maxmemory", "64mb"]) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024 * 1024)}


def test_redis_keeps_an_answered_write_when_killed(short_folder: Path) -> None:
    server = EmbeddedRedis(short_folder)
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.set("post:42", 7)
    server.kill()
    with server, redis.Redis.from_url(server.url) as client:
        assert client.get("post:42") == b"7"


def test_postgres_has_a_database_of_its_own(postgres_server: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres_server.url) as link:
        assert link.execute("SELECT current_database()").fetchone() == ("tallyboard",)


def test_postgres_listens_on_no_tcp_port(postgres_server: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres_server.url) as link:
        assert link.execute("SHOW listen_addresses").fetchone() == ("",)


def test_postgres_keeps_its_data_when_killed(short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder)
    server.start()
    with psycopg.connect(server.url, autocommit=True) as link:
        link.execute("CREATE TABLE kept AS SELECT 7 AS value")
    server.kill()
    with server, psycopg.connect(server.url) as link:
        assert link.execute("SELECT value FROM kept").fetchone() == (7,)


def test_postgres_starts_over_after_an_interrupted_first_start(short_folder: Path) -> None:
    (short_folder / "postgres.new").mkdir()
    (short_folder / "postgres.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(short_folder) as server:
        assert server.answers()


@pytest.mark.parametrize("text", ["{pid}\n{folder}\n", ""], ids=["another's", "empty"])
def test_postgres_ignores_a_pid_file_that_names_no_server_of_its_own(
    short_folder: Path, text: str
) -> None:
    """An empty one is left by a server that is killed at its start."""
    server = EmbeddedPostgres(short_folder)
    server.start()
    server.stop()
    pid_file = server.folder / "postmaster.pid"
    pid_file.write_text(text.format(pid=os.getpid(), folder=server.folder))
    os.chown(pid_file, server.folder.stat().st_uid, -1)
    with server:
        assert server.answers()


@both
def test_stop_ends_the_process(kind: type[EmbeddedServer], short_folder: Path) -> None:
    server = kind(short_folder)
    server.start()
    pid = server.pid
    server.stop()
    assert pid is not None
    assert is_gone(pid)


@both
def test_death_is_seen(kind: type[EmbeddedServer], short_folder: Path) -> None:
    with kind(short_folder) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert wait_for(server.poll, "the status of the server") == -signal.SIGKILL


@both
def test_long_path_still_works(kind: type[EmbeddedServer], short_folder: Path) -> None:
    long_folder = short_folder / ("x" * 100)
    with kind(long_folder) as server:
        assert server.answers()


@both
def test_killed_owner_leaves_no_orphan(kind: type[EmbeddedServer], short_folder: Path) -> None:
    with owned_by_another(kind, short_folder) as (owner, server):
        os.kill(owner, signal.SIGKILL)
        assert wait_for(lambda: is_gone(server), "the server to end with its owner")


@both
def test_leftover_server_on_the_folder_is_stopped(
    kind: type[EmbeddedServer], short_folder: Path
) -> None:
    with owned_by_another(kind, short_folder) as (_, leftover), kind(short_folder):
        assert is_gone(leftover)


@both
def test_failing_start_shows_the_servers_log(
    kind: type[EmbeddedServer], short_folder: Path
) -> None:
    server = kind(short_folder)
    server.start()
    server.stop()
    spoiled = "appendonly.aof" if kind is EmbeddedRedis else "global/pg_control"
    for path in (server.folder / spoiled, *server.folder.glob("appendonlydir/*.manifest")):
        path.unlink(missing_ok=True)
        path.mkdir()
    with pytest.raises(EmbeddedError, match=r"The end of .*log:\n"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change the user")
def test_root_may_have_its_data_where_no_other_user_can_enter(short_folder: Path) -> None:
    closed = short_folder / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed / "data") as server:
        assert server.answers()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change the user")
def test_postgres_of_root_keeps_no_right_that_it_does_not_need(short_folder: Path) -> None:
    with EmbeddedPostgres(short_folder) as server:
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert re.findall(r"Cap(?:Prm|Eff|Amb):\s*(\w+)", status) == ["0" * 16] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change the user")
def test_killed_owner_leaves_no_orphan_where_no_other_user_can_enter(short_folder: Path) -> None:
    closed = short_folder / "closed"
    closed.mkdir(mode=0o700)
    with owned_by_another(EmbeddedPostgres, closed) as (owner, server):
        os.kill(owner, signal.SIGKILL)
        assert wait_for(lambda: is_gone(server), "the server to end with its owner")


def test_second_service_on_a_folder_is_refused(short_folder: Path) -> None:
    with (
        DataFolderLock(short_folder),
        pytest.raises(EmbeddedError, match=rf"in use by another service \(process {os.getpid()}\)"),
        DataFolderLock(short_folder),
    ):
        pass


def test_folder_is_free_after_its_service(short_folder: Path) -> None:
    with DataFolderLock(short_folder):
        pass
    with DataFolderLock(short_folder) as lock:
        assert lock


def test_folder_that_cannot_be_made_is_named(short_folder: Path) -> None:
    (short_folder / "file").touch()
    with pytest.raises(EmbeddedError, match=r"The data folder .*file/data cannot be used"):
        DataFolderLock(short_folder / "file" / "data").__enter__()


def test_redis_server_is_found() -> None:
    assert shutil.which(find_redis_server()) is not None


def test_unknown_postgres_version_is_refused() -> None:
    with pytest.raises(EmbeddedError, match=r"No Postgres 7 was found"):
        find_postgres_binaries("7")
