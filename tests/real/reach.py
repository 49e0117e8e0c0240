"""What reaching a server shows: its channels, an answer of QEMU's monitor, many bytes unharmed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import Spicebridge
from tests.peers import glib_client
from tests.peers.qemu import HMP_PORT, QMP_PORT
from tests.peers.qmp_client import QmpClient
from tests.real.tools import JSON_LOG, MIB, Start, connection, events, wait_event

SIZE = 32 * MIB
_MAIN = 1


@dataclass(frozen=True)
class Way:
    """A way to a QEMU.

    Attributes:
        uri: a URI or a connection file.
        options: more of the command line.
        env: of the process.
        stdin: a file that it gets there.
    """

    uri: str
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: Path | None = None


def carry(spicebridge: Start, folder: Path, way: Way, size: int = SIZE) -> Spicebridge:
    """Bridge a monitor of QEMU: it answers, and `size` bytes come back as they were.

    Returns:
        The bridge, which has ended; its log tells which way it went.
    """
    path = folder / "s"
    spec = f"port={QMP_PORT},unixsocket={path}"
    with ExitStack() as stack:
        more: dict[str, Any] = {}
        if way.stdin:
            more["stdin"] = stack.enter_context(way.stdin.open("rb")).fileno()
        running = spicebridge(
            way.uri,
            "--custom-channel",
            spec,
            *way.options,
            "-v",
            *JSON_LOG,
            env=dict(way.env),
            **more,
        )
    with connection(path) as sock, QmpClient(sock) as monitor:
        assert monitor.execute("query-status")["status"] == "prelaunch"
        sent, received = monitor.echo(size)
        assert sent == received
    record = wait_event(running, "unlinked")
    assert record["up"] > size
    assert record["down"] > size
    assert running.stop() == 0
    return running


def steps(running: Spicebridge, what: str = "") -> list[str]:
    """What it did to reach the server, as far as it begins with `what`, in order."""
    names = [str(record["step"]) for record in events(running, "step")]
    return [name.removeprefix(what) for name in names if name.startswith(what)]


def linked_at(running: Spicebridge, *, refused: bool = False) -> dict[str, set[str]]:
    """The addresses at which each channel was linked, or `refused` for it is only for TLS."""
    places: dict[str, set[str]] = {}
    for record in events(running, "step"):
        if (linking := re.fullmatch(r"linking (\S+) at (\S+)", record["step"])) and (
            record["found"] == ["refused: the server wants TLS for it"]
        ) is refused:
            places.setdefault(linking[1], set()).add(linking[2])
    return places


Channels = dict[tuple[int, int], tuple[str | None, bool | None]]
"""The name of each channel, by type and number, and whether it is open."""


def channels(rows: list[dict[str, Any]]) -> Channels:
    """What `spicebridge list` found of a QEMU, whose monitors have to be there."""
    found = {(row["type_number"], row["id"]): (row["port"], row["open"]) for row in rows}
    assert {HMP_PORT, QMP_PORT} == {name for name, _ in found.values() if name}
    return found


def channels_of_glib(
    uri: str, properties: Mapping[str, str] | None = None, password_file: Path | None = None
) -> Channels:
    """What spice-client-glib finds."""
    found = glib_client.list_channels(uri, password_file=password_file, properties=properties)
    return {
        (each["type"], each["id"]): (each["name"], each["opened"])
        for each in found
        if each["type"] != _MAIN  # the server does not list it
    }
