"""What `serve` prints once the service is ready: where it listens, and three calls to try."""

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tallyboard_server.settings import Settings

_PYTHON_CALL = """{imports}from tallyboard import Client
with Client("{target}"{tls}) as client:
    print(client.counter("post:42").get(exact=True))"""


def print_banner(settings: Settings, *, data: str, console: Console | None = None) -> None:
    """Print the service's address, where the data is, and three calls to copy."""
    console = console or Console(highlight=False, soft_wrap=True)
    target = settings.listen
    metrics = f"http://{settings.metrics_listen}/metrics" if settings.metrics_listen else "off"
    # In one piece: who reads where it listens finds the rest there, too.
    with console:
        console.print(f"\n[bold green]Tallyboard listens on {escape(target)}[/]")
        console.print(f"data: {data}   metrics: {metrics}   stop: Ctrl-C\n", markup=False)
        for title, call in _calls(settings, target):
            console.print(f"[bold]{title}[/]")
            console.print(call + "\n", markup=False)


def _calls(settings: Settings, target: str) -> list[tuple[str, str]]:
    certificate = settings.tls_certificate
    imports = tls = ""
    grpcurl, trust = "grpcurl -plaintext", ""
    if certificate:
        imports = "import grpc\n"
        tls = f', tls=grpc.ssl_channel_credentials(open("{certificate}", "rb").read())'
        grpcurl, trust = f"grpcurl -cacert {certificate}", f" --ca {certificate}"
    message = """{"counter": "post:42", "delta": "1", "return_count": true}"""
    call = f"{grpcurl} -d '{message}' {target} tallyboard.v1.CounterService/Increment"
    program = f"{_program()} counter increment post:42 --delta 5 --server {target}{trust}"
    code = _PYTHON_CALL.format(imports=imports, target=target, tls=tls)
    python = f"{_interpreter()} - <<'END'\n{code}\nEND"
    return [("grpcurl", call), ("Command line", program), ("Python", python)]


def _program() -> str:
    found = Path(sys.argv[0])
    if found.name != "tallyboard-server":
        return f"{_interpreter()} -m tallyboard_server"
    return _short(found)


def _interpreter() -> str:
    return _short(Path(sys.executable))


def _short(path: Path) -> str:
    """The path as one would type it here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
