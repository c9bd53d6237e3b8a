"""A Postgres of a test's own that can be crashed and stalled."""

import signal
from pathlib import Path

import psutil

from tallyboard_server.embedded import EmbeddedPostgres


class PostgresNode(EmbeddedPostgres):
    """An embedded Postgres whose processes can be killed, or held, all at once."""

    @property
    def socket_folder(self) -> Path:
        """The folder of its unix socket, so that a proxy can stand between."""
        return self._socket_folder

    def crash(self) -> None:
        """Kill all its processes with SIGKILL; what is on disk is all that stays."""
        processes = self._processes()
        self._signal(processes, signal.SIGKILL)
        self.kill()
        psutil.wait_procs(processes, 5.0)

    def pause(self) -> None:
        """Stop it without ending it: connections stay, nothing answers."""
        self._signal(self._processes(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self._signal(self._processes(), signal.SIGCONT)

    def stop(self, timeout: float = 20.0) -> None:
        """Stop it, paused or not."""
        self.resume()
        super().stop(timeout)

    def _processes(self) -> list[psutil.Process]:
        """The first process and then the others, which the first one has made."""
        if self.pid is None:
            return []
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @staticmethod
    def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
