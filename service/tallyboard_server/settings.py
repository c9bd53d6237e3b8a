"""What can be set, what is allowed, and where each value came from.

Flags win over the environment, the environment over the TOML file, and that over the default.
A wrong value raises `SettingsError` with one sentence; passwords never appear in it.
"""

import dataclasses
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tallyboard_server.redis.urls import split_url

ENVIRONMENT_PREFIX: Final = "TALLYBOARD_"
CONFIG_VARIABLE: Final = "TALLYBOARD_CONFIG"
#: Carries the settings from the supervisor to its children; never set by people.
INHERITED_VARIABLE: Final = "TALLYBOARD_INHERITED_SETTINGS"
#: Read by clients, so they may be set in the shell that starts the service.
CLIENT_VARIABLES: Final = frozenset({"TALLYBOARD_SERVER", "TALLYBOARD_TENANT"})

MAX_SHARDS: Final = 64
MAX_NAME_BYTES: Final = 256
DAY: Final = 86_400.0


class SettingsError(ValueError):
    """A setting that cannot be used; `str()` is one sentence for the person who set it."""


class Rule(NamedTuple):
    """What a setting accepts: `allowed` in words, `accepts` as a test of the parsed value."""

    allowed: str
    accepts: Callable[[Any], bool]


def _between(low: float, high: float, unit: str = "") -> Rule:
    allowed = f"a number from {low:,g} to {high:,g}{unit and ' ' + unit}"
    return Rule(allowed, lambda value: low <= value <= high)


def _whole(low: int, high: int, unit: str = "") -> Rule:
    allowed = f"a whole number from {low:,} to {high:,}{unit and ' ' + unit}"
    return Rule(allowed, lambda value: low <= value <= high)


