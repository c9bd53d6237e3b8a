"""The command line: what it prints, what it says when something is wrong, and exit statuses.

A small service stands in on a real port; it keeps its counters in a dictionary.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Final, NoReturn

import grpc
import pytest
import structlog
from click.testing import CliRunner, Result

from tallyboard.v1 import (
    counters_pb2,
    counters_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from tallyboard_server.cli import main
from tallyboard_server.logs import configure_logs
from tallyboard_server.settings import Settings


class StandIn(counters_pb2_grpc.CounterServiceServicer):
    """Counters in memory; the tenant `full` is refused."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.requests: list[counters_pb2.IncrementRequest] = []
        self.tenants: list[str] = []
        self.consistency = ""

    def Increment(self, request, context):
        """Adds; a request id that came before is a duplicate."""
        self._enter(context)
        duplicate = request.request_id in {seen.request_id for seen in self.requests}
        self.requests.append(request)
        if not duplicate:
            self.counts[request.counter] = self.counts.get(request.counter, 0) + request.delta
        count = counters_pb2.Count(counter=request.counter, value=self.counts[request.counter])
        return counters_pb2.IncrementResponse(count=count, duplicate=duplicate)

    def GetCounter(self, request, context):
        """Reads, and remembers how fresh the answer had to be."""
        self._enter(context)
        self.consistency = request.consistency.WhichOneof("level") or ""
        value = self.counts.get(request.counter, 0)
        return counters_pb2.GetCounterResponse(count={"counter": request.counter, "value": value})

    def ListCounters(self, request, context):
        """Pages of two, by name."""
        self._enter(context)
        names = sorted(name for name in self.counts if name.startswith(request.prefix))
        start = int(request.page_token or 0)
        page = names[start : start + 2]
        return counters_pb2.ListCountersResponse(
            counts=[{"counter": name, "value": self.counts[name]} for name in page],
            next_page_token=str(start + 2) if names[start + 2 :] else "",
        )

    def _enter(self, context: grpc.ServicerContext) -> None:
        tenant = dict(context.invocation_metadata())["x-tallyboard-tenant"]
        self.tenants.append(tenant)
        if tenant == "full":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "The tenant's quota is used up.")


class StandInOperations(operations_pb2_grpc.OperationsServiceServicer):
    """Says that Redis is there and Postgres is away."""

    def Checkpoint(self, request, context):
        """Claims to have written 1,200 counters."""
        return operations_pb2.CheckpointResponse(counters=1200, partitions=64)

    def GetStatus(self, request, context):
        """Two stores and two partitions."""
        return operations_pb2.GetStatusResponse(
            stores=[
                {"name": "redis", "available": True, "version": "6.2.14"},
                {"name": "postgres", "detail": "connection [refused]"},
            ],
            partitions=[
                {"partition": 0, "state": "PARTITION_STATE_OPEN"},
                {"partition": 1, "state": "PARTITION_STATE_CLOSED", "dirty_keys": 7},
            ],
        )


Run = Callable[..., Result]


