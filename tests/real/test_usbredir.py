"""A USB device of ours in QEMU, through a usbredir channel."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.peers.processes import wait_until
from tests.peers.qemu import QMP_PORT, Qemu
from tests.peers.qmp_client import QmpClient
from tests.peers.usb_device import UsbDevice
from tests.real.tools import JSON_LOG, Start, connection, receive, wait_event

pytestmark = pytest.mark.real_peer

HELLO = struct.Struct("<III64s")


@pytest.fixture(params=["tcp", "unix"])
def qemu(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[Qemu]:
    with Qemu(short_tmp, unix=request.param == "unix", usbredir=True, run=True) as running:
        yield running
        assert running.qmp("query-status")["status"] == "running"


def connected(path: Path) -> socket.socket:
    """A connection to a Unix socket, which whoever gets it closes."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def wait_usb(qemu: Qemu, *parts: str) -> None:
    wait_until(
        lambda: all(part in qemu.hmp("info usb") for part in parts),
        what=f"info usb does not show {parts}: {qemu.hmp('info usb')!r}",
        timeout=PATIENCE,
    )


def wait_no_usb(qemu: Qemu) -> None:
    wait_until(
        lambda: "12 Mb/s" not in qemu.hmp("info usb"),
        what="info usb still shows the device",
        timeout=PATIENCE,
    )


def test_the_hello_arrives_on_our_socket(qemu: Qemu, spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "usb"
    spicebridge(qemu.uri, "--custom-channel", f"channelid=usbredir,unixsocket={path}")
    with connection(path) as sock:
        kind, length, number, version = HELLO.unpack(receive(sock, HELLO.size))
        assert (kind, number) == (0, 0)
        assert version.startswith(b"qemu usb-redir guest")
        assert len(receive(sock, length - 64)) % 4 == 0  # capabilities, in words


def test_a_device_that_answers_is_shown_by_info_usb(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "usb"
    running = spicebridge(
        qemu.uri, "--custom-channel", f"channelid=usbredir,unixsocket={path}", *JSON_LOG
    )
    assert "12 Mb/s" not in qemu.hmp("info usb")
    for times in (1, 2, 3):  # plugged in and pulled out
        with UsbDevice(connected(path)) as device:
            wait_usb(qemu, "12 Mb/s", "USB Redirection")
            assert device.peer_version.startswith("qemu usb-redir guest")
        wait_event(running, "app-gone", count=times)
        wait_no_usb(qemu)
    assert running.stop() == 0


def test_the_device_may_be_the_one_that_listens(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    """As usbredirserver does; here over TCP."""
    with socket.create_server(
        (f"127.79.{os.getpid() >> 8 & 255}.{os.getpid() & 255}", 0)
    ) as server:
        server.settimeout(PATIENCE)
        host, port = server.getsockname()
        running = spicebridge(
            qemu.uri, "--custom-channel", f"channelid=usbredir,tcp={host}:{port},mode=connect"
        )
        with UsbDevice(server.accept()[0]):
            wait_usb(qemu, "12 Mb/s")
        assert running.wait() == 0
    wait_no_usb(qemu)


def test_the_device_and_a_monitor_in_one_process(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    usb, monitor = short_tmp / "usb", short_tmp / "qmp"
    running = spicebridge(
        qemu.uri,
        "--custom-channel",
        f"channelid=usbredir,instance=0,unixsocket={usb}",
        "--custom-channel",
        f"port={QMP_PORT},unixsocket={monitor}",
    )
    with UsbDevice(connected(usb)), QmpClient(connected(monitor)) as client:
        wait_until(lambda: "12 Mb/s" in client.hmp("info usb"), what="the device does not appear")
    assert running.stop() == 0
    wait_no_usb(qemu)
