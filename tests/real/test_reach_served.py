"""`spicebridge serve` with TLS and a ticket, or a Unix socket: spice-client-glib and we come in."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from spicebridge.errors import LoginError, TlsError
from tests.conftest import PATIENCE, Spicebridge
from tests.peers import glib_client
from tests.peers.certificates import Authority, CertificateFiles
from tests.real.reach import SIZE, steps
from tests.real.tools import (
    JSON_LOG,
    Start,
    connection,
    exchange,
    list_rows,
    one_line,
    served_uri,
    sha256,
    wait_event,
)

pytestmark = pytest.mark.real_peer

PORT = "com.example.echo"
PASSWORD = "open, sesame"
WINDOW = 128 * 1024
"""Bytes that a Unix socket takes, whoever reads it or not (net.core.wmem_default is 208 KiB)."""


@pytest.fixture
def certificate(short_tmp: Path) -> CertificateFiles:
    return Authority(short_tmp).issue()


@pytest.fixture
def password_file(short_tmp: Path) -> Path:
    file = short_tmp / "password"
    file.write_text(f"{PASSWORD}\n")
    return file


@pytest.fixture
def endpoint(spicebridge: Start, certificate: CertificateFiles, password_file: Path) -> Spicebridge:
    """One that speaks TLS and wants a ticket."""
    return spicebridge(
        *("serve", "--listen", "127.0.0.1:0", "--password-file", str(password_file)),
        *("--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key)),
        *("--custom-channel", f"port={PORT},exec=cat", *JSON_LOG),
    )


def tls_uri(endpoint: Spicebridge) -> str:
    return served_uri(endpoint).replace("spice:", "spice+tls:")


def moved_by_glib(folder: Path, uri: str, **login: Any) -> None:
    """Have spice-client-glib move bytes through the echo."""
    data = os.urandom(SIZE)
    source, out = folder / "in", folder / "out"
    source.write_bytes(data)
    options = {"send": source, "expect": SIZE, "out": out, "window": WINDOW, **login}
    with glib_client.exchange(uri, PORT, **options) as client:
        client.wait_message(received=SIZE, timeout=PATIENCE)
        assert sha256(out.read_bytes()) == sha256(data)


def moved_by_us(spicebridge: Start, folder: Path, uri: str, *options: str) -> Spicebridge:
    """Move bytes through the echo ourselves."""
    path = folder / "s"
    spec = f"port={PORT},unixsocket={path}"
    running = spicebridge(uri, "--custom-channel", spec, *options, "-v", *JSON_LOG)
    data = os.urandom(SIZE)
    with connection(path) as sock:
        assert sha256(exchange(sock, data, SIZE)) == sha256(data)
    record = wait_event(running, "unlinked")
    assert (record["up"], record["down"]) == (SIZE, SIZE)
    assert running.stop() == 0
    return running


def test_spice_client_glib_comes_in_with_tls_and_a_ticket(
    endpoint: Spicebridge, certificate: CertificateFiles, password_file: Path, short_tmp: Path
) -> None:
    moved_by_glib(
        short_tmp,
        tls_uri(endpoint),
        password_file=password_file,
        properties={"ca-file": str(certificate.ca)},
    )
    record = wait_event(endpoint, "app-gone")
    assert (record["up"], record["down"]) == (SIZE, SIZE)
    assert endpoint.stop() == 0


def test_we_come_in_with_tls_and_a_ticket(
    spicebridge: Start,
    endpoint: Spicebridge,
    certificate: CertificateFiles,
    password_file: Path,
    short_tmp: Path,
) -> None:
    options = "--ca-file", str(certificate.ca), "--password-file", str(password_file)
    assert [row["port"] for row in list_rows(tls_uri(endpoint), *options)] == [PORT]
    running = moved_by_us(spicebridge, short_tmp, tls_uri(endpoint), *options)
    assert len(steps(running, "starting TLS with ")) == len(steps(running, "linking "))
    assert endpoint.stop() == 0


def test_a_client_without_the_authority_or_the_ticket_stays_outside(
    spicebridge: Start, endpoint: Spicebridge, certificate: CertificateFiles
) -> None:
    stranger = spicebridge("list", tls_uri(endpoint), ready=False)
    assert stranger.wait() == TlsError.exit_code
    assert "--ca-file" in one_line(stranger)
    trusting = "list", tls_uri(endpoint), "--ca-file", str(certificate.ca)
    for env in ({}, {"SPICEBRIDGE_PASSWORD": "wrong"}):
        locked_out = spicebridge(*trusting, ready=False, env=env)
        assert locked_out.wait() == LoginError.exit_code
        assert one_line(locked_out)


def test_a_unix_socket_that_a_group_may_use(spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "spice"
    endpoint = spicebridge(
        *("serve", "--listen", f"unix:{path}", "--perm", "0660"),
        *("--custom-channel", f"port={PORT},exec=cat", *JSON_LOG),
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    uri = served_uri(endpoint)
    assert uri == f"spice+unix://{path}"
    moved_by_glib(short_tmp, uri)
    wait_event(endpoint, "app-gone")
    moved_by_us(spicebridge, short_tmp, uri)
    assert endpoint.stop() == 0
    assert not path.exists()
