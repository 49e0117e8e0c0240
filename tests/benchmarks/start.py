"""From starting a process to what its user waits for: the socket, the channel, the first byte.

Ready is said when the channel was found: we write to ``--ready-fd`` then, and P prints a line. Our
socket can be connected to before, P's only then.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from tests.benchmarks.bridges import PORT, Bridge, glib_bridge, spicebridge
from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.rounds import rounds
from tests.peers.libspice import SpiceEndpoint
from tests.peers.processes import PeerError

_PAUSE: Final = 0.0005
"""Seconds between two attempts to connect."""

_PATIENCE: Final = 30.0

_STEPS: Final = ("socket", "ready", "first byte")


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours, P, and Python that does nothing."""
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "ours": partial(_start, spicebridge),
        "P": partial(_start, glib_bridge),
        "bare": _python,
    }
    done = rounds(runs, effort.pairs)
    bare = [each["end"] for each in done["bare"]]
    for step in _STEPS:
        yield Figure(
            f"start to {step}",
            "ms",
            [each[step] for each in done["ours"]],
            [Peer("P", [each[step] for each in done["P"]], 3.0), Peer("python3 -c pass", bare)],
            less_is_better=True,
        )


def _start(bridge: Bridge) -> dict[str, float]:
    """Milliseconds to each of the steps."""
    with (
        tempfile.TemporaryDirectory(prefix="sb-") as name,
        SpiceEndpoint(f"pour:{PORT}", unix=Path(name) / "spice", pour=1) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        path = Path(name) / "application"
        begun = time.perf_counter()
        application = pool.submit(_connect, path)
        with bridge(server.uri, path):
            ready = time.perf_counter()
            connected, first_byte = application.result()
    times = dict(zip(_STEPS, (connected, ready, first_byte), strict=True))
    return {step: (moment - begun) * 1e3 for step, moment in times.items()}


def _connect(path: Path) -> tuple[float, float]:
    """When a socket could be connected to, and when the first byte came out of it."""
    with socket.socket(socket.AF_UNIX) as sock:
        deadline = time.perf_counter() + _PATIENCE
        while sock.connect_ex(str(path)):
            if time.perf_counter() > deadline:
                raise PeerError(f"there is no {path}")
            time.sleep(_PAUSE)
        connected = time.perf_counter()
        if not sock.recv(1):
            raise PeerError("there is no byte")
        return connected, time.perf_counter()


def _python() -> dict[str, float]:
    """Milliseconds that the interpreter takes which runs ours, too."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return {"end": (time.perf_counter() - begun) * 1e3}