@pytest.fixture
def service() -> Iterator[tuple[StandIn, str]]:
    """The stand-in and its address."""
    stand_in = StandIn()
    server = grpc.server(ThreadPoolExecutor(2))
    counters_pb2_grpc.add_CounterServiceServicer_to_server(stand_in, server)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(StandInOperations(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield stand_in, f"127.0.0.1:{port}"
    server.stop(None).wait(5)


@pytest.fixture
def call(service: tuple[StandIn, str]) -> Run:
    """Runs the command line against the stand-in."""

    def call(*arguments: str) -> Result:
        return run(*arguments, environ={"TALLYBOARD_SERVER": service[1]})

    return call


def run(*arguments: str, environ: dict[str, str] | None = None) -> Result:
    """Runs the command line with nothing but `environ` of our variables set."""
    ours = {name: None for name in os.environ if name.startswith("TALLYBOARD_")}
    with logging_put_back():
        return CliRunner(env={**ours, **(environ or {})}).invoke(main, arguments)


@contextmanager
def logging_put_back() -> Iterator[None]:
    """Undoes what a command does to the logging of the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


def test_increment_prints_the_count(call: Run) -> None:
    call("counter", "increment", "post:42", "--delta", "5")
    assert call("counter", "increment", "post:42").stdout == "6\n"


def test_increment_takes_a_negative_delta(call: Run) -> None:
    assert call("counter", "increment", "post:42", "--delta", "-3").stdout == "-3\n"


@pytest.mark.parametrize("delta", [-(2**63) - 1, 2**63])
def test_increment_takes_no_delta_beyond_64_bits(call: Run, delta: int) -> None:
    refused = call("counter", "increment", "post:42", "--delta", str(delta))
    assert (refused.exit_code, "Invalid value for '--delta'" in refused.stderr) == (2, True)


def test_increment_makes_up_a_request_id(call: Run, service: tuple[StandIn, str]) -> None:
    call("counter", "increment", "post:42")
    assert len(service[0].requests[0].request_id) == 36


def test_increment_says_when_nothing_was_added(call: Run) -> None:
    repeated = ("counter", "increment", "post:42", "--request-id", "ann-1")
    call(*repeated)
    assert "nothing was added" in call(*repeated).stderr


def test_get_prints_the_count(call: Run) -> None:
    call("counter", "increment", "post:42", "--delta", "7")
    assert call("counter", "get", "post:42").stdout == "7\n"


def test_get_can_be_exact(call: Run, service: tuple[StandIn, str]) -> None:
    call("counter", "get", "post:42", "--exact")
    assert service[0].consistency == "exact"


def test_get_is_not_exact_by_default(call: Run, service: tuple[StandIn, str]) -> None:
    call("counter", "get", "post:42")
    assert service[0].consistency == ""


def test_tenant_is_sent(call: Run, service: tuple[StandIn, str]) -> None:
    call("counter", "get", "post:42", "--tenant", "acme")
    assert service[0].tenants == ["acme"]


def test_list_goes_through_all_pages(call: Run, service: tuple[StandIn, str]) -> None:
    service[0].counts.update({f"post:{i}": i for i in range(5)}, user=1)
    assert call("counter", "list", "--prefix", "post:").stdout == (
        "0\tpost:0\n1\tpost:1\n2\tpost:2\n3\tpost:3\n4\tpost:4\n"
    )


def test_list_ends_at_its_limit(call: Run, service: tuple[StandIn, str]) -> None:
    service[0].counts.update({f"post:{i}": i for i in range(5)})
    assert call("counter", "list", "--limit", "3").stdout.count("\n") == 3


def test_checkpoint_says_what_was_written(call: Run) -> None:
    assert call("checkpoint").stdout.startswith("1,200 counters and 0 entries of 64 partitions in ")


_UNKNOWN: Final = (
    "7 keys; for how long is unknown while Postgres is away",
    "journal: unknown while Postgres is away",
)


@pytest.mark.parametrize(
    "text", ["6.2.14", "away", "connection [refused]", "1 open, 1 closed", "7 keys", *_UNKNOWN]
)
def test_status_shows(call: Run, text: str) -> None:
    assert text in call("status").stdout


def test_status_can_be_json(call: Run) -> None:
    assert json.loads(call("status", "--json").stdout)["partitions"][1]["dirty_keys"] == "7"


def test_error_of_the_service_is_one_sentence(call: Run) -> None:
    refused = call("counter", "get", "post:42", "--tenant", "full")
    assert refused.stderr == "Error: The tenant's quota is used up (RESOURCE_EXHAUSTED).\n"


def test_name_that_is_no_text_is_one_sentence(call: Run) -> None:
    refused = call("counter", "get", "\udcff")
    assert (refused.exit_code, refused.stderr) == (1, "Error: What is sent must be UTF-8.\n")


def test_error_of_the_service_has_status_1(call: Run) -> None:
    assert call("counter", "get", "post:42", "--tenant", "full").exit_code == 1


def test_no_service_is_one_sentence() -> None:
    missing = run("counter", "get", "post:42", "--server", "127.0.0.1:1")
    assert missing.stderr == "Error: No service answers at 127.0.0.1:1.\n"


def test_missing_file_of_trust_is_one_sentence() -> None:
    missing = run("status", "--ca", "/does/not/exist.pem")
    assert missing.stderr.startswith("Error: The file /does/not/exist.pem cannot be read")


def test_config_shows_every_setting() -> None:
    shown = json.loads(run("config", "--json").stdout)
    assert list(shown) == [f.name for f in fields(Settings)]


def test_config_shows_where_a_value_comes_from() -> None:
    shown = json.loads(run("config", "--json", environ={"TALLYBOARD_WORKERS": "3"}).stdout)
    assert shown["workers"] == {
        "value": 3,
        "source": "the environment variable TALLYBOARD_WORKERS",
    }


def test_config_takes_flags() -> None:
    assert json.loads(run("config", "--json", "--workers", "3").stdout)["workers"]["value"] == 3


def test_config_is_a_table_for_people() -> None:
    assert "max_watchers" in run("config").stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_config_shows_no_password(form: tuple[str, ...]) -> None:
    url = {"TALLYBOARD_POSTGRES_URL": "postgresql://ann:s3cret@db/x"}
    assert "s3cret" not in run("config", *form, environ=url).output


@pytest.mark.parametrize("command", ["serve", "config", "migrate"])
def test_wrong_setting_is_one_sentence(command: str) -> None:
    assert run(command, "--partitions", "none").stderr == (
        "Error: The setting partitions is 'none' in the flag --partitions; "
        "allowed is a whole number from 1 to 4,096.\n"
    )


def test_wrong_setting_has_status_1() -> None:
    assert run("serve", "--partitions", "none").exit_code == 1


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_serve_has_an_option_for(field: object) -> None:
    assert f"--{field.name.replace('_', '-')} " in run("serve", "--help").stdout


def test_worker_cannot_be_started_by_hand() -> None:
    started = run("worker", "--index", "0", "--ready-fd", "1")
    assert "is started by `tallyboard-server serve` only" in started.stderr


def test_migrate_names_what_it_applied(short_folder: Path) -> None:
    assert run("migrate", "--data-dir", str(short_folder)).stdout.startswith("applied 0001_")


def test_migrate_has_nothing_to_do_the_second_time(short_folder: Path) -> None:
    run("migrate", "--data-dir", str(short_folder))
    again = run("migrate", "--data-dir", str(short_folder))
    assert again.stdout == "The schema is up to date.\n"


def test_migrate_without_postgres_is_one_sentence() -> None:
    url = "postgresql://ann:s3cret@127.0.0.1:1/x"
    failed = run("migrate", "--postgres-url", url)
    assert failed.stderr.startswith(
        "Error: Postgres at postgresql://ann:***@127.0.0.1:1/x cannot be migrated: "
    )


@pytest.fixture
def log_lines() -> Iterator[Callable[[], list[dict[str, str]]]]:
    """Logs as JSON, and gives what was logged."""
    with logging_put_back():
        with redirect_stderr(StringIO()) as errors:
            configure_logs(Settings(log_format="json"), "worker-0")
        yield lambda: [json.loads(line) for line in errors.getvalue().splitlines()]


LogLines = Callable[[], list[dict[str, str]]]


def test_log_lines_name_the_process(log_lines: LogLines) -> None:
    structlog.get_logger("test").info("hello", counter="post:42")
    assert log_lines()[0]["process"] == "worker-0"


def test_log_of_a_library_has_the_same_form(log_lines: LogLines) -> None:
    logging.getLogger("library").warning("hello %s", "ann")
    line = log_lines()[0]
    assert (line["event"], line["logger"], line["level"]) == ("hello ann", "library", "warning")


def test_log_masks_passwords_in_urls(log_lines: LogLines) -> None:
    structlog.get_logger("test").info("away", url="redis://ann:s3cret@cache")
    assert log_lines()[0]["url"] == "redis://ann:***@cache"


def test_log_masks_passwords_in_traces(log_lines: LogLines) -> None:
    def fail() -> NoReturn:
        raise ValueError("redis://ann:s3cret@cache")

    try:
        fail()
    except ValueError:
        structlog.get_logger("test").exception("failed")
    assert "s3cret" not in json.dumps(log_lines())


def test_log_leaves_out_what_is_below_the_level(log_lines: LogLines) -> None:
    structlog.get_logger("test").debug("hello")
    assert log_lines() == []


def test_module_is_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.setattr(sys, "argv", ["tallyboard-server", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tallyboard_server", run_name="__main__")
    assert ended.value.code == 0
