"""The bridges that are compared, each with a server of its own behind it.

Ours and P have libspice-server in C with one port; L has a plain server in C that does with a bare
connection what the guest does with its port. All end in a Unix socket, for the same application.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

from tests.benchmarks.effort import Transport
from tests.benchmarks.programs import GlibBridge, PlainServer, Socat, Spicebridge
from tests.benchmarks.rounds import rounds
from tests.peers.certificates import Authority
from tests.peers.libspice import NOISE, SpiceEndpoint
from tests.peers.processes import Process

_Result = TypeVar("_Result")

PORT: Final = "org.example.benchmark.0"

_PLAIN_WORK: Final = {"pour": "pour", "count": "swallow", "both": "both"}


class Bridge(Protocol):
    """Starts a bridge from PORT to a Unix socket, and returns when it is ready."""

    def __call__(self, uri: str, path: Path, ca: Path | None = None) -> Process: ...


def spicebridge(uri: str, path: Path, ca: Path | None = None) -> Process:
    """Ours, as installed; it is linked before the application comes, as P is."""
    spec = f"unixsocket={path},port={PORT},attach=always"
    return Spicebridge(uri, spec, options=["--ca-file", str(ca)] if ca else [])


def glib_bridge(uri: str, path: Path, ca: Path | None = None) -> Process:
    """P: in C on spice-client-glib."""
    return GlibBridge(uri, PORT, path, ca=ca)


@dataclass(frozen=True)
class Guest:
    """What is behind the bridge.

    Attributes:
        kind: as `spice_endpoint.c` explains.
        size: bytes that it sends, or takes until it answers.
        message: the most that it gives at once, in bytes; None for as much as the server asks for.
        content: what it sends, over and over.
    """

    kind: Literal["pour", "count", "both", "echo", "silent"]
    size: int = 0
    message: int | None = None
    content: bytes = NOISE


@dataclass(frozen=True)
class Running:
    """A bridge that is ready.

    Attributes:
        path: of the socket for the application.
        pid: of the bridge.
    """

    path: Path
    pid: int

    @property
    def address(self) -> str:
        """The socket, as the application takes it."""
        return f"unix:{self.path}"


Over = Transport | Literal["TLS"]
Setup = Callable[[Guest, Over], AbstractContextManager[Running]]


@contextmanager
def _spice(start: Bridge, guest: Guest, over: Over) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name)
        files = Authority(folder).issue() if over == "TLS" else None
        with SpiceEndpoint(
            f"{guest.kind}:{PORT}",
            unix=folder / "spice" if over == "Unix" else None,
            pour=guest.size,
            content=guest.content,
            message=guest.message,
            digest=False,
            tls=files,
        ) as server:
            uri = server.tls_uri if files else server.uri
            with start(uri, folder / "application", files.ca if files else None) as bridge:
                yield Running(folder / "application", bridge.pid)
                bridge.popen.kill()  # the run is over: there is nothing to drain


@contextmanager
def _socat(buffer: int, guest: Guest, over: Over) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name)
        unix = folder / "plain" if over == "Unix" else None
        with (
            PlainServer(_PLAIN_WORK[guest.kind], guest.size, unix=unix) as server,
            Socat(folder / "application", server.address, buffer) as relay,
        ):
            yield Running(folder / "application", relay.pid)


ours: Final[Setup] = partial(_spice, spicebridge)
glib: Final[Setup] = partial(_spice, glib_bridge)

RELAYS: Final[dict[str, Setup]] = {
    f"socat -b {size}": partial(_socat, size) for size in (65536, 1048576)
}
"""L: socat, which relays the same bytes unframed."""


def pairs(run: Callable[[Setup], _Result], count: int) -> tuple[list[_Result], list[_Result]]:
    """Has ours and P take turns; returns what `run` made of each."""
    done = rounds({"ours": partial(run, ours), "P": partial(run, glib)}, count)
    return done["ours"], done["P"]
