"""Settings: which source wins, what is refused, and that no password is shown."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tallyboard_server.redis.urls import address_of
from tallyboard_server.settings import (
    INHERITED_VARIABLE,
    Settings,
    SettingsError,
    load_settings,
    mask_url,
    postgres_address,
)


def refusal(flags: Mapping[str, object], environ: Mapping[str, str]) -> str:
    """The sentence with which these sources are refused."""
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environ)
    return str(caught.value)


def config_file(folder: Path, text: str) -> dict[str, str]:
    """An environment that names a TOML file with this text."""
    path = folder / "tallyboard.toml"
    path.write_text(text)
    return {"TALLYBOARD_CONFIG": str(path)}


def test_nothing_given_is_all_defaults() -> None:
    assert load_settings({}, {}).settings == Settings()


def test_defaults_pass_their_own_rules() -> None:
    defaults = {f.name: getattr(Settings(), f.name) for f in fields(Settings)}
    assert load_settings(defaults, {}).settings == Settings()


def test_every_setting_has_a_help_text() -> None:
    assert [f.name for f in fields(Settings) if not f.metadata["help"]] == []


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = {**config_file(tmp_path, "workers = 2"), "TALLYBOARD_WORKERS": "3"}
    assert load_settings({}, environ).settings.workers == 3


def test_flag_wins_over_the_environment() -> None:
    assert load_settings({"workers": "4"}, {"TALLYBOARD_WORKERS": "3"}).settings.workers == 4


def test_flag_that_is_not_given_does_not_win() -> None:
    assert load_settings({"workers": None}, {"TALLYBOARD_WORKERS": "3"}).settings.workers == 3


def test_config_flag_wins_over_the_config_variable(tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.toml"
    chosen.write_text("workers = 5")
    environ = config_file(tmp_path, "workers = 2")
    assert load_settings({"config": str(chosen)}, environ).settings.workers == 5


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("workers", "the flag --workers"),
        ("partitions", "the environment variable TALLYBOARD_PARTITIONS"),
        ("cache_ttl", "the file {path}"),
        ("listen", "default"),
    ],
)
def test_source_of_a_value_is_known(tmp_path: Path, name: str, source: str) -> None:
    environ = {**config_file(tmp_path, "cache_ttl = 1"), "TALLYBOARD_PARTITIONS": "8"}
    loaded = load_settings({"workers": "1"}, environ)
    assert loaded.sources[name] == source.format(path=environ["TALLYBOARD_CONFIG"])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("pin_workers", "false", False),
        ("pin_workers", "YES", True),
        ("max_message_bytes", "1_000_000", 1_000_000),
        ("redis_timeout", "0.25", 0.25),
        ("listen", "[::1]:0", "[::1]:0"),
        ("durability", "replicated:2", "replicated:2"),
        ("durability", "journaled", "journaled"),
        ("redis_outage", "refuse", "refuse"),
        ("max_journal_batches", "1000", 1000),
        ("shards_by_prefix", "post:=16, user:=2", {"post:": 16, "user:": 2}),
        ("shards_by_prefix", "a=b=3", {"a=b": 3}),
        ("metrics_listen", "", ""),
    ],
)
def test_text_is_understood(name: str, text: str, value: object) -> None:
    environ = {f"TALLYBOARD_{name.upper()}": text}
    assert getattr(load_settings({}, environ).settings, name) == value


def test_shards_by_prefix_can_be_a_table(tmp_path: Path) -> None:
    environ = config_file(tmp_path, '[shards_by_prefix]\n"post:" = 16')
    assert load_settings({}, environ).settings.shards_by_prefix == {"post:": 16}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workers", "two"),
        ("workers", "-1"),
        ("workers", "1.5"),
        ("pin_workers", "maybe"),
        ("listen", "7411"),
        ("listen", "localhost:70000"),
        ("listen", "::1:7411"),
        ("redis_url", "http://cache.example"),
        ("postgres_url", "host=db"),
        ("data_dir", ""),
        ("durability", "replicated:0"),
        ("durability", "remembered"),
        ("redis_outage", "wait"),
        ("max_journal_batches", "999"),
        ("partitions", "0"),
        ("default_shards", "65"),
        ("shards_by_prefix", "post:"),
        ("shards_by_prefix", "post:=65"),
        ("shards_by_prefix", "=4"),
        ("shards_by_prefix", "a=1,a=2"),
        ("redis_timeout", "nan"),
        ("redis_timeout", "0"),
        ("request_id_ttl", "599"),
        ("access_log", "some"),
        ("tls_certificate", "/does/not/exist.pem"),
    ],
)
def test_wrong_value_is_refused_by_name(name: str, text: str) -> None:
    variable = f"TALLYBOARD_{name.upper()}"
    assert f"The setting {name} is " in refusal({}, {variable: text})


def test_refusal_is_one_complete_sentence() -> None:
    assert refusal({}, {"TALLYBOARD_WORKERS": "two"}) == (
        "The setting workers is 'two' in the environment variable TALLYBOARD_WORKERS; "
        "allowed is a whole number from 0 to 256."
    )


@pytest.mark.parametrize("text", ["workers = true", "workers = 1.0", 'cache_ttl = "x"'])
def test_wrong_type_in_the_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "The setting " in refusal({}, config_file(tmp_path, text))


def test_wrong_value_is_refused_even_if_a_stronger_source_is_right(tmp_path: Path) -> None:
    environ = {**config_file(tmp_path, "workers = -1"), "TALLYBOARD_WORKERS": "3"}
    assert "The setting workers is -1" in refusal({}, environ)


def test_unknown_variable_is_refused() -> None:
    assert "TALLYBOARD_WORKER;" in refusal({}, {"TALLYBOARD_WORKER": "1"})


def test_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    assert "There is no setting worker," in refusal({}, config_file(tmp_path, "worker = 1"))


def test_broken_file_is_refused(tmp_path: Path) -> None:
    assert "is not TOML" in refusal({}, config_file(tmp_path, "workers ="))


def test_missing_file_is_refused() -> None:
    assert "cannot be read" in refusal({"config": "/does/not/exist.toml"}, {})


def test_variables_of_clients_are_no_error() -> None:
    assert load_settings({}, {"TALLYBOARD_SERVER": "localhost:1"}).settings == Settings()


def test_certificate_without_key_is_refused(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.touch()
    assert "The setting tls_key is empty" in refusal({"tls_certificate": str(certificate)}, {})


@pytest.mark.parametrize(
    "value",
    ["http://ann:s3cret@cache", "s3cret", "redis:/:s3cret@cache", "http://:s3c/s3cret@cache"],
)
def test_refusal_shows_no_password(value: str) -> None:
    assert "s3cret" not in refusal({}, {"TALLYBOARD_REDIS_URL": value})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@db/x",
        "postgresql://ann:p@s3cret@db/x",
        "postgresql://db/x?user=ann&password=s3cret",
        "redis://:s3cret@cache:6379/0",
    ],
)
def test_shown_values_hold_no_password(url: str) -> None:
    name = "redis_url" if url.startswith("redis") else "postgres_url"
    assert "s3cret" not in str(load_settings({name: url}, {}).shown())


def test_printed_settings_hold_no_password() -> None:
    assert "s3cret" not in repr(Settings(redis_url="redis://:s3cret@cache"))


def test_masking_keeps_the_rest_of_a_url() -> None:
    assert mask_url("redis://ann:s3cret@cache:6379/0") == "redis://ann:***@cache:6379/0"


def test_masking_keeps_a_url_without_password() -> None:
    url = "postgresql://tallyboard@/tallyboard?host=/data/postgres"
    assert mask_url(url) == url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://ann:s3cret@cache:6380/2", "cache:6380"),
        ("rediss://:s3cret@cache", "cache:6379"),
        ("redis://[::1]:6380", "[::1]:6380"),
        ("unix://ann:s3cret@/data/a%20b/redis.sock?db=2", "/data/a b/redis.sock"),
    ],
)
def test_an_address_of_redis_is_where_it_is_and_no_more(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    ("conninfo", "address"),
    [
        ("postgresql://ann:s3cret@db:5433/acme?sslmode=require", "db:5433"),
        ("postgresql://ann:s3cret@db/acme", "db:5432"),
        ("postgresql://ann@[::1]/acme?password=s3cret", "[::1]:5432"),
        ("postgresql://ann:s3cret@a:1,b:2/acme", "a:1,b:2"),
        ("postgresql://ann:s3cret@a,b:5433/acme", "a:5432,b:5433"),
        ("host=db user=ann password=s3cret", "db:5432"),
        ("postgresql://ann@/acme?host=/data/postgres", "/data/postgres/.s.PGSQL.5432"),
        ("postgresql://ann@/acme", "localhost:5432"),
    ],
)
def test_an_address_of_postgres_is_where_it_is_and_no_more(conninfo: str, address: str) -> None:
    assert postgres_address(conninfo) == address


def test_child_reads_what_the_parent_wrote() -> None:
    settings = replace(Settings(), redis_url="redis://:s3cret@c", shards_by_prefix={"post:": 16})
    assert Settings.inherited({INHERITED_VARIABLE: settings.to_json()}) == settings


def test_child_started_by_hand_is_refused() -> None:
    with pytest.raises(SettingsError):
        Settings.inherited({})


@pytest.mark.parametrize(
    ("durability", "journals"),
    [("applied", False), ("fsynced", False), ("replicated:1", False), ("journaled", True)],
)
def test_only_journaled_writes_go_to_postgres_first(durability: str, journals: bool) -> None:
    assert replace(Settings(), durability=durability).journals_first is journals


def test_replicas_are_those_of_the_durability() -> None:
    assert replace(Settings(), durability="replicated:3").replicas == 3


def test_no_replicas_by_default() -> None:
    assert Settings().replicas == 0


def test_listen_address_has_no_brackets() -> None:
    assert replace(Settings(), listen="[::1]:7411").listen_address == ("::1", 7411)


def test_zero_workers_means_one_a_core() -> None:
    assert Settings().worker_count >= 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:99999",
        "redis://:se/cret@127.0.0.1:6399",
        "redis://:12/cret@127.0.0.1:6399",
        "redis://:se#cret@127.0.0.1:6399",
        "redis://127.0.0.1:6399/cret",
        "redis://127.0.0.1:6399?foo=1",
        "redis://127.0.0.1:6399?socket_timeout=abc",
        "redis://127.0.0.1:6399?password=cret",
        "rediss://127.0.0.1:6399?ssl_ca_certs=ca.pem",
        "redis://127.0.0.1:6399?db=x",
        "redis://127.0.0.1:7000,127.0.0.1:99999",
        "redis://127.0.0.1:7000,:7001",
    ],
)
def test_a_redis_url_that_no_client_takes_is_refused(url: str) -> None:
    said = refusal({"redis_url": url}, {})
    assert said.startswith("The setting redis_url in the flag --redis-url can't be used")
    assert "cret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://ann:pass%2Fword@[::1]:6379/3",
        "rediss://:pw@redis.example:6379/?db=2",
        "redis://ann:a,b@127.0.0.1:7000,[::1]:7001",
        "unix:///run/redis.sock",
        "unix://ann:pw@/run/redis.sock?db=1",
    ],
)
def test_a_redis_url_that_both_clients_take_is_taken(url: str) -> None:
    assert load_settings({"redis_url": url}, {}).settings.redis_url == url


@pytest.mark.parametrize("query", ["foo=se", "sslmode"])
def test_a_postgres_url_that_libpq_does_not_take_is_refused(query: str) -> None:
    said = refusal({"postgres_url": f"postgresql://ann:cret@127.0.0.1/x?{query}"}, {})
    assert said.startswith("The setting postgres_url in the flag --postgres-url can't be used")
    assert "cret" not in said


def test_a_folder_is_no_certificate(tmp_path: Path) -> None:
    assert "tls_key" in refusal({"tls_key": str(tmp_path)}, {})
