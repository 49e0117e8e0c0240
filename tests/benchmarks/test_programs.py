"""Each program of the benchmark does what it says: all bytes arrive, and a bridge stays flat."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from tests.benchmarks.programs import (
    Application,
    GlibBridge,
    PlainServer,
    Socat,
    Spicebridge,
    application,
    cpu_seconds,
    versions,
)
from tests.peers.certificates import Authority
from tests.peers.libspice import SpiceEndpoint, listen, poured
from tests.peers.processes import Process, peak_rss_kib, rss_kib, wait_until

pytestmark = pytest.mark.real_peer

MIB = 1 << 20
SIZE = 8 * MIB + 7
PORT = "com.example.port"
STALL = 0.5  # seconds

Bridge = Callable[[SpiceEndpoint, Path], AbstractContextManager[Process]]

WORKS = [
    (("pour", SIZE), ("take", SIZE)),
    (("pour", SIZE // 64, 64), ("take", SIZE // 64)),
    (("swallow", SIZE), ("give", SIZE, 64 * 1024)),
    (("swallow", SIZE // 64), ("give", SIZE // 64, 64)),
    (("both", SIZE), ("both", SIZE)),
    (("echo",), ("ping", 1, 100, 10)),
    (("echo",), ("ping", 64 * 1024, 100, 10)),
]


def ours(endpoint: SpiceEndpoint, path: Path) -> Process:
    return Spicebridge(endpoint.uri, f"unixsocket={path},port={PORT}")


def theirs(endpoint: SpiceEndpoint, path: Path) -> Process:
    return GlibBridge(endpoint.uri, PORT, path)


@pytest.mark.parametrize(("serve", "work"), WORKS)
def test_the_application_and_the_plain_server_agree(
    short_tmp: Path, serve: tuple[object, ...], work: tuple[object, ...]
) -> None:
    path = short_tmp / "s"
    with PlainServer(*serve, unix=path):
        results = [application(f"unix:{path}", *work) for _ in range(2)]
    assert all(result["seconds"] > 0 for result in results)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_socat_relays(short_tmp: Path, kind: str) -> None:
    path = short_tmp / "s"
    unix = short_tmp / "server" if kind == "unix" else None
    with PlainServer("echo", unix=unix) as server, Socat(path, server.address, 1 << 16):
        result = application(f"unix:{path}", "ping", 1000, 100, 10)
    assert 0 < result["median"] <= result["p99"] < result["seconds"] * 1e6


@pytest.mark.parametrize(("bridge", "kind"), [(ours, "tcp"), (theirs, "tcp"), (theirs, "unix")])
def test_a_bridge_carries_all_bytes(short_tmp: Path, bridge: Bridge, kind: str) -> None:
    works = {
        "pour": ("take", SIZE),
        "count": ("give", SIZE, 64),
        "both": ("both", SIZE),
        "echo": ("ping", 1000, 100, 10),
    }
    sent = {"pour": SIZE, "count": 1, "both": SIZE + 1, "echo": 110_000}
    received = {"pour": 0, "count": SIZE, "both": SIZE, "echo": 110_000}
    path = short_tmp / "s"
    for guest, work in works.items():
        unix = short_tmp / f"spice-{guest}" if kind == "unix" else None
        server = SpiceEndpoint(f"{guest}:{PORT}", unix=unix, pour=SIZE, digest=False)
        with server as endpoint, bridge(endpoint, path):
            result = application(f"unix:{path}", *work)
            stats = endpoint.stats(PORT)
        path.unlink(missing_ok=True)
        assert result["seconds"] > 0
        assert (stats["sent"], stats["received"]) == (sent[guest], received[guest])
        assert stats["sha256"] == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("message", [None, 64])
def test_the_glib_bridge_keeps_the_order_for_a_slow_application(
    short_tmp: Path, message: int | None
) -> None:
    path = short_tmp / "s"
    left = size = MIB if message else SIZE
    whole = hashlib.sha256()
    with (
        SpiceEndpoint(f"pour:{PORT}", pour=size, message=message) as endpoint,
        theirs(endpoint, path),
        closing(socket.socket(socket.AF_UNIX)) as sock,
    ):
        sock.connect(str(path))
        while left:
            data = sock.recv(min(left, 100_000))
            left -= len(data)
            whole.update(data)
            time.sleep(0.001)
    assert whole.hexdigest() == poured(size)


def test_the_glib_bridge_has_one_application_after_the_other(short_tmp: Path) -> None:
    path = short_tmp / "s"
    with SpiceEndpoint(f"echo:{PORT}", "echo:another") as endpoint, theirs(endpoint, path):
        for _ in range(3):
            application(f"unix:{path}", "ping", 1000, 10, 0)


def test_the_glib_bridge_sends_what_an_application_has_left_behind(short_tmp: Path) -> None:
    path = short_tmp / "s"
    with SpiceEndpoint(f"swallow:{PORT}") as endpoint, theirs(endpoint, path):
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(str(path))
            sock.sendall(bytes(SIZE))
        wait_until(lambda: endpoint.stats(PORT)["received"] == SIZE, what="not all came")


def test_the_glib_bridge_stays_flat_and_lives_while_the_application_stalls(
    short_tmp: Path,
) -> None:
    path = short_tmp / "s"
    with (
        SpiceEndpoint(f"pour:{PORT}", pour=1 << 30) as endpoint,
        theirs(endpoint, path) as bridge,
        Application(f"unix:{path}", "stall") as stalled,
    ):
        stalled.result()
        before = rss_kib(bridge.pid)
        used = cpu_seconds(bridge.pid)
        time.sleep(STALL)
        assert peak_rss_kib(bridge.pid) - before < 1024
        assert cpu_seconds(bridge.pid) - used < STALL / 10
        assert endpoint.stats(PORT)["sent"] < 16 * MIB


def test_the_glib_bridge_speaks_tls(short_tmp: Path) -> None:
    path = short_tmp / "s"
    files = Authority(short_tmp).issue()
    with (
        SpiceEndpoint(f"both:{PORT}", pour=SIZE, tls=files) as endpoint,
        GlibBridge(endpoint.tls_uri, PORT, path, ca=files.ca),
    ):
        application(f"unix:{path}", "both", SIZE)


@pytest.mark.parametrize("end", [True, False])
def test_a_guest_of_many_streams(short_tmp: Path, end: bool) -> None:
    path = short_tmp / "s"
    name, streams = "org.spice-space.webdav.0", 20
    server = SpiceEndpoint(
        f"mux:{name}", pour=SIZE, streams=streams, frame=10_007, end_streams=end, digest=False
    )
    work = ["collect", SIZE, streams, *(["eof"] if end else [])]
    with (
        server as endpoint,
        listen(path) as listener,
        Application(f"accept:{listener.fileno()}", *work) as collector,
        Spicebridge(endpoint.uri, f"channelid=webdav,unixsocket={path},mode=connect"),
    ):
        assert collector.result()["connections"] == streams


def test_versions() -> None:
    assert all(versions().values())
