"""Live migration: what applications at a bridge notice of it, which is to be a pause at most."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from spicebridge.errors import TlsError
from tests.conftest import PATIENCE, Spicebridge
from tests.peers import glib_client, webdavd
from tests.peers.certificates import Authority, CertificateFiles
from tests.peers.guest import Guest
from tests.peers.migration import Migrating
from tests.peers.processes import wait_until
from tests.peers.usb_device import UsbDevice
from tests.real.tools import (
    JSON_LOG,
    MIB,
    Start,
    connection,
    sha256,
)
from tests.real.traffic import WINDOW, CountedEcho, echo

pytestmark = pytest.mark.real_peer

ECHO = "com.example.echo"
OTHER = "com.example.other"
CLOSED = "com.example.closed"
TIMES = 10

FETCHING = f"""
(until [ -e /tmp/enough ]; do curl -sSf {webdavd.URL}/file | sha256sum; done >/tmp/sums 2>&1
touch /tmp/fetched) >/dev/null 2>&1 &
"""
FETCHED = "touch /tmp/enough; until [ -e /tmp/fetched ]; do usleep 10000; done; cat /tmp/sums"

MakeMigrating = Callable[..., Migrating]


@pytest.fixture
def migrating(short_tmp: Path, peers: ExitStack) -> MakeMigrating:
    """Boots a guest that can migrate, with two ports that echo."""

    def make(
        *,
        seamless: bool = True,
        tls: CertificateFiles | None = None,
        ports: tuple[str, ...] = (ECHO, OTHER),
        webdav: bool = False,
        usbredir: bool = False,
    ) -> Migrating:
        def one(folder: Path, incoming: bool) -> Guest:
            return Guest(
                folder,
                *ports,
                tls=tls,
                echo=(ECHO, OTHER),
                webdav=webdav,
                usbredir=usbredir,
                incoming=incoming,
                extra=["-spice", f"seamless-migration={'on' if seamless else 'off'}"],
            )

        return peers.enter_context(Migrating(short_tmp, one))

    return make


def bridge(spicebridge: Start, uri: str, path: Path, *options: str) -> Spicebridge:
    return spicebridge(
        uri, "--custom-channel", f"port={ECHO},unixsocket={path}", *options, *JSON_LOG
    )


def test_the_reference_client_migrates(migrating: MakeMigrating, short_tmp: Path) -> None:
    """spice-client-glib loses nothing in this harness, so a loss is a client's own."""
    moving = migrating()
    data = os.urandom(16 * MIB)
    source, out = short_tmp / "in", short_tmp / "out"
    source.write_bytes(data)
    with glib_client.exchange(
        moving.guest.uri,
        ECHO,
        send=source,
        expect=len(data),
        out=out,
        window=WINDOW,
        all_channels=True,
    ) as client:
        client.wait_message(port=ECHO, opened=True)
        moving.migrate()
        client.wait_message(received=len(data), timeout=PATIENCE)
    assert sha256(out.read_bytes()) == sha256(data)


