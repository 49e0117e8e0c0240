"""Connection files as Proxmox VE hands them out, to a QEMU behind a proxy, as its nodes have it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spicebridge.errors import ConnectError
from tests.conftest import EXECUTABLE, PATIENCE
from tests.peers.certificates import CertificateFiles, proxmox
from tests.peers.proxies import Tinyproxy
from tests.peers.qemu import Qemu
from tests.peers.spiceproxy import TICKET, SpiceProxy
from tests.real.reach import Way, carry, channels, channels_of_glib, steps
from tests.real.tools import MIB, Start, list_rows, one_line

pytestmark = pytest.mark.real_peer

PASSWORD = "5d2f8a7b1c3e4f60"
NODE_PORT = 61000
"""What a file of Proxmox' says; its proxy knows the machine's own from the ticket."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return proxmox(tmp_path_factory.mktemp("pve"))


@pytest.fixture
def qemu(short_tmp: Path, certificate: CertificateFiles) -> Iterator[Qemu]:
    """As Proxmox VE starts it: TLS only, with a ticket."""
    with Qemu(short_tmp, tls=certificate, plain=False, password=PASSWORD) as running:
        yield running


def connection_file(
    path: Path, certificate: CertificateFiles, proxy: int, host: str, port: int
) -> Path:
    """Write one, with the keys that Proxmox VE writes."""
    authority = certificate.ca.read_text().replace("\n", "\\n")
    path.touch(mode=0o600)
    path.write_text(
        "[virt-viewer]\n"
        f"tls-port={port}\n"
        "release-cursor=Ctrl+Alt+R\n"
        f"host={host}\n"
        "type=spice\n"
        f"password={PASSWORD}\n"
        "title=VM 100 - guest\n"
        f"ca={authority}\n"
        "delete-this-file=1\n"
        f"host-subject={certificate.subject}\n"
        "secure-attention=Ctrl+Alt+Ins\n"
        f"proxy=http://127.0.0.1:{proxy}\n"
        "toggle-fullscreen=Shift+F11\n"
    )
    return path


def test_the_certificate_is_that_of_a_node(certificate: CertificateFiles) -> None:
    expected = "OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=node"
    assert certificate.subject == expected


@pytest.fixture
def spiceproxy(qemu: Qemu) -> Iterator[SpiceProxy]:
    with SpiceProxy(qemu.tls_port) as proxy:
        yield proxy
        assert not proxy.refused


def test_a_file_leads_through_the_proxy_that_takes_its_ticket(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles, spiceproxy: SpiceProxy
) -> None:
    file = short_tmp / "pve.vv"
    rows = list_rows(str(connection_file(file, certificate, spiceproxy.port, TICKET, NODE_PORT)))
    assert not file.exists()
    password_file = short_tmp / "password"
    password_file.write_text(PASSWORD)
    assert channels(rows) == channels_of_glib(
        f"spice://host?tls-port={NODE_PORT}",
        {
            "host": TICKET,
            "ca-file": str(certificate.ca),
            "cert-subject": certificate.subject,
            "proxy": f"http://127.0.0.1:{spiceproxy.port}",
        },
        password_file,
    )
    before = spiceproxy.connections()
    connection_file(file, certificate, spiceproxy.port, TICKET, NODE_PORT)
    running = carry(spicebridge, short_tmp, Way(str(file)))
    assert not file.exists()
    assert set(steps(running, "connecting to ")) == {f"127.0.0.1:{spiceproxy.port}"}
    assert spiceproxy.connections() - before == len(steps(running, "linking "))
    assert TICKET not in running.stderr()
    assert PASSWORD not in running.stderr()


def test_a_file_comes_from_stdin(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles, spiceproxy: SpiceProxy
) -> None:
    file = connection_file(short_tmp / "file", certificate, spiceproxy.port, TICKET, NODE_PORT)
    with file.open("rb") as stdin:
        done = subprocess.run(
            [EXECUTABLE, "list", "--json", "-"],
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stderr) == (0, "")
    carry(spicebridge, short_tmp, Way("-", stdin=file), MIB)
    assert file.exists()  # it is not ours to delete


def test_a_stale_ticket_is_told_as_that(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles, qemu: Qemu
) -> None:
    stale = TICKET.replace("65f1c5a1", "65f1c500")
    with SpiceProxy(qemu.tls_port) as proxy:
        file = connection_file(short_tmp / "pve.vv", certificate, proxy.port, stale, NODE_PORT)
        running = spicebridge("list", str(file), ready=False)
        assert running.wait() == ConnectError.exit_code
        assert proxy.refused == [stale]
    line = one_line(running)
    assert "401 invalid ticket" in line
    assert "get a new one" in line
    assert stale not in line


def test_a_file_leads_through_tinyproxy(
    spicebridge: Start, short_tmp: Path, certificate: CertificateFiles, qemu: Qemu
) -> None:
    with Tinyproxy(short_tmp) as proxy:
        file = short_tmp / "pve.vv"
        connection_file(file, certificate, proxy.port, "127.0.0.1", qemu.tls_port)
        running = carry(spicebridge, short_tmp, Way(str(file)))
        assert set(steps(running, "connecting to ")) == {f"127.0.0.1:{proxy.port}"}
        assert set(proxy.connections()) == {f"127.0.0.1:{qemu.tls_port}"}
