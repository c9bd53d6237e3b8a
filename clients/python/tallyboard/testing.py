"""A real service for the tests of a program that calls it, on stores of its own.

Needs the server beside the library: `pip install 'tallyboard-server[embedded]'`. With pytest
nothing has to be imported: the fixtures `tallyboard_service` and `tallyboard_client` are there (see
the module `tallyboard_pytest`).
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 30.0
_ANNOUNCED: Final = "listens on "
_LOG_KEPT: Final = 4_000


class EmbeddedService:
    """A service in processes of its own, with Redis and Postgres; use it in a `with`.

    It starts in about two seconds, keeps its data in a temporary folder, and ends with this
    process, whatever becomes of it.

    Args:
        flags: more flags of `tallyboard-server serve`, such as `("--durability", "journaled")`.

    Attributes:
        target: where it listens, as `host:port`.

    Raises:
        RuntimeError: it does not start; the end of its log is in the text.
    """

    def __init__(self, *flags: str) -> None:
        self._flags = flags
        self.target = ""

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
        # Below root, Postgres runs as another user, who has to enter the folder.
        self._folder.chmod(0o755)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tallyboard_server", "serve", "--with-parent"),
                    *("--listen", "127.0.0.1:0", "--metrics-listen", "", "--workers", "1"),
                    *("--data-dir", str(self._folder / "data"), *self._flags),
                ],
                # Settings of the caller's own, such as where its Redis is, are not for a test.
                env={k: v for k, v in os.environ.items() if not k.startswith("TALLYBOARD_")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._is_late = threading.Timer(START_TIMEOUT, self._process.kill)
        self._is_late.start()
        try:
            self.target = self._announced()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            self._is_late.cancel()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _announced(self) -> str:
        """The address, which the service prints once it serves."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            _, found, rest = line.partition(_ANNOUNCED)
            if found:
                return rest.split()[0]
        self._process.wait()
        log = (self._folder / "log").read_text(errors="replace")[-_LOG_KEPT:]
        raise RuntimeError(f"the service did not start (is tallyboard-server installed?):\n{log}")
