"""Reads every counter back, from Redis and from Postgres, and lays them beside what is expected."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import grpc
from rich import box
from rich.table import Table

from tallyboard.v1 import (
    consistency_pb2,
    counters_pb2,
    counters_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from tests.demo.expected import Expected

_PAGE: Final = 1_000
_TIMEOUT: Final = 60.0


class Difference(NamedTuple):
    """A counter that is not what it should be; None where there is none."""

    counter: str
    expected: int | None
    redis: int | None
    postgres: int | None


class Group(NamedTuple):
    """The counters whose names start alike, `delay:route` for example."""

    name: str
    counters: int
    updates: int
    expected: int
    redis: int
    postgres: int
    differences: int


class Comparison(NamedTuple):
    """All of it."""

    groups: list[Group]
    differences: list[Difference]


def compare(channel: grpc.Channel, tenant: str, expected: Expected) -> Comparison:
    """Checkpoint the service, then compare every counter of the tenant in both stores."""
    redis = _in_redis(channel, tenant, expected.values)
    checkpoint = operations_pb2_grpc.OperationsServiceStub(channel).Checkpoint
    checkpoint(operations_pb2.CheckpointRequest(), timeout=_TIMEOUT, wait_for_ready=True)
    postgres = _in_postgres(channel, tenant)
    names = sorted(expected.values.keys() | postgres.keys())
    rows = [Difference(n, expected.values.get(n), redis.get(n), postgres.get(n)) for n in names]
    differences = [row for row in rows if not row.expected == row.redis == row.postgres]
    return Comparison(_groups(rows, differences, expected.updates), differences)


def table_of(comparison: Comparison) -> Table:
    """The groups and their total, to be printed."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("counters of", no_wrap=True)
    for heading in ("counters", "updates", "expected", "Redis", "Postgres", "differ"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in comparison.groups:
        table.add_row(group.name, *(f"{number:,}" for number in group[1:]))
    table.add_section()
    columns = list(zip(*(group[1:] for group in comparison.groups), strict=True))
    table.add_row("all", *(f"{sum(column):,}" for column in columns))
    return table


def _groups(
    rows: list[Difference], differences: list[Difference], updates: Mapping[str, int]
) -> list[Group]:
    by_group: dict[str, list[Difference]] = {}
    for row in rows:
        by_group.setdefault(_group_of(row.counter), []).append(row)
    wrong: dict[str, int] = {}
    for row in differences:
        wrong[_group_of(row.counter)] = wrong.get(_group_of(row.counter), 0) + 1
    return [
        Group(
            name,
            len(members),
            sum(updates.get(row.counter, 0) for row in members),
            sum(row.expected or 0 for row in members),
            sum(row.redis or 0 for row in members),
            sum(row.postgres or 0 for row in members),
            wrong.get(name, 0),
        )
        for name, members in sorted(by_group.items())
    ]


def _group_of(counter: str) -> str:
    return counter.rpartition(":")[0]


def _in_redis(channel: grpc.Channel, tenant: str, names: Iterable[str]) -> dict[str, int]:
    read = counters_pb2_grpc.CounterServiceStub(channel).BatchGetCounters
    ordered = list(names)
    found: dict[str, int] = {}
    for start in range(0, len(ordered), _PAGE):
        request = counters_pb2.BatchGetCountersRequest(
            counters=ordered[start : start + _PAGE],
            consistency=consistency_pb2.Consistency(exact=True),
        )
        answer = read(request, metadata=_of(tenant), timeout=_TIMEOUT, wait_for_ready=True)
        found |= {count.counter: count.value for count in answer.counts if count.exists}
    return found


def _in_postgres(channel: grpc.Channel, tenant: str) -> dict[str, int]:
    read = counters_pb2_grpc.CounterServiceStub(channel).ListCounters
    request = counters_pb2.ListCountersRequest(page_size=_PAGE)
    found: dict[str, int] = {}
    while True:
        answer = read(request, metadata=_of(tenant), timeout=_TIMEOUT, wait_for_ready=True)
        found |= {count.counter: count.value for count in answer.counts}
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


def _of(tenant: str) -> tuple[tuple[str, str]]:
    return (("x-tallyboard-tenant", tenant),)
