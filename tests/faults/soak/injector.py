"""Makes the faults of a schedule happen, several at once where they overlap, and lifts them."""

import time
from typing import Final, NamedTuple

from tests.faults.soak.actions import CALL_TIMEOUT, Lift, Scene, begin
from tests.faults.soak.schedule import RESTORED, Fault, Schedule

#: Seconds without an acknowledgement after which the next fault begins all the same.
_IMPATIENCE: Final = 0.7
#: Seconds that a fault waits until it is possible; then it is left out.
_PATIENCE: Final = 6.0
_TICK: Final = 0.02


class _Active(NamedTuple):
    """A fault that has begun, when it is to be lifted, and how."""

    fault: Fault
    until: float
    lift: Lift


class Injector:
    """The faults of one schedule; `step` is called again and again, on the main thread.

    Args:
        scene: what they happen to.
        schedule: which and when.

    Attributes:
        injected: the faults that have begun.
    """

    def __init__(self, scene: Scene, schedule: Schedule) -> None:
        self.injected: list[Fault] = []
        self._scene = scene
        self._waiting = list(schedule.faults)
        self._to_copy = [fault for fault in self._waiting if fault.kind.name == RESTORED]
        self._active: list[_Active] = []
        self._acknowledged = 0
        self._progress_at = time.monotonic()
        self._waits_since: float | None = None

    @property
    def has_begun_all(self) -> bool:
        """Whether no fault is left to begin."""
        return not self._waiting

    @property
    def is_over(self) -> bool:
        """Whether all faults have come and gone."""
        return not self._waiting and not self._active

    def step(self) -> None:
        """Begins what is due, and lifts what has lasted long enough."""
        now = time.monotonic()
        acknowledged = self._scene.writers.acknowledged
        if acknowledged > self._acknowledged:
            self._acknowledged, self._progress_at = acknowledged, now
        self._copy_in_time(acknowledged)
        self._active = [a for a in self._active if now < a.until or not a.lift()]
        while self._waiting and self._begin_next(now):
            pass

    def lift_all(self, timeout: float = 60.0) -> None:
        """Lifts what is left, and begins nothing more."""
        self._waiting.clear()
        deadline = time.monotonic() + timeout
        while self._active and time.monotonic() < deadline:
            self._active = [active for active in self._active if not active.lift()]
            self._scene.stage.keep_up()
            time.sleep(_TICK)
        self._scene.problems += [f"{a.fault.name} was not lifted" for a in self._active]

    def finish(self) -> None:
        """Waits for the calls that were made."""
        for thread in self._scene.calls:
            thread.join(7 * CALL_TIMEOUT)

    def _copy_in_time(self, acknowledged: int) -> None:
        """Copies the data that will be restored when half of what was written by then is."""
        for fault in [fault for fault in self._to_copy if acknowledged >= fault.at // 2]:
            self._to_copy.remove(fault)
            self._scene.stage.node(fault.which).copy()

    def _begin_next(self, now: float) -> bool:
        """Begins the next fault, or leaves it out; False if it has to wait."""
        fault = self._waiting[0]
        impatient = now > self._progress_at + _IMPATIENCE
        if self._acknowledged < fault.at and not impatient:
            return False
        taken = {place for active in self._active for place in active.fault.kind.places}
        lift = None if taken.intersection(fault.kind.places) else begin(self._scene, fault)
        if lift is None:
            self._waits_since = self._waits_since or now
            if now < self._waits_since + _PATIENCE:
                return False
        else:
            self.injected.append(fault)
            self._active.append(_Active(fault, now + fault.lasts, lift))
        self._waits_since, self._progress_at = None, now
        del self._waiting[0]
        return True
