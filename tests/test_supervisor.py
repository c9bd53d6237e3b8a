"""The supervisor: the order of start and stop, restarts, and that nothing outlives it.

Workers and keeper are stand-ins here that only write down what happens to them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tallyboard_server.children import Restarts
from tallyboard_server.listening import reserve_port
from tallyboard_server.settings import Settings
from tallyboard_server.startup import StartupError
from tests.waiting import wait_for

# Arguments: the journal, what to do, and then what the supervisor gives every child.
_STAND_IN = """
import os, signal, sys, time
journal, behaviour, kind = sys.argv[1:4]
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
name = kind + options.get("--index", "")

def write(event):
    with open(journal, "a") as file:
        file.write(f"{name} {event} {os.getpid()}\\n")

def stop(*_):
    write("asked to stop")
    if behaviour != "stubborn":
        write("stopped")
        sys.exit(0)

signal.signal(signal.SIGTERM, stop)
if behaviour == "broken":
    sys.exit(3)
write("started")
if behaviour == "counting":
    from prometheus_client import Counter
    Counter("stand_in_starts", "Starts.").inc()
os.write(int(options["--ready-fd"]), b"ready\\n")
parent = os.getppid()
while behaviour != "stubborn" or os.getppid() == parent:
    time.sleep(0.1)
"""

# Runs a supervisor with the settings on standard input.
_RUN = """
import sys
from tallyboard_server.logs import configure_logs
from tallyboard_server.settings import Settings
from tallyboard_server.startup import StartupError
from tallyboard_server.supervisor import Supervisor

settings = Settings.from_json(sys.stdin.read())
configure_logs(settings, "supervisor")
command = [sys.executable, *sys.argv[1:]]
try:
    sys.exit(Supervisor(settings, command=command, open_stores=lambda settings: None).run())
except StartupError as error:
    sys.exit(f"Error: {error}")
"""

# Runs its arguments as a child, and waits.
_PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:])"

_ELSEWHERE = {
    "redis_url": "redis://ann:s3cret@127.0.0.1:1",
    "postgres_url": "postgresql://ann:s3cret@127.0.0.1:1/x",
}


class Running:
    """A supervisor in a process of its own, and what its children wrote down."""

    def __init__(self, folder: Path, behaviour: str, settings: dict[str, Any]) -> None:
        stand_in = folder / "stand_in.py"
        stand_in.write_text(_STAND_IN)
        self._journal = folder / "journal"
        self._output = folder / "output"
        self._errors = folder / "errors"
        values = Settings(
            **{"listen": "127.0.0.1:0", "metrics_listen": "", "workers": 2} | settings
        )
        arguments = [str(stand_in), str(self._journal), behaviour]
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                env={**os.environ, "TMPDIR": str(folder)},
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(values.to_json().encode())
        self.process.stdin.close()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    @property
    def errors(self) -> str:
        """What it has logged so far."""
        return self._errors.read_text()

    def events(self, event: str) -> list[str]:
        """The names of the children that wrote down this event, in order."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [line.split()[0] for line in lines if f" {event} " in line]

    def pids(self, name: str) -> list[int]:
        """The process ids of the child's lives, in order."""
        lines = self._journal.read_text().splitlines()
        return [int(line.split()[-1]) for line in lines if line.startswith(f"{name} started ")]

    def children(self) -> list[psutil.Process]:
        """All processes that it started, and theirs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def until_ready(self) -> "Running":
        """Wait until it says where it listens."""
        wait_for(lambda: "listens on" in self.output or self.process.poll(), "the banner")
        assert self.process.poll() is None, self.errors
        return self

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, as Ctrl-C or a service manager would."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; its exit status."""
        return self.process.wait(30)

    def address(self) -> tuple[str, int]:
        """Where it says that it listens."""
        listen = self.output.split("listens on ")[1].split()[0]
        return listen.rpartition(":")[0], int(listen.rpartition(":")[2])


Start = Callable[..., Running]


@pytest.fixture
def start(short_folder: Path) -> Iterator[Start]:
    """Starts supervisors of which nothing is left after the test."""
    with ExitStack() as stack:

        def start(behaviour: str = "obedient", **settings: Any) -> Running:
            folder = short_folder / str(len(os.listdir(short_folder)))
            folder.mkdir()
            running = Running(folder, behaviour, {"data_dir": str(folder / "data")} | settings)
            stack.callback(running.process.wait, 30)
            stack.callback(running.process.kill)
            return running

        yield start


