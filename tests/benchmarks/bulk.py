"""Bulk from a SPICE port to a socket, against socat relaying as many bytes, unframed.

Both take them from loopback TCP and end in the same reader. Runs alternate, after one of each that
does not count.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.benchmarks.figure import Figure
from tests.conftest import EXECUTABLE
from tests.peers.libspice import SpiceEndpoint
from tests.peers.processes import free_port, wait_until

SIZE = 1 << 30  # bytes a run
PAIRS = 5


def drain(path: Path) -> float:
    """Connects to a Unix socket, reads SIZE bytes, returns MB/s."""
    buffer = bytearray(1 << 18)
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.connect(str(path))
        left = SIZE - sock.recv_into(buffer)
        begun = time.perf_counter()
        while left > 0:
            count = sock.recv_into(buffer)
            if not count:
                raise SystemExit(f"{left} bytes are missing")
            left -= count
        return SIZE / 1e6 / (time.perf_counter() - begun)


def ours(folder: Path) -> float:
    """libspice-server pours into a port, spicebridge makes it a socket."""
    path = folder / "ours"
    with SpiceEndpoint("pour:p", pour=SIZE) as endpoint:
        spec = f"unixsocket={path},port=p"
        command = [str(EXECUTABLE), endpoint.uri, "-q", "--custom-channel", spec]
        with subprocess.Popen(command) as bridge:
            try:
                wait_until(path.exists, what="spicebridge has no socket")
                endpoint.wait_state("p", False)  # its name has been looked up
                return drain(path)
            finally:
                bridge.terminate()


@contextmanager
def sender() -> Iterator[int]:
    """Sends SIZE bytes to whoever connects to a port."""
    port = free_port()
    block = os.urandom(1 << 18)
    with socket.create_server(("127.0.0.1", port)) as server:

        def send() -> None:
            with server.accept()[0] as sock:
                for _ in range(SIZE // len(block)):
                    sock.sendall(block)

        threading.Thread(target=send, daemon=True).start()
        yield port


def through_socat(folder: Path, source: str) -> float:
    """What socat relays from an address of its own kind, with its best buffer size."""
    path = folder / "socat"
    command = ["socat", "-b", "262144", f"UNIX-LISTEN:{path}", source]
    with subprocess.Popen(command) as relay:
        try:
            wait_until(path.exists, what="socat has no socket")
            return drain(path)
        finally:
            relay.terminate()
            path.unlink(missing_ok=True)


def socat(folder: Path) -> float:
    """The same bytes from a plain TCP sender, relayed by socat."""
    with sender() as port:
        return through_socat(folder, f"TCP:127.0.0.1:{port}")


def measure() -> list[Figure]:
    """Runs the pairs."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name)
        pairs = [(ours(folder), socat(folder)) for _ in range(PAIRS + 1)][1:]
    return [Figure("bulk down, MB/s", "socat relay", pairs)]
