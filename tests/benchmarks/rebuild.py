"""What a rebuild takes: partitions of an empty Redis, made anew from Postgres.

`python -m tests.benchmarks.rebuild` from the top of the repository; `--help` says what can be
chosen. Both stores are embedded ones of its own, with their usual durability.
"""

import cProfile
import pstats
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import click
import psutil
from redis import Redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.leaderboards.boards import row_of
from tallyboard_server.leaderboards.model import Leaderboard
from tallyboard_server.postgres.leaderboards import insert
from tallyboard_server.postgres.pool import BoundedConnection, connect
from tallyboard_server.recovery.progress import Progress
from tallyboard_server.recovery.rebuild import Rebuilder
from tallyboard_server.redis.keys import place_shard, segment_of, segment_partition
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tests.conftest import make_short_folder
from tests.redis.node import RedisNode
from tests.redis.nodes import topology_of

_MOMENT = datetime(2026, 11, 23, 12, tzinfo=UTC)
_STEP = timedelta(microseconds=1)
_FILL_TIMEOUT = 600.0


class Load(NamedTuple):
    """What is rebuilt: counters of so many shards, and boards of so many entries and segments."""

    partitions: int
    counters: int
    shards: int
    boards: int
    entries: int
    segments: int


class Taken(NamedTuple):
    """What a rebuild took: seconds, by phase too, and seconds of CPU of the three processes."""

    seconds: float
    phases: dict[str, float]
    python: float
    redis: float
    postgres: float


@click.command()
@click.option("--partitions", default=64, show_default=True)
@click.option("--counters", default=1_000_000, show_default=True)
@click.option("--shards", default=1, show_default=True, help="Of each counter.")
@click.option("--boards", default=1, show_default=True)
@click.option("--entries", default=1_000_000, show_default=True, help="Of all boards together.")
@click.option("--segments", default=1, show_default=True, help="Of each board.")
@click.option("--one", is_flag=True, help="Rebuild one partition after all, with the rest there.")
@click.option("--profile", is_flag=True, help="Show where Python spends its time.")
def main(one: bool, profile: bool, **load: int) -> None:
    """Fill Postgres, then rebuild all partitions into an empty Redis, and show the figures."""
    console = Console()
    chosen = Load(**load)
    folder = make_short_folder()
    try:
        with EmbeddedPostgres(folder) as postgres, RedisNode(folder) as redis:
            settings = Settings(
                redis_url=redis.url, postgres_url=postgres.url, partitions=chosen.partitions
            )
            open_stores(settings)
            with console.status("Filling Postgres"), connect(postgres.url) as conn:
                _fill(conn, chosen)
            with closing(redis.client()) as client:
                client.flushdb()
                everything = list(range(chosen.partitions))
                taken = _rebuild(settings, redis, postgres, everything, profile, console)
                _check(client, chosen)
                _show(
                    console,
                    "all partitions",
                    taken,
                    chosen.counters * chosen.shards + chosen.entries,
                )
                if one:
                    taken = _rebuild(settings, redis, postgres, [0], profile, console)
                    _show(console, "partition 0 alone", taken, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(conn: BoundedConnection, load: Load) -> None:
    """Puts into Postgres what checkpoints would have put there, in their order: by partition."""
    conn.execute(f"SET statement_timeout = '{_FILL_TIMEOUT:g}s'")
    conn.execute("SET idle_in_transaction_session_timeout = 0")
    conn.answer_timeout = _FILL_TIMEOUT
    _copy(
        conn,
        "counter_shards (partition, tenant, counter, wide, value, frozen)",
        ["int4", "text", "text", "bool", "int8", "bool"],
        sorted(_counters(load)),
    )
    boards = [
        Leaderboard("acme", f"board:{i}", uuid.uuid4().hex[:16], segments=load.segments)
        for i in range(load.boards)
    ]
    for board in boards:
        insert(conn, row_of(board))
    conn.execute(
        'INSERT INTO tallyboard.leaderboard_windows (board_key, "window", kind, changed_at)'
        " SELECT board_key, 'all', 'ALL_TIME', now() FROM tallyboard.leaderboards"
    )
    ids = dict(
        conn.execute("SELECT board_key, window_id FROM tallyboard.leaderboard_windows").fetchall()
    )
    _copy(
        conn,
        "leaderboard_entries (window_id, member, partition, score, updated_at, metadata)",
        ["int8", "text", "int4", "float8", "timestamptz", "bytea"],
        _entries(load, boards, ids),
    )
    conn.commit()
    conn.autocommit = True
    conn.execute("VACUUM ANALYZE tallyboard.counter_shards, tallyboard.leaderboard_entries")


def _copy(conn: BoundedConnection, target: str, types: list[str], rows: Any) -> None:
    with conn.cursor() as cursor:
        statement: Any = f"COPY tallyboard.{target} FROM STDIN (FORMAT binary)"
        with cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)


