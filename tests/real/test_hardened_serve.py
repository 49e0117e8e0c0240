"""`spicebridge serve` with TLS and a ticket: good clients are let in among those that are not."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from spicebridge.server.limits import DEFAULT_LIMITS
from tests.conftest import PATIENCE, Spicebridge
from tests.peers import glib_client
from tests.peers.certificates import Authority, CertificateFiles
from tests.peers.processes import PeerError
from tests.real.tools import JSON_LOG, MIB, Start, served_uri, sha256

pytestmark = pytest.mark.real_peer

PORT = "com.example.echo"
JUNK = b"GET /\x1b[2J HTTP/1.1\r\nHost: \x07\r\n\r\n" * 200


@pytest.fixture
def certificate(short_tmp: Path) -> CertificateFiles:
    return Authority(short_tmp).issue()


@pytest.fixture
def password_file(short_tmp: Path) -> Path:
    file = short_tmp / "password"
    file.write_text("open, sesame\n")
    return file


@pytest.fixture
def server(spicebridge: Start, certificate: CertificateFiles, password_file: Path) -> Spicebridge:
    return spicebridge(
        *("serve", "--listen", "127.0.0.1:0", "--password-file", str(password_file)),
        *("--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key)),
        *("--custom-channel", f"port={PORT},exec=cat", *JSON_LOG),
    )


def is_served(
    server: Spicebridge, certificate: CertificateFiles, password_file: Path, folder: Path
) -> None:
    """spice-client-glib gets its bytes back."""
    source, out = folder / "source", folder / "out"
    source.write_bytes(bytes(MIB))
    with glib_client.exchange(
        served_uri(server).replace("spice:", "spice+tls:"),
        PORT,
        send=source,
        expect=MIB,
        out=out,
        password_file=password_file,
        properties={"ca-file": str(certificate.ca)},
    ) as client:
        client.wait_message(received=MIB, timeout=PATIENCE)
    assert sha256(out.read_bytes()) == sha256(source.read_bytes())


def test_it_serves_among_silent_clients_and_such_that_speak_no_spice(
    server: Spicebridge, certificate: CertificateFiles, password_file: Path, short_tmp: Path
) -> None:
    address = served_uri(server).removeprefix("spice://")
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(DEFAULT_LIMITS.logins + 50):
            stack.enter_context(socket.create_connection((host, int(port))))
        for command in (
            ["openssl", "s_client", "-quiet", "-connect", address, "-CAfile", str(certificate.ca)],
            ["socat", "-", f"TCP:{address}"],
        ):
            subprocess.run(command, input=JUNK, capture_output=True, timeout=PATIENCE, check=False)
        is_served(server, certificate, password_file, short_tmp)
    lines = server.stderr().splitlines()
    assert all(line.isprintable() for line in lines)
    for told in ("had to go", "expected b'REDQ'", "the client's TLS"):
        assert any(told in line for line in lines), told


def test_a_wrong_password_costs_spice_gtk_a_moment_and_nobody_else_the_session(
    server: Spicebridge, certificate: CertificateFiles, password_file: Path, short_tmp: Path
) -> None:
    wrong = short_tmp / "wrong"
    wrong.write_text("sesame\n")
    uri = served_uri(server).replace("spice:", "spice+tls:")
    with pytest.raises(PeerError):
        glib_client.list_channels(
            uri, password_file=wrong, properties={"ca-file": str(certificate.ca)}
        )
    is_served(server, certificate, password_file, short_tmp)
    assert "the client's password is wrong" in server.stderr()
