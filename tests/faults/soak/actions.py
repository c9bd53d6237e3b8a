"""How each kind of fault is made to happen, and how it is lifted."""

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import grpc
from redis.exceptions import RedisError

from tallyboard.v1 import operations_pb2 as pb
from tallyboard.v1 import operations_pb2_grpc
from tests.faults.ledger import TRANSIENT, stub_of
from tests.faults.soak.schedule import Fault
from tests.faults.soak.stage import Stage
from tests.faults.soak.writers import Writers

#: Lifts a fault; False: that is not possible yet, ask again.
Lift = Callable[[], bool]
CALL_TIMEOUT: Final = 10.0
PARTITIONS: Final = 64
_WORKERS: Final = 2
_BETWEEN_CALLS: Final = 0.05


@dataclass
class Scene:
    """What faults happen to.

    Attributes:
        stage, writers: the service, and its clients.
        calls: threads that ask the service for something.
        problems: what it answered and must not.
    """

    stage: Stage
    writers: Writers
    calls: list[threading.Thread] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


Action = Callable[[Scene, Fault], Lift | None]


def begin(scene: Scene, fault: Fault) -> Lift | None:
    """Makes a fault happen; what lifts it, or None if it can't happen now."""
    return ACTIONS[fault.kind.name](scene, fault)


def _done(what: Callable[[], object]) -> Lift:
    """A lift that is always possible."""

    def lift() -> bool:
        what()
        return True

    return lift


def _all(*lifts: Lift) -> Lift:
    return _done(lambda: [lift() for lift in lifts])


_NOTHING: Final = _done(lambda: None)


# The stores.


def _redis_killed(scene: Scene, fault: Fault) -> Lift:
    redis = scene.stage.node(fault.which)
    redis.kill()
    return _done(redis.start)


def _redis_stopped(scene: Scene, fault: Fault) -> Lift:
    redis = scene.stage.node(fault.which)
    redis.node.pause()
    return _done(redis.node.resume)


def _redis_stopped_and_killed(scene: Scene, fault: Fault) -> Lift:
    redis = scene.stage.node(fault.which)
    redis.node.pause()
    return _all(_done(redis.kill), _done(redis.start))


def _redis_wiped(scene: Scene, fault: Fault) -> Lift:
    redis = scene.stage.node(fault.which)
    redis.wipe()
    return _done(redis.start)


def _redis_flushed(scene: Scene, fault: Fault) -> Lift | None:
    try:
        scene.stage.node(fault.which).node.command("FLUSHALL")
    except RedisError:  # it has just been started
        return None
    return _NOTHING


def _redis_restored(scene: Scene, fault: Fault) -> Lift:
    redis = scene.stage.node(fault.which)
    redis.restore()
    return _done(redis.start)


def _postgres_killed(scene: Scene, fault: Fault) -> Lift:
    scene.stage.kill_postgres()
    return _done(scene.stage.start_postgres)


def _postgres_stopped(scene: Scene, fault: Fault) -> Lift:
    scene.stage.postgres.pause()
    return _done(scene.stage.postgres.resume)


def _postgres_stopped_and_killed(scene: Scene, fault: Fault) -> Lift:
    scene.stage.postgres.pause()
    return _all(_done(scene.stage.kill_postgres), _done(scene.stage.start_postgres))


def _both_killed(scene: Scene, fault: Fault) -> Lift:
    lifts = [_redis_killed(scene, fault), _postgres_killed(scene, fault)]
    return _all(*lifts if fault.which % 2 else reversed(lifts))


def _both_stopped(scene: Scene, fault: Fault) -> Lift:
    return _all(_redis_stopped(scene, fault), _postgres_stopped(scene, fault))


# The service.


def _process_killed(name: Callable[[Fault], str], scene: Scene, fault: Fault) -> Lift | None:
    found = scene.stage.signal_child(name(fault), signal.SIGKILL, _instance(fault))
    return None if found is None else _NOTHING


def _process_stopped(name: Callable[[Fault], str], scene: Scene, fault: Fault) -> Lift | None:
    pid = scene.stage.signal_child(name(fault), signal.SIGSTOP, _instance(fault))
    if pid is None:
        return None
    return _done(partial(scene.stage.resume_process, pid))


def _instance(fault: Fault) -> int:
    return fault.which // _WORKERS


def _worker(fault: Fault) -> str:
    return f"worker-{fault.which % _WORKERS}"


def _keeper(fault: Fault) -> str:
    return "keeper"


