"""The data folder belongs to one service at a time."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tallyboard_server.embedded.errors import EmbeddedError


class DataFolderLock:
    """Holds a data folder for one service; the kernel lets go of it when the process ends."""

    def __init__(self, data_dir: Path | str) -> None:
        self._path = Path(data_dir).absolute() / "lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Take the folder, made if need be; EmbeddedError when another service holds it."""
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(self._path, "a+", encoding="ascii")
        except OSError as error:
            raise EmbeddedError(
                f"The data folder {folder} cannot be used: {error.strerror}."
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            file.close()
            raise EmbeddedError(
                f"The data folder {folder} is in use by another service (process {holder}); "
                "stop it, or set another data_dir."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
