"""QEMU serves one client: another one takes the session over, which must not go on for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spicebridge.errors import SessionLostError, TakeoverError
from tests.conftest import PATIENCE, Spicebridge
from tests.peers import glib_client
from tests.peers.processes import wait_until
from tests.peers.qemu import QMP_PORT, Qemu
from tests.peers.qmp_client import QmpClient
from tests.real.tools import (
    JSON_LOG,
    Start,
    connection,
    events,
    one_line,
    receive_to_end,
    wait_event,
)

pytestmark = pytest.mark.real_peer


@pytest.fixture
def qemu(short_tmp: Path) -> Iterator[Qemu]:
    with Qemu(short_tmp) as running:
        yield running


def bridge(spicebridge: Start, uri: str, path: Path, *options: str) -> Spicebridge:
    return spicebridge(uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}", *options)


def assert_answers(path: Path) -> None:
    with connection(path) as sock, QmpClient(sock) as client:
        assert client.execute("query-status")["status"] == "prelaunch"


def test_a_viewer_ends_the_session_with_8(qemu: Qemu, spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "s"
    running = bridge(spicebridge, qemu.uri, path, "-q")
    with connection(path) as sock, QmpClient(sock) as client:
        client.execute("query-status")
        assert glib_client.list_channels(qemu.uri)
        receive_to_end(sock)
    assert running.wait() == SessionLostError.exit_code
    assert one_line(running)


def test_it_comes_back_when_a_viewer_has_been_there(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = bridge(spicebridge, qemu.uri, path, "--reconnect=1", *JSON_LOG)
    with connection(path) as sock, QmpClient(sock) as client:
        client.execute("query-status")
        glib_client.list_channels(qemu.uri)
        receive_to_end(sock)
    assert_answers(path)
    assert not events(running, "takeover")
    assert running.stop() == 0


def test_two_that_come_back_do_not_throw_each_other_out_for_ever(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    paths = [short_tmp / "0", short_tmp / "1"]
    both = [bridge(spicebridge, qemu.uri, path, "--reconnect=1", *JSON_LOG) for path in paths]
    wait_until(
        lambda: any(running.process.poll() is not None for running in both),
        what="neither gives up",
        timeout=PATIENCE,
    )
    loser = [running.process.poll() is not None for running in both].index(True)
    assert both[loser].wait() == TakeoverError.exit_code
    (told,) = events(both[loser], "takeover")  # the first may be chance, the last is the error
    assert told["level"] == "warning"
    assert not paths[loser].exists()
    assert_answers(paths[1 - loser])
    assert both[1 - loser].stop() == 0


def test_the_limit_is_what_was_asked_for(qemu: Qemu, spicebridge: Start, short_tmp: Path) -> None:
    running = bridge(
        spicebridge,
        qemu.uri,
        short_tmp / "s",
        *("--reconnect=1", "--takeover-limit=1", "-q"),
    )
    glib_client.list_channels(qemu.uri)
    assert running.wait() == TakeoverError.exit_code
    assert "another client" in one_line(running)


def test_a_server_that_restarts_is_no_takeover(spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "s"
    with Qemu(short_tmp, unix=True) as qemu:
        running = bridge(spicebridge, qemu.uri, path, "--reconnect=0.3", *JSON_LOG)
        assert_answers(path)
    for times in range(1, 5):  # more often than the limit
        wait_event(running, "away", count=times)
        with Qemu(short_tmp, unix=True):
            assert_answers(path)
    assert not events(running, "takeover")
    assert running.stop() == 0
