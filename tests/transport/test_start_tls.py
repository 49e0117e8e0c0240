"""Whom we believe on TLS: each reason to refuse a server, and what is said of it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from spicebridge.errors import ConnectError, TlsError, UsageError
from spicebridge.server.tls import server_context
from spicebridge.transport.start_tls import start_tls
from spicebridge.transport.target import Trust
from spicebridge.transport.tls import TlsWire
from spicebridge.transport.trust import tls_context
from tests.conftest import PATIENCE
from tests.peers.certificates import Authority, CertificateFiles, proxmox, self_signed
from tests.transport.pairs import connected
from tests.transport.tls_tools import server_side

HOST = "127.0.0.1"
OTHER_PIN = "sha256//" + "A" * 43 + "="


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def good(folder: Path) -> CertificateFiles:
    return Authority(folder).issue()


async def started(
    server: ssl.SSLContext, trust: Trust, host: str = HOST, timeout: float = PATIENCE
) -> TlsWire:
    """Starts TLS with a server of the standard library, which then goes; the wire is closed."""
    return await meeting(lambda sock: _shake(server, sock), trust, host, timeout)


def _shake(server: ssl.SSLContext, sock: socket.socket) -> None:
    try:
        server.wrap_socket(sock, server_side=True).close()
    except OSError:  # the client does not believe us, and says so
        sock.close()


async def meeting(
    peer: Callable[[socket.socket], None], trust: Trust, host: str = HOST, timeout: float = PATIENCE
) -> TlsWire:
    with connected() as (stream, theirs):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, peer, theirs)
            try:
                context = tls_context(trust)
                return await start_tls(stream, context, host, "the server", timeout, trust)
            finally:
                stream.close()
    raise AssertionError  # a task group lets no error pass


def trusting(files: CertificateFiles) -> Trust:
    return Trust(ca_file=str(files.ca))


async def refused(server: CertificateFiles, trust: Trust, host: str = HOST) -> str:
    with pytest.raises(ExceptionGroup) as caught:
        await started(server_side(server), trust, host)
    (error,) = caught.value.exceptions
    assert isinstance(error, TlsError)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "spice.test", "::1%lo"])
async def test_a_name_in_the_certificate_is_believed(good: CertificateFiles, host: str) -> None:
    wire = await started(server_side(good), trusting(good), host)
    assert wire.tls.version() == "TLSv1.3"


async def test_the_authority_may_come_as_text(good: CertificateFiles) -> None:
    await started(server_side(good), Trust(ca=good.ca.read_text()))


async def test_a_self_signed_certificate_may_be_its_own_authority(folder: Path) -> None:
    files = self_signed(folder)
    await started(server_side(files), trusting(files))


async def test_the_truststore_of_spicy_is_read(
    good: CertificateFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / ".spicec/spice_truststore.pem"
    store.parent.mkdir()
    store.write_bytes(good.ca.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    await started(server_side(good), Trust())


async def test_without_one_the_system_is_asked(
    good: CertificateFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(good.ca))
    await started(server_side(good), Trust())


async def test_another_name(good: CertificateFiles) -> None:
    text = await refused(good, trusting(good), "other.test")
    assert "Hostname mismatch, certificate is not valid for 'other.test'" in text
    assert "--host-subject" in text


async def test_another_address(good: CertificateFiles) -> None:
    assert "not valid for '127.0.0.2'" in await refused(good, trusting(good), "127.0.0.2")


async def test_an_unknown_authority(good: CertificateFiles, folder: Path) -> None:
    text = await refused(Authority(folder).issue(), trusting(good))
    assert text == (
        "TLS with the server: unable to get local issuer certificate; "
        "name the authority that signed its certificate with --ca-file"
    )


async def test_a_self_signed_certificate(good: CertificateFiles, folder: Path) -> None:
    assert "self-signed certificate" in await refused(self_signed(folder), trusting(good))


async def test_an_expired_certificate(folder: Path) -> None:
    files = Authority(folder).issue(expired=True)
    text = await refused(files, trusting(files))
    assert "certificate has expired; renew the server's certificate" in text


# The subject


async def test_a_subject_stands_for_the_name(folder: Path) -> None:
    """Proxmox: the host is a ticket, and the certificate is for the node."""
    files = proxmox(folder)
    subject = "OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=node"
    trust = replace(trusting(files), host_subject=subject)
    await started(server_side(files), trust, "pvespiceproxy:65f1c5a1:100:node::" + "0" * 40)


async def test_another_subject(folder: Path) -> None:
    files = proxmox(folder)
    trust = replace(trusting(files), host_subject="CN=node")
    text = await refused(files, trust)
    assert "OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=node, not for CN=node" in text


async def test_a_subject_does_not_stand_for_the_authority(
    good: CertificateFiles, folder: Path
) -> None:
    files = proxmox(folder)
    trust = replace(trusting(good), host_subject=files.subject)
    assert "unable to get local issuer" in await refused(files, trust)


async def test_a_ticket_for_a_host_asks_for_a_subject(good: CertificateFiles) -> None:
    text = await refused(good, trusting(good), "pvespiceproxy:65f1c5a1:100:node::0")
    assert "is no name that a certificate could have; give its --host-subject" in text


# The pinned key


async def test_a_pinned_key_stands_for_everything(folder: Path) -> None:
    files = self_signed(folder, "nobody.test")
    await started(server_side(files), Trust(pinned_key=files.pin))


async def test_another_key(good: CertificateFiles) -> None:
    text = await refused(good, replace(trusting(good), pinned_key=OTHER_PIN))
    assert good.pin in text
    assert "not the pinned one" in text


async def test_insecure_believes_everybody(folder: Path) -> None:
    files = Authority(folder).issue("nobody.test", expired=True)
    await started(server_side(files), Trust(insecure=True, host_subject="CN=x"))


# Versions and ciphers


async def test_no_version_before_1_2(good: CertificateFiles) -> None:
    server = server_side(good)
    with pytest.deprecated_call():
        server.minimum_version = ssl.TLSVersion.TLSv1
        server.maximum_version = ssl.TLSVersion.TLSv1_1
    server.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ExceptionGroup) as caught:
        await started(server, trusting(good))
    assert "protocol version" in str(caught.value.exceptions[0])


async def test_ciphers_are_those_asked_for(good: CertificateFiles) -> None:
    server = server_side(good)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    trust = replace(trusting(good), ciphers="ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-SHA384")
    wire = await started(server, trust)
    assert "AES256" in (wire.tls.cipher() or [""])[0]


# Peers that speak something else


async def test_a_peer_that_speaks_spice(good: CertificateFiles) -> None:
    def peer(sock: socket.socket) -> None:
        with sock:
            sock.recv(1)
            sock.sendall(b"REDQ" + bytes(200))
            while sock.recv(1 << 16):
                pass

    with pytest.raises(ExceptionGroup) as caught:
        await meeting(peer, trusting(good))
    assert "is that its TLS port?" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("read_first", [True, False], ids=["end", "reset"])
async def test_a_peer_that_goes(good: CertificateFiles, read_first: bool) -> None:
    def peer(sock: socket.socket) -> None:
        with sock:
            sock.recv(1 << 16 if read_first else 1)

    with pytest.raises(ExceptionGroup) as caught:
        await meeting(peer, trusting(good))
    assert str(caught.value.exceptions[0]) == (
        "TLS with the server: the server closed the connection; is that its TLS port?"
    )


async def test_a_peer_that_is_silent(good: CertificateFiles) -> None:
    def peer(sock: socket.socket) -> None:
        with sock:
            while sock.recv(1 << 16):
                pass

    with pytest.raises(ExceptionGroup) as caught:
        await meeting(peer, trusting(good), timeout=0.05)
    (error,) = caught.value.exceptions
    assert isinstance(error, ConnectError)
    assert "starting TLS with the server: no answer within 0.05 seconds" in str(error)


# What cannot be used is refused before anybody is asked


@pytest.mark.parametrize(
    ("trust", "message"),
    [
        (Trust(ca_file="/nowhere"), "--ca-file /nowhere: No such file"),
        (Trust(ca="rubbish"), "the connection file's ca: it holds no certificates in PEM"),
        (Trust(ciphers="ROT13"), "TLS ciphers 'ROT13': OpenSSL knows none of them"),
        (Trust(pinned_key="md5//abc"), "'md5//abc' is no pinned key"),
        (Trust(pinned_key="sha256//abc="), "'sha256//abc=' is no pinned key"),
        (Trust(pinned_key="sha256//!"), "is no pinned key"),
        (Trust(pinned_key="sha256//é"), "is no pinned key"),
        (Trust(host_subject="node"), "node"),
    ],
)
def test_trust_that_cannot_be(trust: Trust, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tls_context(trust)


def test_an_authority_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(b"\x00\xff")
    with pytest.raises(UsageError, match="it holds no certificates"):
        tls_context(Trust(ca_file=str(file)))


def test_a_certificate_that_cannot_be_served(good: CertificateFiles, tmp_path: Path) -> None:
    server_context(good.cert, good.key)
    both = tmp_path / "both.pem"
    both.write_bytes(good.key.read_bytes() + good.cert.read_bytes())
    server_context(both, None)
    with pytest.raises(UsageError, match="No such file"):
        server_context(tmp_path / "none", good.key)
    with pytest.raises(UsageError, match="No such file"):
        server_context(good.cert, tmp_path / "none")
    with pytest.raises(UsageError, match="no certificate and its key"):
        server_context(good.cert, None)
    with pytest.raises(UsageError, match="no certificate and its key"):
        server_context(good.key, good.cert)
