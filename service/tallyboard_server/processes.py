"""Small things that a process does to itself: die with its parent, keep to a core, become a user.

All but the last do nothing where the system has no such call.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_SECUREBITS: Final = 28
_NO_SETUID_FIXUP: Final = 1 << 2
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAP_VERSION_3: Final = 0x20080522
_CAP_DAC_OVERRIDE: Final = 1
_CAP_SETPCAP: Final = 8
# Loaded before any fork: a forked child must not load libraries.
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process `signal_number` when the thread that made it ends.

    Linux forgets it when the user id changes, so call it after that. Raises OSError if refused.
    """
    if _LIBC is not None:
        _system(_PR_SET_PDEATHSIG, int(signal_number))


class User(NamedTuple):
    """A user to run a child as.

    With `reaches_all` it may still open every file as root does, for folders it cannot enter.
    """

    uid: int
    gid: int
    reaches_all: bool


def child_setup(
    signal_number: int = signal.SIGTERM, user: User | None = None
) -> Callable[[], None]:
    """A `preexec_fn` for children of this process: they die with it by `signal_number`.

    The child must be started from a thread that lives as long as the child should, in practice
    the main thread. Only root may name a `user` for it.
    """
    parent = os.getpid()

    def prepare() -> None:
        if user is not None:
            _become(user)
        die_with_parent(signal_number)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def may_open_everything() -> bool:
    """Whether this process may open all files and folders, and leave that right to a child."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            held = next(line for line in status if line.startswith("CapPrm:"))
    except (OSError, StopIteration):
        return False
    needed = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_SETPCAP
    return _LIBC is not None and int(held.split()[1], 16) & needed == needed


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _become(user: User) -> None:
    """Turn this process, which runs as root, into the user's, in no group but its own."""
    os.setgroups([])
    os.setgid(user.gid)
    if not user.reaches_all:
        os.setuid(user.uid)
        return
    # Keeps setuid() from dropping the capabilities, and access() from leaving them out.
    _system(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
    os.setuid(user.uid)
    assert _LIBC is not None
    kept = 1 << _CAP_DAC_OVERRIDE
    data = (_CapData * 2)(_CapData(kept, kept, kept), _CapData(0, 0, 0))
    if _LIBC.capset(ctypes.byref(_CapHeader(_CAP_VERSION_3, 0)), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")
    # An ambient capability survives the exec of a program that knows nothing of it.
    _system(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE)


def _system(option: int, first: int = 0, second: int = 0) -> None:
    assert _LIBC is not None
    if _LIBC.prctl(option, first, second, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def prefer_throughput() -> None:
    """Ask the kernel not to let a woken thread push aside the one that woke it (SCHED_BATCH).

    With many threads on one core that is most of the switching. Call it before threads start.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        return


def pin_to_core(index: int) -> int | None:
    """Keep this process to one of the cores it may use, the `index`-th modulo their number.

    Gives the core's number, or None where pinning is not possible. Call it before threads start.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    core = cores[index % len(cores)]
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        return None
    return core
