"""What `serve` prints once it is ready."""

import io

from rich.console import Console

from tallyboard_server.banner import print_banner
from tallyboard_server.settings import load_settings


def test_an_ipv6_address_is_shown_whole() -> None:
    printed = io.StringIO()
    settings = load_settings({"listen": "[fd00::1]:7411"}, environ={}).settings
    print_banner(settings, data="./data", console=Console(file=printed, soft_wrap=True))
    assert "Tallyboard listens on [fd00::1]:7411\n" in printed.getvalue()