def any_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that nobody has waited for has ended."""
    return [p for p in processes if p.is_running() and state_of(p) != psutil.STATUS_ZOMBIE]


def state_of(process: psutil.Process) -> str:
    """The state of the process; one that has just gone counts as ended."""
    with suppress(psutil.NoSuchProcess):
        return process.status()
    return psutil.STATUS_ZOMBIE


def name_of(process: psutil.Process) -> str:
    """The name of the program, or nothing when the process has just gone."""
    with suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def test_ctrl_c_stops_everything(start: Start) -> None:
    running = start().until_ready()
    children = running.children()
    running.send(signal.SIGINT)
    running.ended()
    assert any_alive(children) == []


def test_everything_is_two_stores_two_workers_and_a_keeper(start: Start) -> None:
    running = start().until_ready()
    direct = psutil.Process(running.process.pid).children()
    assert len(direct) == 5


def test_orderly_stop_has_status_0(start: Start) -> None:
    running = start(**_ELSEWHERE).until_ready()
    running.send(signal.SIGTERM)
    assert running.ended() == 0


def test_killed_supervisor_leaves_no_orphan(start: Start) -> None:
    running = start().until_ready()
    children = running.children()
    running.send(signal.SIGKILL)
    wait_for(lambda: not any_alive(children), "all children to end")
    assert any_alive(children) == []


def test_real_service_ends_with_its_parent_if_asked_to(short_folder: Path) -> None:
    command = [sys.executable, "-m", "tallyboard_server", "serve", "--with-parent"]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "", "--data-dir", str(short_folder)]
    with (short_folder / "output").open("w+") as output:
        parent = subprocess.Popen([sys.executable, "-c", _PARENT, *command], stdout=output)
        wait_for(lambda: "listens on" in (short_folder / "output").read_text(), "the banner", 60)
    family = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait(5)
    assert wait_for(lambda: not any_alive(family), "the service to end")


def test_real_service_ends_though_its_parent_has_blocked_the_signal(short_folder: Path) -> None:
    command = [sys.executable, "-m", "tallyboard_server", "serve", "--workers", "1"]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "", "--data-dir", str(short_folder)]
    with (short_folder / "output").open("w+") as output:
        service = subprocess.Popen(
            command,
            stdout=output,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}),
        )
    try:
        wait_for(lambda: "listens on" in (short_folder / "output").read_text(), "the banner", 60)
        family = psutil.Process(service.pid).children(recursive=True)
        service.terminate()
        assert service.wait(40) == 0
        assert wait_for(lambda: not any_alive(family), "its processes to end")
    finally:
        service.kill()
        service.wait(5)


def test_keeper_is_stopped_after_the_workers(start: Start) -> None:
    running = start(**_ELSEWHERE).until_ready()
    running.send(signal.SIGTERM)
    running.ended()
    assert running.events("stopped")[-1] == "keeper"


def test_ctrl_c_reaches_no_child_by_itself(start: Start) -> None:
    running = start(**_ELSEWHERE).until_ready()
    groups = {os.getpgid(child.pid) for child in running.children()}
    assert os.getpgid(running.process.pid) not in groups


@pytest.mark.parametrize("attempt", range(6))
def test_stop_during_the_start_leaves_nothing(start: Start, attempt: int) -> None:
    running = start()
    # Looked for without a pause: the signal should come while the supervisor still forks.
    tasks = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    while not (pids := tasks.read_text().split()):
        assert running.process.poll() is None, running.errors
    running.send(signal.SIGINT)
    children = [psutil.Process(int(pid)) for pid in pids]
    assert running.ended() == 0
    assert any_alive(children) == []


def test_killed_worker_is_started_again(start: Start) -> None:
    running = start(**_ELSEWHERE).until_ready()
    os.kill(running.pids("worker1")[0], signal.SIGKILL)
    assert wait_for(lambda: len(running.pids("worker1")) == 2, "the second life of worker 1")


def test_death_of_a_worker_is_logged(start: Start) -> None:
    running = start(**_ELSEWHERE).until_ready()
    os.kill(running.pids("worker0")[0], signal.SIGKILL)
    wait_for(lambda: "process ready" in running.errors, "the second life of worker 0")
    events = [json.loads(line) for line in running.errors.splitlines()]
    died = next(event for event in events if event["event"] == "process died")
    assert (died["name"], died["status"]) == ("worker-0", -signal.SIGKILL)


@pytest.mark.parametrize("store", ["redis-server", "postgres"])
def test_killed_store_is_started_again(start: Start, store: str) -> None:
    def life() -> int | None:
        direct = psutil.Process(running.process.pid).children()
        return next((child.pid for child in direct if name_of(child) == store), None)

    running = start(workers=1).until_ready()
    first = life()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait_for(lambda: life() not in (None, first), f"the second life of {store}")


def test_worker_that_does_not_drain_in_time_is_killed(start: Start) -> None:
    running = start("stubborn", drain_timeout=0.0, workers=1, **_ELSEWHERE).until_ready()
    children = running.children()
    running.send(signal.SIGTERM)
    wait_for(lambda: "worker-0" in running.errors, "the worker to be killed")
    worker = next(child for child in children if child.pid == running.pids("worker0")[0])
    assert wait_for(lambda: not any_alive([worker]), "the worker to be gone")


def test_second_ctrl_c_kills_at_once(start: Start) -> None:
    running = start("stubborn").until_ready()
    children = running.children()
    running.send(signal.SIGINT)
    wait_for(lambda: running.events("asked to stop"), "the stop to begin")
    running.send(signal.SIGINT)
    running.ended()
    assert any_alive(children) == []


def test_second_ctrl_c_shows_in_the_status(start: Start) -> None:
    running = start("stubborn", **_ELSEWHERE).until_ready()
    running.send(signal.SIGINT)
    wait_for(lambda: running.events("asked to stop"), "the stop to begin")
    running.send(signal.SIGINT)
    assert running.ended() == 130


def test_second_sigterm_is_no_reason_to_hurry(start: Start) -> None:
    running = start("stubborn", drain_timeout=30.0, workers=1, **_ELSEWHERE).until_ready()
    running.send(signal.SIGTERM)
    wait_for(lambda: running.events("asked to stop"), "the stop to begin")
    running.send(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(0.3)


def test_worker_that_cannot_start_stops_the_start(start: Start) -> None:
    running = start("broken", **_ELSEWHERE)
    running.ended()
    assert "ended with status 3 while starting" in running.errors


def test_failed_start_leaves_nothing(start: Start) -> None:
    running = start("broken")
    children = wait_for(running.children, "a first child")
    running.ended()
    assert any_alive(children) == []


def test_service_on_a_folder_in_use_is_refused(start: Start) -> None:
    first = start().until_ready()
    data_dir = str(Path(first._journal).parent / "data")
    second = start(data_dir=data_dir)
    second.ended()
    assert "is in use by another service" in second.errors


def test_service_on_an_address_in_use_is_refused(start: Start) -> None:
    host, port = start(**_ELSEWHERE).until_ready().address()
    second = start(listen=f"{host}:{port}", **_ELSEWHERE)
    second.ended()
    assert f"cannot listen on {host}:{port}: Address already in use" in second.errors


def test_folder_and_address_are_free_after_a_stop(start: Start) -> None:
    first = start().until_ready()
    host, port = first.address()
    first.send(signal.SIGTERM)
    first.ended()
    data_dir = str(Path(first._journal).parent / "data")
    second = start(data_dir=data_dir, listen=f"{host}:{port}").until_ready()
    assert second.address() == (host, port)


def test_metrics_of_all_workers_are_added_up(start: Start) -> None:
    settings = {"metrics_listen": "127.0.0.1:0", "workers": 2, **_ELSEWHERE}
    running = start("counting", **settings).until_ready()
    metrics = running.output.split("http://")[1].split("/")[0]
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
        assert b"stand_in_starts_total 3.0" in answer.read()


def test_metrics_address_in_use_is_refused(start: Start) -> None:
    holder, metrics = reserve_port("127.0.0.1:0")
    with holder:
        running = start(metrics_listen=metrics, **_ELSEWHERE)
        running.ended()
        assert f"The metrics cannot be served on {metrics}" in running.errors


def test_passwords_of_stores_are_on_no_command_line(start: Start) -> None:
    running = start(**_ELSEWHERE).until_ready()
    assert "s3cret" not in str([child.cmdline() for child in running.children()])


def test_banner_shows_no_password(start: Start) -> None:
    assert "s3cret" not in start(**_ELSEWHERE).until_ready().output


@pytest.mark.parametrize("call", ["grpcurl -plaintext", "counter increment", "import Client"])
def test_banner_shows_a_call_to_try(start: Start, call: str) -> None:
    running = start(**_ELSEWHERE).until_ready()
    assert wait_for(lambda: call in running.output, f"{call} in the banner")


def test_reserved_port_accepts_nothing() -> None:
    holder, address = reserve_port("127.0.0.1:0")
    with holder, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5)


def test_reserved_port_can_be_shared() -> None:
    holder, address = reserve_port("127.0.0.1:0")
    with holder, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        assert listener.getsockname() == holder.getsockname()


def test_reserved_port_cannot_be_reserved_again() -> None:
    holder, address = reserve_port("127.0.0.1:0")
    with holder, pytest.raises(StartupError):
        reserve_port(address)


def test_unknown_host_is_refused() -> None:
    with pytest.raises(StartupError, match=r"cannot listen on no.such.invalid:1"):
        reserve_port("no.such.invalid:1")


def test_restarts_slow_down_to_a_limit() -> None:
    restarts = Restarts()
    delays = []
    for second in range(8):
        restarts.started(float(second))
        delays.append(restarts.after_death(float(second)))
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_restarts_are_quick_again_after_a_steady_life() -> None:
    restarts = Restarts()
    restarts.started(0.0)
    restarts.after_death(1.0)
    restarts.started(2.0)
    assert restarts.after_death(32.0) == 0.1