def _counters(load: Load) -> Iterator[tuple[int, str, str, bool, int, bool]]:
    for i in range(load.counters):
        name = f"post:{i}:views"
        for shard in range(load.shards):
            partition, _ = place_shard("acme", name, shard, load.partitions)
            yield partition, "acme", name, False, i * 7919 % 100_000, False


def _entries(
    load: Load, boards: list[Leaderboard], ids: dict[str, int]
) -> Iterator[tuple[int, str, int, float, datetime, bytes]]:
    for i in range(load.entries):
        board, member = boards[i % len(boards)], f"user:{i}"
        segment = segment_of(member, min(load.segments, load.partitions))
        partition = segment_partition("acme", board.leaderboard_id, segment, load.partitions)
        score = float(i * 7919 % 1_000_003)
        yield ids[board.board_key], member, partition, score, _MOMENT + i * _STEP, b""


def _rebuild(
    settings: Settings,
    redis: RedisNode,
    postgres: EmbeddedPostgres,
    partitions: list[int],
    profile: bool,
    console: Console,
) -> Taken:
    profiler = cProfile.Profile() if profile else None
    phases: dict[str, float] = {}
    bars = Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console,
    )  # fmt: skip
    with bars:
        tasks: dict[str, Any] = {}
        after: list[dict[int, float]] = []

        def listen(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(progress.phase)
                phases[progress.phase] = time.monotonic()
                # The connection to Postgres is still there at the last phase, and so is its CPU.
                after[:] = _cpu(redis, postgres)
            task = tasks[progress.phase]
            bars.update(task, completed=progress.done, total=progress.total)

        rebuilder = Rebuilder(
            topology_of(settings.redis_url, settings.partitions),
            settings.postgres_url,
            settings.partitions,
            last_checkpoint=lambda *_: None,
        )
        before, started = _cpu(redis, postgres), time.monotonic()
        if profiler:
            profiler.enable()
        rebuilder.rebuild(partitions, progress=listen)
        if profiler:
            profiler.disable()
        ended = time.monotonic()
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(20)
    ends = [*list(phases.values())[1:], ended]
    spent = {name: end - at for (name, at), end in zip(phases.items(), ends, strict=True)}
    used = (
        sum(max(0.0, seconds - then.get(pid, 0.0)) for pid, seconds in now.items())
        for now, then in zip(after, before, strict=True)
    )
    return Taken(ended - started, spent, *used)


def _cpu(redis: RedisNode, postgres: EmbeddedPostgres) -> list[dict[int, float]]:
    """Seconds of CPU so far by process: of this one, of Redis, of Postgres with its children."""
    trees: list[list[psutil.Process]] = [[psutil.Process()]]
    for server in (redis, postgres):
        parent = psutil.Process(server.pid)
        trees.append([parent, *parent.children(recursive=True)])
    return [{each.pid: _cpu_of(each) for each in tree} for tree in trees]


def _cpu_of(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def _check(redis: Redis, load: Load) -> None:
    """Whether all is there."""
    counters = ranked = 0
    for key in redis.scan_iter(count=10_000):
        kind = key.partition(b"}:")[2][:1]
        counters += kind == b"c"
        if kind == b"z":
            ranked += int(redis.zcard(key))
    if (counters, ranked) != (load.counters * load.shards, load.entries):
        raise SystemExit(f"{counters} counters and {ranked} entries are there")


def _show(console: Console, title: str, taken: Taken, rows: int) -> None:
    table = Table("", "seconds", title=title)
    for name, seconds in taken.phases.items():
        table.add_row(name, f"{seconds:.2f}")
    table.add_row("all", f"{taken.seconds:.2f}", style="bold")
    for name, seconds in zip(("Python", "Redis", "Postgres"), taken[2:], strict=True):
        table.add_row(f"CPU of {name}", f"{seconds:.2f}")
    if rows:
        table.add_row("rows a second", f"{rows / taken.seconds:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