def _one_of(*choices: str) -> Rule:
    return Rule("one of " + ", ".join(choices), lambda value: value in choices)


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` (or `[::1]:port`) into its host and port; ValueError if it is neither."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError(address)
    if ":" in host and not bracketed:
        raise ValueError(address)
    return (host[1:-1] if bracketed else host), int(port)


def _is_address(value: str) -> bool:
    try:
        split_address(value)
    except ValueError:
        return False
    return True


def _is_shard_map(value: Mapping[str, int]) -> bool:
    return all(
        0 < len(prefix.encode()) <= MAX_NAME_BYTES and 1 <= shards <= MAX_SHARDS
        for prefix, shards in value.items()
    )


def _is_no_file_or_readable(path: str) -> bool:
    return path == "" or (os.path.isfile(path) and os.access(path, os.R_OK))


_ADDRESS = Rule("host:port with a port from 0 to 65535 (0 = any free one)", _is_address)
_OPTIONAL_ADDRESS = Rule("host:port, or empty for none", lambda v: v == "" or _is_address(v))
_REDIS_URL = Rule(
    "redis://, rediss:// or unix:// and an address, or empty for the embedded one",
    lambda value: re.match(r"^$|(redis|rediss|unix)://.", value) is not None,
)
_POSTGRES_URL = Rule(
    "postgresql:// or postgres:// and an address, or empty for the embedded one",
    lambda value: re.match(r"^$|postgres(ql)?://.", value) is not None,
)
_DURABILITY = Rule(
    "applied, fsynced, journaled, or replicated:N with N from 1 to 16",
    lambda value: (
        re.fullmatch(r"applied|fsynced|journaled|replicated:([1-9]|1[0-6])", value) is not None
    ),
)
_FILE = Rule("a file that can be read, or empty", _is_no_file_or_readable)
_FOLDER = Rule("the path of a folder", lambda value: value != "" and not Path(value).is_file())
_SHARD_MAP = Rule(
    f"name prefixes of 1 to {MAX_NAME_BYTES} bytes, each with 1 to {MAX_SHARDS} shards, "
    "such as post:=16,user:=2",
    _is_shard_map,
)
_ANYTHING = Rule("", lambda value: True)


def _setting(default: object, help: str, rule: Rule = _ANYTHING, *, secret: bool = False) -> Any:
    metadata = {"help": help, "rule": rule, "secret": secret}
    if isinstance(default, dict):
        return field(default_factory=dict, hash=False, metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, each with its unit and limits in `metadata["help"]`.

    Build it with `load_settings`, which checks the values; the constructor itself does not.
    """

    listen: str = _setting(
        "127.0.0.1:7411",
        "Address that clients call, as host:port; port 0 takes a free one.",
        _ADDRESS,
    )
    workers: int = _setting(
        0,
        "Worker processes that serve calls, 0 to 256; 0 means one a core.",
        _whole(0, 256),
    )
    pin_workers: bool = _setting(
        True,
        "Pin each worker to one core where the system allows it.",
    )
    redis_url: str = _setting(
        "",
        "Redis to use: redis://, rediss:// or unix://, of a cluster any of its nodes as "
        "redis://host:port,host:port; empty starts an embedded one.",
        _REDIS_URL,
        secret=True,
    )
    postgres_url: str = _setting(
        "",
        "Postgres to use, as postgresql://user:password@host/database; "
        "empty starts an embedded one.",
        _POSTGRES_URL,
        secret=True,
    )
    data_dir: str = _setting(
        "./data",
        "Folder that holds the data of the embedded stores; it survives restarts.",
        _FOLDER,
    )
    durability: str = _setting(
        "fsynced",
        "When a write is acknowledged: applied (Redis ran it), fsynced (it is on Redis's disk), "
        "replicated:N (N replicas have it, 1 to 16) or journaled (it was committed in Postgres "
        "first: nothing is lost even if Redis loses everything).",
        _DURABILITY,
    )
    redis_outage: str = _setting(
        "journal",
        "What happens to writes that Redis does not take: journal (they are made durable in "
        "Postgres and applied later) or refuse.",
        _one_of("journal", "refuse"),
    )
    max_journal_batches: int = _setting(
        5_000_000,
        "Batches that the journal in Postgres may hold before writes are refused, "
        "1,000 to 1,000,000,000.",
        _whole(1_000, 1_000_000_000),
    )
    partitions: int = _setting(
        64,
        "Partitions of the data, 1 to 4096; fixed once there is data.",
        _whole(1, 4096),
    )
    default_shards: int = _setting(
        8,
        "Partitions that one counter is spread over, 1 to 64.",
        _whole(1, MAX_SHARDS),
    )
    shards_by_prefix: Mapping[str, int] = _setting(
        {},
        "Shards, 1 to 64, of counters whose names start with a prefix, in every tenant; the "
        "longest prefix wins. A TOML table, or post:=16,user:=2.",
        _SHARD_MAP,
    )
    redis_timeout: float = _setting(
        1.0,
        "Seconds without an answer after which Redis counts as away, 0.05 to 60.",
        _between(0.05, 60, "seconds"),
    )
    call_timeout: float = _setting(
        10.0,
        "Seconds that a call may take, whatever its own deadline, 0.1 to 300. Checkpoint, Verify,"
        " RebuildPartition, TakeSnapshots, DeleteLeaderboard and EraseMember take as long as their"
        " callers wait, up to an hour.",
        _between(0.1, 300, "seconds"),
    )
    write_threads: int = _setting(
        32,
        "Threads of a worker that serve unary writes, 1 to 256.",
        _whole(1, 256),
    )
    read_threads: int = _setting(
        32,
        "Threads of a worker that serve unary reads, 1 to 256.",
        _whole(1, 256),
    )
    stream_threads: int = _setting(
        64,
        "Threads of a worker that serve streams, one each, 1 to 4096.",
        _whole(1, 4096),
    )
    max_concurrent_calls: int = _setting(
        10_000,
        "Calls that a worker holds at once, queued ones included, 1 to 1,000,000.",
        _whole(1, 1_000_000),
    )
    max_pending_operations: int = _setting(
        500_000,
        "Operations that wait for one link to Redis before callers are refused, "
        "10,000 to 10,000,000.",
        _whole(10_000, 10_000_000),
    )
    max_message_bytes: int = _setting(
        4_194_304,
        "Largest message that is accepted, in bytes, 65,536 to 67,108,864.",
        _whole(65_536, 67_108_864, "bytes"),
    )
    cache_ttl: float = _setting(
        2.0,
        "Seconds that a cached count may be old when the caller does not say, 0 to 3600.",
        _between(0, 3600, "seconds"),
    )
    cache_entries: int = _setting(
        100_000,
        "Counts that a worker keeps in memory, 1 to 10,000,000.",
        _whole(1, 10_000_000),
    )
    cache_pages: int = _setting(
        1_000,
        "Top pages of leaderboards that a worker keeps in memory, 1 to 100,000.",
        _whole(1, 100_000),
    )
    request_id_ttl: float = _setting(
        600.0,
        "Seconds that a request id is remembered, 600 to 604,800.",
        _between(600, 7 * DAY, "seconds"),
    )
    producer_ttl: float = _setting(
        3 * DAY,
        "Seconds that an idle producer is remembered, 600 to 2,592,000.",
        _between(600, 30 * DAY, "seconds"),
    )
    archive_quiet: float = _setting(
        5.0,
        "Seconds without a change after which a window that has closed is archived, 0 to 3600.",
        _between(0, 3600, "seconds"),
    )
    snapshot_retention: float = _setting(
        400 * 24 * 3600.0,
        "Seconds that daily snapshots of leaderboards are kept; 0: for good.",
        _between(0, 100 * 365 * 24 * 3600, "seconds"),
    )
    checkpoint_interval: float = _setting(
        5.0,
        "Seconds between two checkpoints from Redis to Postgres, 0.1 to 3600.",
        _between(0.1, 3600, "seconds"),
    )
    verify_interval: float = _setting(
        60.0,
        "Seconds from one partition to the next of the keeper's own comparison of Redis with "
        "Postgres, up to 86,400; 0 turns it off.",
        _between(0, DAY, "seconds"),
    )
    drain_timeout: float = _setting(
        20.0,
        "Seconds that calls in progress get to end when the service stops, 0 to 600.",
        _between(0, 600, "seconds"),
    )
    max_watchers: int = _setting(
        10_000,
        "Watching streams that a worker serves at once, 1 to 1,000,000.",
        _whole(1, 1_000_000),
    )
    access_log: str = _setting(
        "errors",
        "Calls that are logged: errors (only those that fail) or all.",
        _one_of("errors", "all"),
    )
    log_format: str = _setting(
        "auto",
        "Form of the log: json, console, or auto (console on a terminal, else json).",
        _one_of("auto", "json", "console"),
    )
    log_level: str = _setting(
        "info",
        "Least severe lines that are logged: debug, info, warning or error.",
        _one_of("debug", "info", "warning", "error"),
    )
    metrics_listen: str = _setting(
        "127.0.0.1:9464",
        "Address of the Prometheus metrics, as host:port; empty turns them off.",
        _OPTIONAL_ADDRESS,
    )
    tls_certificate: str = _setting(
        "",
        "PEM file with the certificate chain; with tls_key it turns TLS on.",
        _FILE,
    )
    tls_key: str = _setting("", "PEM file with the private key of tls_certificate.", _FILE)

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return split_address(self.listen)

    @property
    def worker_count(self) -> int:
        """How many workers to start: `workers`, or the cores that this process may use."""
        return self.workers or _usable_cores()

    @property
    def journals_first(self) -> bool:
        """Whether every write is committed in Postgres before it is acknowledged."""
        return self.durability == "journaled"

    @property
    def replicas(self) -> int:
        """Replicas that must have a write before it is acknowledged; 0 unless `replicated:N`."""
        _, _, count = self.durability.partition("replicated:")
        return int(count or 0)

    def to_json(self) -> str:
        """All values as JSON, secrets included: for child processes only."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The settings that `to_json` wrote."""
        return cls(**json.loads(text))

    @classmethod
    def inherited(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings that the supervisor handed to this child process.

        Raises SettingsError when the process was started by hand.
        """
        text = environ.get(INHERITED_VARIABLE)
        if text is None:
            raise SettingsError("This command is started by `tallyboard-server serve` only.")
        return cls.from_json(text)


@dataclass(frozen=True)
class LoadedSettings:
    """Settings in force, and for each name where its value came from, in words."""

    settings: Settings
    sources: Mapping[str, str]

    def shown(self) -> dict[str, object]:
        """Every value by name, fit to be seen: passwords are masked."""
        return {
            f.name: _shown(f, getattr(self.settings, f.name))
            for f in dataclasses.fields(self.settings)
        }


def mask_url(url: str) -> str:
    """The URL with any password replaced by `***`; a query value named password as well."""
    url = re.sub(r"(://[^/?#@:]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&\s](?:ssl)?pass(?:word|file)?=)[^&\s]*", r"\1***", url)


def postgres_address(conninfo: str) -> str:
    """Where a Postgres is, as host:port or the path of a socket; several are separated by commas.

    Args:
        conninfo: as libpq takes it.
    """
    options = conninfo_to_dict(conninfo)
    hosts = str(options.get("host") or options.get("hostaddr") or "localhost").split(",")
    ports = str(options.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    named = zip(hosts, ports, strict=False)
    return ",".join(_address(host, port or "5432") for host, port in named)


def _address(host: str, port: str) -> str:
    if host.startswith("/"):
        return f"{host}/.s.PGSQL.{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str]) -> LoadedSettings:
    """Read all sources, check every value, and say where each came from.

    `flags` maps setting names (and `config`, the TOML file's path) to values; None is not given.
    Raises SettingsError for an unknown name or a value that is not allowed.
    """
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for source, name, raw in _given_values(flags, environ):
        value = _checked(_FIELDS[name], raw, source)
        if name not in values:
            values[name], sources[name] = value, source
    for name in _FIELDS:
        sources.setdefault(name, "default")
    settings = Settings(**cast(dict[str, Any], values))
    _check_urls(settings, sources)
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        present, absent = ("tls_certificate", "tls_key")
        if settings.tls_key:
            present, absent = absent, present
        raise SettingsError(
            f"The setting {absent} is empty while {present} is set by {sources[present]}; "
            "TLS needs both."
        )
    return LoadedSettings(settings, {name: sources[name] for name in _FIELDS})


def _check_urls(settings: Settings, sources: Mapping[str, str]) -> None:
    """Raises SettingsError for what would fail only when a store is connected to.

    The sentences leave out the value and the parser's own words, which may hold a password.
    """
    if settings.redis_url and not _is_redis_url(settings.redis_url):
        raise SettingsError(
            f"The setting redis_url in {sources['redis_url']} can't be used; allowed is "
            "redis://user:password@host:port/database (or rediss://, or unix://path?db=database), "
            "of a cluster also host:port,host:port, with %2F for / and the like in a password, and "
            "with no query but db."
        )
    if settings.postgres_url and not _is_postgres_url(settings.postgres_url):
        raise SettingsError(
            f"The setting postgres_url in {sources['postgres_url']} can't be used; allowed is "
            "postgresql://user:password@host:port/database, with %2F for / and the like in a "
            "password, and with a query of options that libpq knows."
        )


def _is_redis_url(url: str) -> bool:
    try:
        nodes = split_url(url)
        is_ok = all(_is_url_of_node(node) for node in nodes)
        return is_ok and (len(nodes) == 1 or all(urlsplit(node).hostname for node in nodes))
    except ValueError:
        return False


def _is_url_of_node(url: str) -> bool:
    """Whether both clients of Redis take it, and alike: one of them knows no query but db.

    Raises:
        ValueError: it isn't even a URL.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    parts.port  # noqa: B018 - it raises
    databases = query.pop("db", [])
    if parts.scheme != "unix":
        databases = [*databases, parts.path.removeprefix("/") or "0"]
    return not query and not parts.fragment and all(re.fullmatch("[0-9]+", n) for n in databases)


def _is_postgres_url(url: str) -> bool:
    try:
        conninfo_to_dict(url)
    except psycopg.Error:
        return False
    return True


def _given_values(
    flags: Mapping[str, object], environ: Mapping[str, str]
) -> list[tuple[str, str, object]]:
    """Every value that somebody gave as (source, name, raw value), the strongest first."""
    given: list[tuple[str, str, object]] = [
        (f"the flag --{name.replace('_', '-')}", name, value)
        for name, value in flags.items()
        if value is not None and name != "config"
    ]
    for name in _names_in(environ):
        variable = ENVIRONMENT_PREFIX + name.upper()
        given.append((f"the environment variable {variable}", name, environ[variable]))
    path = flags.get("config") or environ.get(CONFIG_VARIABLE)
    if path:
        given.extend((f"the file {path}", k, v) for k, v in _file_values(str(path)).items())
    for source, name, _ in given:
        if name not in _FIELDS:
            raise SettingsError(f"There is no setting {name}, which {source} sets.")
    return given


def _names_in(environ: Mapping[str, str]) -> list[str]:
    reserved = {CONFIG_VARIABLE, INHERITED_VARIABLE} | CLIENT_VARIABLES
    names = []
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in reserved:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in _FIELDS or variable != ENVIRONMENT_PREFIX + name.upper():
            raise SettingsError(
                f"There is no setting for the environment variable {variable}; "
                "`tallyboard-server config` lists those there are."
            )
        names.append(name)
    return names


def _file_values(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"The file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"The file {path} is not TOML: it is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The file {path} is not TOML: {error}.") from None


def _checked(setting: "dataclasses.Field[Any]", raw: object, source: str) -> object:
    """The value of the setting that `raw` stands for; SettingsError if it is not allowed."""
    rule: Rule = setting.metadata["rule"]
    expected, parse = _PARSERS[setting.type]
    try:
        value = parse(raw)
        if rule.accepts(value):
            return value
    except (ValueError, TypeError):
        pass
    raise SettingsError(
        f"The setting {setting.name} is {_shown(setting, raw)!r} in {source}; "
        f"allowed is {rule.allowed or expected}."
    )


def _parse_text(raw: object) -> str:
    if not isinstance(raw, str):
        raise TypeError
    return raw.strip()


def _parse_whole(raw: object) -> int:
    if isinstance(raw, str) and re.fullmatch(r"\s*[+-]?[0-9][0-9_]*\s*", raw):
        return int(raw)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise TypeError
    return raw


def _parse_number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise TypeError
    value = float(raw)
    if not math.isfinite(value):
        raise ValueError
    return value


def _parse_bool(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(raw, str) and raw.strip().lower() in words:
        return words[raw.strip().lower()]
    raise TypeError


def _parse_shard_map(raw: object) -> dict[str, int]:
    if isinstance(raw, Mapping):
        return {_parse_text(prefix): _parse_whole(shards) for prefix, shards in raw.items()}
    shards_by_prefix: dict[str, int] = {}
    for item in filter(None, _parse_text(raw).split(",")):
        prefix, equals, shards = item.strip().rpartition("=")
        if not equals or prefix in shards_by_prefix:
            raise ValueError
        shards_by_prefix[prefix] = _parse_whole(shards)
    return shards_by_prefix


def _shown(setting: "dataclasses.Field[Any]", value: object) -> object:
    if not setting.metadata["secret"]:
        return value
    # A text that is no URL may be anything, a bare password too.
    return mask_url(str(value)) if value == "" or "://" in str(value) else "***"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_PARSERS: Final[dict[object, tuple[str, Callable[[object], object]]]] = {
    str: ("text", _parse_text),
    int: ("a whole number", _parse_whole),
    float: ("a number", _parse_number),
    bool: ("true or false", _parse_bool),
    Mapping[str, int]: ("a table", _parse_shard_map),
}
_FIELDS: Final = {f.name: f for f in dataclasses.fields(Settings)}
