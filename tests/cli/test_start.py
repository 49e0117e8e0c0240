"""What the start of a bridge does not pay for. No clock tells: other work would upset it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Offered
from tests.cli.tools import connect, until
from tests.conftest import Spicebridge

LIBRARIES = {"cryptography", "h11", "pydantic", "rich", "scramp", "socksio", "typer", "wsproto"}
"""Each costs more than 5 ms, or is for what not every bridge does."""

STANDARD = {"datetime", "difflib", "email", "http", "importlib.metadata", "json", "shutil"}

OURS = {
    "spicebridge.bridge": {"demux", "served", "served_demux", "serving", "streams"},
    "spicebridge.cli": {"commands", "demo", "listing", "live", "options"},
    "spicebridge.endpoints": {"inherited", "pipe", "process", "pty", "share"},
    "spicebridge.protocol": {"mux", "server_ticket"},
    "spicebridge": {"server"},
    "spicebridge.transport": {
        *("certificate", "connection_file", "layer", "proxy", "sasl_layer", "start_tls", "tls"),
        *("trust", "websocket"),
    },
}

RARE = LIBRARIES | STANDARD | {f"{room}.{name}" for room, names in OURS.items() for name in names}


def imported(log: str) -> set[str]:
    """The modules in what Python logs with PYTHONPROFILEIMPORTTIME, and what they are in."""
    names = re.findall(r"^import time: .*\| +([\w.]+)$", log, re.MULTILINE)
    parts = [name.split(".") for name in names]
    return {".".join(each[:size]) for each in parts for size in range(1, len(each) + 1)}


def test_a_bridge_imports_nothing_that_it_does_not_need(
    spicebridge: Callable[..., Spicebridge], offered: Offered, short_tmp: Path
) -> None:
    bridge = spicebridge(
        *(offered.uri, "--custom-channel", f"unixsocket={short_tmp}/s,port=solo"),
        env={"PYTHONPROFILEIMPORTTIME": "1"},
    )
    with connect(short_tmp / "s"):
        until("the channel is linked", lambda: "solo) linked" in bridge.stderr())
        assert bridge.stop() == 0
    names = imported(bridge.stderr())
    assert "spicebridge.bridge.raw" in names
    assert not names & RARE


def test_what_is_not_imported_is_what_there_is() -> None:
    """A module that was renamed would never be imported again, and nobody would know."""
    package = Path(__file__).parents[2]
    for room, names in OURS.items():
        for name in names:
            path = package.joinpath(*room.split("."), name)
            assert path.is_dir() or path.with_suffix(".py").is_file()