def test_seamless_ten_times_under_traffic(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    moving = migrating()
    path = short_tmp / "s"
    running = bridge(spicebridge, moving.guest.uri, path)
    with echo(path) as traffic:
        for _ in range(TIMES):
            traffic.wait_more()
            moving.migrate()
        traffic.wait_more()
    assert running.stop() == 0


def test_semi_seamless_ten_times_under_traffic(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    """The servers do not carry over what is under way, and an application is not left to guess.

    It sees end of file and connects again. Nothing comes twice.
    """
    moving = migrating(seamless=False)
    path = short_tmp / "s"
    running = bridge(spicebridge, moving.guest.uri, path)
    traffic: CountedEcho | None = None
    for times in range(TIMES + 1):
        with connection(path) as sock:
            first = traffic.next if traffic else 0
            traffic = CountedEcho(sock, traffic)
            traffic.wait_more()
            if times < TIMES:
                moving.migrate()
                traffic.wait_cut()
            else:
                traffic.end()
            assert traffic.seen >= first, "nothing that this connection sent came back"
    ways = 2
    assert traffic
    assert traffic.torn <= TIMES * ways
    assert running.stop() == 0


def test_semi_seamless_leaves_a_share_that_works(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    """Half a frame is lost: spice-webdavd has to see its host go and come, or it never recovers."""
    moving = migrating(seamless=False, ports=(ECHO, OTHER, webdavd.PORT), webdav=True)
    folder = short_tmp / "folder"
    folder.mkdir()
    data = os.urandom(24 * MIB)
    (folder / "file").write_bytes(data)
    spicebridge(moving.guest.uri, "--share", str(folder), *JSON_LOG)
    webdavd.Webdavd(moving.guest)
    moving.guest.run(
        f"curl -sSf -o /tmp/half {webdavd.URL}/file >/dev/null 2>&1 & "
        "until [ -s /tmp/half ]; do usleep 5000; done",
        timeout=PATIENCE,
    )
    moving.migrate()
    moving.guest.run(
        f"until curl -sSf --max-time 15 -o /tmp/whole {webdavd.URL}/file; do usleep 100000; done",
        timeout=PATIENCE,
    )
    assert moving.guest.run("sha256sum </tmp/whole").split()[0] == sha256(data)


def test_a_cancelled_migration_changes_nothing(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    moving = migrating()
    path = short_tmp / "s"
    running = bridge(spicebridge, moving.guest.uri, path)
    with echo(path) as traffic:
        for _ in range(3):
            traffic.wait_more()
            moving.cancel()
        traffic.wait_more()
        moving.migrate()
        traffic.wait_more()
    assert running.stop() == 0


def test_a_target_that_cannot_be_reached_and_a_cancelled_migration(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    """A second `client_migrate_info` cancels the first; its target has gone by then."""
    moving = migrating()
    path = short_tmp / "s"
    running = bridge(spicebridge, moving.guest.uri, path)
    with echo(path) as traffic:
        for _ in range(3):
            moving.prepare()
        traffic.wait_more()
        moving.migrate()
        traffic.wait_more()
    assert running.stop() == 0


def test_a_target_on_tls_with_the_subject_of_its_certificate(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    files = Authority(short_tmp).issue("elsewhere.example")
    moving = migrating(tls=files)
    path = short_tmp / "s"
    running = bridge(
        spicebridge,
        moving.guest.tls_uri,
        path,
        *("--ca-file", str(files.ca), "--host-subject", files.subject),
    )
    with echo(path) as traffic:
        for _ in range(2):
            traffic.wait_more()
            moving.migrate(cert_subject=files.subject)
        traffic.wait_more()
    assert running.stop() == 0


def test_a_target_with_the_wrong_subject_is_not_followed(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    files = Authority(short_tmp).issue()
    moving = migrating(tls=files)
    path = short_tmp / "s"
    running = bridge(spicebridge, moving.guest.tls_uri, path, "--ca-file", str(files.ca))
    moving.prepare(cert_subject="CN=somebody else")
    moving.move()
    assert running.wait() == TlsError.exit_code


def test_a_server_that_only_tells_where_the_guest_has_gone(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    """A client that comes when the migration has begun is told to switch hosts at its end."""
    moving = migrating()
    path = short_tmp / "s"
    moving.prepare()
    running = bridge(spicebridge, moving.guest.uri, path)
    moving.move()
    with echo(path) as traffic:
        traffic.wait_more()
    assert running.stop() == 0


def test_many_channels_at_once(
    migrating: MakeMigrating, spicebridge: Start, short_tmp: Path
) -> None:
    moving = migrating(ports=(ECHO, OTHER, CLOSED, webdavd.PORT), webdav=True, usbredir=True)
    folder = short_tmp / "folder"
    folder.mkdir()
    data = os.urandom(3 * MIB)
    (folder / "file").write_bytes(data)
    paths = {name: short_tmp / name for name in (ECHO, OTHER, CLOSED)}
    specs = [f"port={name},unixsocket={path}" for name, path in paths.items()]
    specs += [f"channelid=webdav,share={folder}"]
    specs += [f"channelid=usbredir,unixsocket={short_tmp / 'usb'}"]
    words = [word for spec in specs for word in ("--custom-channel", spec)]
    running = spicebridge(moving.guest.uri, *words, *JSON_LOG)
    webdavd.Webdavd(moving.guest)
    moving.guest.run(FETCHING)
    usb = socket.socket(socket.AF_UNIX)
    usb.connect(str(short_tmp / "usb"))
    with (
        UsbDevice(usb),
        connection(paths[CLOSED]) as closed,
        echo(paths[ECHO]) as one,
        echo(paths[OTHER]) as other,
    ):
        closed.sendall(b"early\n")
        for _ in range(3):
            one.wait_more()
            other.wait_more()
            wait_until(lambda: "12 Mb/s" in moving.guest.hmp("info usb"), what="no USB device")
            moving.migrate()
        one.wait_more()
        other.wait_more()
        assert "12 Mb/s" in moving.guest.hmp("info usb")
        assert moving.guest.run(f"head -n 1 /dev/virtio-ports/{CLOSED}") == "early\n"
        assert closed.recv(1) == b""  # head has closed it
    sums = moving.guest.run(FETCHED, timeout=PATIENCE).split()
    assert len(sums) > 1
    assert set(sums) == {sha256(data), "-"}
    assert running.stop() == 0