def _service_ended(how: signal.Signals, scene: Scene, fault: Fault) -> Lift:
    scene.stage.end_service(how)
    return scene.stage.start_service


# Clients.


def _client_killed(scene: Scene, fault: Fault) -> Lift | None:
    client = scene.writers.client
    if client is None:
        return None
    client.kill()
    return _done(partial(client.start, goes_on=bool(fault.which % 2)))


def _client_stopped(scene: Scene, fault: Fault) -> Lift | None:
    client = scene.writers.client
    if client is None:
        return None
    client.pause()
    return _done(client.resume)


# The lines.


def _line_to_redis(scene: Scene, fault: Fault) -> Lift:
    line = scene.stage.node(fault.which).line
    scene.stage.disturb(line, fault.line)
    return _done(partial(scene.stage.repair, line, fault.line))


def _line_to_postgres(scene: Scene, fault: Fault) -> Lift:
    scene.stage.disturb(scene.stage.postgres_line, fault.line)
    return _done(partial(scene.stage.repair, scene.stage.postgres_line, fault.line))


# What operators ask for, and what the clock does.


def _window_closes(scene: Scene, fault: Fault) -> Lift:
    scene.writers.begin_season(fault.lasts)
    return _NOTHING


def _call(work: Callable[[Scene, Fault, Any], None], scene: Scene, fault: Fault) -> Lift:
    """Calls of OperationsService until it is lifted, at least one; they may fail as a store may."""
    over = threading.Event()

    def run() -> None:
        while True:
            try:
                with stub_of(scene.stage.target, operations_pb2_grpc.OperationsServiceStub) as stub:
                    work(scene, fault, stub)
            except grpc.RpcError as error:
                if error.code() not in TRANSIENT:
                    scene.problems.append(f"{fault.name}: {error.code().name} {error.details()}")
            if over.wait(_BETWEEN_CALLS):
                return

    thread = threading.Thread(target=run, name=fault.name, daemon=True)
    scene.calls.append(thread)
    thread.start()
    return _done(over.set)


def _checkpoint(scene: Scene, fault: Fault, stub: Any) -> None:
    stub.Checkpoint(pb.CheckpointRequest(), timeout=CALL_TIMEOUT)


def _rebuild(scene: Scene, fault: Fault, stub: Any) -> None:
    partition = fault.which % PARTITIONS
    stub.RebuildPartition(pb.RebuildPartitionRequest(partition=partition), timeout=CALL_TIMEOUT)


def _verify(scene: Scene, fault: Fault, stub: Any) -> None:
    scene.problems.extend(verify(stub))


def verify(stub: Any) -> list[str]:
    """The differences that the service finds by itself, in words; the first few a partition.

    Raises:
        grpc.RpcError: it could not compare all partitions.
    """
    found, partitions = [], 0
    for answer in stub.Verify(pb.VerifyRequest(max_differences=3), timeout=6 * CALL_TIMEOUT):
        partitions += 1
        if answer.difference_count:
            found.append(
                f"Verify finds {answer.difference_count} differences in partition "
                f"{answer.partition}: {list(answer.differences)}"
            )
    if partitions != PARTITIONS:
        found.append(f"Verify answered for {partitions} of {PARTITIONS} partitions")
    return found


ACTIONS: Final[dict[str, Action]] = {
    "redis killed": _redis_killed,
    "redis stopped": _redis_stopped,
    "redis stopped and killed": _redis_stopped_and_killed,
    "redis wiped": _redis_wiped,
    "redis flushed": _redis_flushed,
    "redis restored from an old copy": _redis_restored,
    "postgres killed": _postgres_killed,
    "postgres stopped": _postgres_stopped,
    "postgres stopped and killed": _postgres_stopped_and_killed,
    "both stores killed": _both_killed,
    "both stores stopped": _both_stopped,
    "worker killed": partial(_process_killed, _worker),
    "worker stopped": partial(_process_stopped, _worker),
    "keeper killed": partial(_process_killed, _keeper),
    "keeper stopped": partial(_process_stopped, _keeper),
    "service restarted": partial(_service_ended, signal.SIGTERM),
    "service killed": partial(_service_ended, signal.SIGKILL),
    "client killed": _client_killed,
    "client stopped": _client_stopped,
    "line to redis": _line_to_redis,
    "line to postgres": _line_to_postgres,
    "checkpoint": partial(_call, _checkpoint),
    "verify": partial(_call, _verify),
    "rebuild": partial(_call, _rebuild),
    "window closes": _window_closes,
}
