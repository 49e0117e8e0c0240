"""The programs that are measured, and those at both ends of them.

`application.c` is at the local end of every bridge, whosever it is; `glib_bridge.c` is the peer to
beat. Both are compiled once into the test cache.
"""

from __future__ import annotations

import os
import platform
import select
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tests.conftest import EXECUTABLE
from tests.peers.cache import cached, command, digest
from tests.peers.libspice import listen
from tests.peers.processes import JsonProcess, Process, wait_until

TIMEOUT = 120.0
"""Seconds after which a run is given up."""

_START_TIMEOUT = 30.0
_FOLDER = Path(__file__).parent


class Application(JsonProcess):
    """A running `application.c`, which explains the connections and the works.

    Args:
        connection: `unix:PATH`, or `accept:FD` or `listen:FD` with a descriptor of ours.
        work: the word and its numbers.
    """

    def __init__(self, connection: str, *work: object) -> None:
        kind, _, target = connection.partition(":")
        pass_fds = [] if kind == "unix" else [int(target)]
        super().__init__([_application(), connection, *map(str, work)], pass_fds=pass_fds)

    def result(self, timeout: float = TIMEOUT) -> dict[str, float]:
        """What it prints when it is done, or of `idle` and `stall` when it has connected."""
        return self.wait_message(timeout=timeout)


def application(connection: str, *work: object) -> dict[str, float]:
    """Run one to its end and return what it has printed."""
    with Application(connection, *work) as running:
        return running.result()


class PlainServer(Application):
    """`application.c` as a server without SPICE, for relays of bytes.

    Args:
        work: `pour`, `swallow`, `both` or `echo`, and its numbers.
        unix: the path of the Unix socket to listen on; else a TCP port of 127.0.0.1.

    Attributes:
        port: that port, 0 if there is none.
        address: where it listens, in the words of socat.
    """

    def __init__(self, *work: object, unix: Path | None = None) -> None:
        with listen(unix) as listener:
            self.port = 0 if unix else int(listener.getsockname()[1])
            self.address = f"UNIX-CONNECT:{unix}" if unix else f"TCP:127.0.0.1:{self.port},nodelay"
            super().__init__(f"listen:{listener.fileno()}", *work)


class Socat(Process):
    """socat as a relay for one connection.

    Args:
        path: of the Unix socket where it listens.
        server: what it connects to then, in its own words.
        buffer: bytes that it takes at once.
    """

    def __init__(self, path: Path, server: str, buffer: int) -> None:
        super().__init__(["socat", "-b", str(buffer), f"UNIX-LISTEN:{path}", server])
        try:
            wait_until(path.exists, what="socat has no socket", timeout=_START_TIMEOUT)
        except BaseException:
            self.stop()
            raise


class GlibBridge(JsonProcess):
    """A running `glib_bridge.c`: it has found the port, is linked with it, and listens.

    Args:
        uri: of the SPICE server.
        port: the name of the port.
        path: of the Unix socket where it listens.
        ca: what it trusts, for TLS.
    """

    def __init__(self, uri: str, port: str, path: Path, *, ca: Path | None = None) -> None:
        trust = [f"--ca-file={ca}"] if ca else []
        super().__init__([_glib_bridge(), *trust, uri, port, path])
        try:
            self.wait_message(ready=True, timeout=_START_TIMEOUT)
        except BaseException:
            self.stop()
            raise


class Spicebridge(Process):
    """The installed spicebridge: it has found its channels and its local ends exist.

    Args:
        uri: of the SPICE server.
        specs: what `--custom-channel` takes.
        options: more of the command line.
    """

    def __init__(self, uri: str, *specs: str, options: Sequence[str] = ()) -> None:
        channels = [word for spec in specs for word in ("--custom-channel", spec)]
        reader, writer = os.pipe()
        with os.fdopen(reader) as pipe:
            try:
                argv: list[str | Path] = [EXECUTABLE]
                argv += ["-q", "--ready-fd", str(writer), *options, *channels, uri]
                super().__init__(argv, pass_fds=[writer])
            finally:
                os.close(writer)
            if not (select.select([pipe], [], [], _START_TIMEOUT)[0] and pipe.read()):
                error = self.error("it is not ready")
                self.stop()
                raise error


def cpu_seconds(pid: int) -> float:
    """What the threads of a running process have used of the processors, user and system."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3), which Python lacks


def versions() -> dict[str, str]:
    """Of the programs and libraries that take part, and of the machine."""

    def package(name: str) -> str:
        return command("dpkg-query", "-W", "-f", "${Version}", name)

    models = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, _, value in (m.partition(":") for m in models)}
    return {
        "python": platform.python_version(),
        "spicebridge": version("spicebridge"),
        "socat": package("socat"),
        "libspice-server": command("pkg-config", "--modversion", "spice-server").strip(),
        "spice-client-glib": command("pkg-config", "--modversion", "spice-client-glib-2.0").strip(),
        "gcc": command("gcc", "-dumpfullversion").strip(),
        "kernel": platform.release(),
        "cpu": fields.get("model name", platform.machine()),
    }


@cache
def _application() -> Path:
    return _built("application.c", "-pthread")


@cache
def _glib_bridge() -> Path:
    flags = command("pkg-config", "--cflags", "--libs", "spice-client-glib-2.0", "gio-unix-2.0")
    return _built("glib_bridge.c", *flags.split())


def _built(name: str, *flags: str) -> Path:
    source = _FOLDER / name

    def build(folder: Path) -> None:
        command("gcc", "-O2", "-Wall", "-o", folder / source.stem, source, *flags)

    return cached(f"{source.stem}-{digest(source.read_bytes())}", build) / source.stem
