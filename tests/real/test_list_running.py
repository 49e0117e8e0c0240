"""`spicebridge list` beside a running bridge: QEMU serves one client, and that is the bridge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.peers.libspice import SpiceEndpoint
from tests.peers.qemu import HMP_PORT, QMP_PORT, Qemu
from tests.peers.qmp_client import QmpClient
from tests.real.tools import (
    JSON_LOG,
    Start,
    connection,
    events,
    list_rows,
    listing,
    receive,
    wait_event,
)

pytestmark = pytest.mark.real_peer


def ports(uri: str) -> dict[str, dict[str, Any]]:
    """The rows of `list` by the names of ports."""
    return {row["port"]: row for row in list_rows(uri) if row["port"]}


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_bridge_of_qemu_survives_being_listed(
    spicebridge: Start, short_tmp: Path, unix: bool
) -> None:
    path = short_tmp / "s"
    with Qemu(short_tmp, unix=unix) as qemu:
        running = spicebridge(
            qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}", *JSON_LOG
        )

        def list_twice(moved: Callable[[int], bool]) -> None:
            for _ in range(2):
                rows = ports(qemu.uri)
                assert set(rows) == {HMP_PORT, QMP_PORT}
                for row in rows.values():
                    assert (row["open"], row["busy"]) == (True, False)
                assert rows[HMP_PORT]["bridge"] is None
                bridge = rows[QMP_PORT]["bridge"]
                assert (bridge["pid"], bridge["streams"]) == (running.process.pid, None)
                assert moved(bridge["down"])

        list_twice(lambda down: down == 0)  # while nobody has the port linked
        with connection(path) as sock, QmpClient(sock) as client:
            wait_event(running, "linked")
            list_twice(lambda down: down > 0)
            assert client.execute("query-status")["status"] == "prelaunch"
            head, *lines = listing(qemu.uri).splitlines()
            assert head.split() == ["TYPE", "ID", "PORT", "OPEN", "BYTES"]
            assert sum("bytes" in line or "kB" in line for line in lines) == 1
        wait_event(running, "app-gone")
        assert len(events(running, "linked")) == 1
        with connection(path) as sock, QmpClient(sock) as client:
            assert client.execute("query-status")["status"] == "prelaunch"
        assert running.stop() == 0


def test_list_tells_what_the_guests_of_libspice_did_since(
    spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    with SpiceEndpoint("echo:ours", "echo:other", closed=["ours", "other"]) as endpoint:
        spec = f"port=ours,unixsocket={path},on-close=keep"
        running = spicebridge(endpoint.uri, "--custom-channel", spec, *JSON_LOG)
        assert {name: row["open"] for name, row in ports(endpoint.uri).items()} == {
            "ours": False,
            "other": False,
        }
        with connection(path) as sock:
            wait_event(running, "linked")
            for name in ("ours", "other"):
                endpoint.event(name, "opened")
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
            rows = ports(endpoint.uri)
            assert {name: row["open"] for name, row in rows.items()} == {
                "ours": True,
                "other": True,
            }
            assert (rows["ours"]["bridge"]["up"], rows["ours"]["bridge"]["down"]) == (1, 1)
            sock.sendall(b"y")
            assert receive(sock, 1) == b"y"
        assert running.stop() == 0
