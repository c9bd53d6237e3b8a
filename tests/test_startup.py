"""What stops the start before anything runs."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tallyboard_server.cli import main
from tallyboard_server.settings import Settings
from tallyboard_server.startup import check_tls
from tests import certificates


def test_a_pair_for_tls_that_can_not_be_loaded_stops_the_start(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        certificates.make(tmp_path / name)
    certificate, key = tmp_path / "one" / "ca.pem", tmp_path / "two" / "key.pem"
    flags = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    where = ("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0")
    done = CliRunner().invoke(main, ["serve", *where, *flags])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: The settings tls_certificate (")
    assert not (tmp_path / "data").exists()


def test_a_pair_for_tls_that_fits_is_taken(tmp_path: Path) -> None:
    certificates.make(tmp_path)
    pair = (str(tmp_path / "ca.pem"), str(tmp_path / "key.pem"))
    check_tls(Settings(tls_certificate=pair[0], tls_key=pair[1]))
    with pytest.raises(RuntimeError, match="tls_key"):
        check_tls(Settings(tls_certificate=pair[1], tls_key=pair[0]))
