"""The same bulk as in `bulk`, over TLS, against socat's own TLS.

stunnel is the TLS server for both, in front of libspice-server and of a plain sender.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.benchmarks.bulk import PAIRS, SIZE, drain, sender, through_socat
from tests.benchmarks.figure import Figure
from tests.conftest import EXECUTABLE
from tests.peers.certificates import Authority, CertificateFiles
from tests.peers.libspice import SpiceEndpoint
from tests.peers.processes import wait_until
from tests.peers.proxies import Stunnel


def ours(folder: Path, files: CertificateFiles) -> float:
    """libspice-server pours into a port, behind stunnel; spicebridge makes it a socket."""
    path = folder / "ours"
    with SpiceEndpoint("pour:p", pour=SIZE) as endpoint:
        address = endpoint.uri.removeprefix("spice://")
        with Stunnel(folder, address, certificate=files) as tunnel:
            uri = f"spice+tls://127.0.0.1:{tunnel.port}"
            spec = f"unixsocket={path},port=p"
            more = ["-q", "--ca-file", str(files.ca)]
            command = [str(EXECUTABLE), uri, *more, "--custom-channel", spec]
            with subprocess.Popen(command) as bridge:
                try:
                    wait_until(path.exists, what="spicebridge has no socket")
                    endpoint.wait_state("p", False)  # its name has been looked up
                    return drain(path)
                finally:
                    bridge.terminate()


def socat(folder: Path, files: CertificateFiles) -> float:
    """The same bytes from a plain sender behind stunnel; socat speaks TLS."""
    with sender() as port, Stunnel(folder, f"127.0.0.1:{port}", certificate=files) as tunnel:
        return through_socat(folder, f"OPENSSL:127.0.0.1:{tunnel.port},cafile={files.ca}")


def measure() -> list[Figure]:
    """Runs the pairs."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name)
        files = Authority(folder).issue()
        runs = [(ours(folder, files), socat(folder, files)) for _ in range(PAIRS + 1)]
    return [Figure("bulk down over TLS, MB/s", "socat OPENSSL relay", runs[1:])]
