"""A server that is killed in the middle of 256 MiB or out of reach, and what comes after it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.peers.faulty_relay import Fault, FaultyRelay
from tests.peers.held_port import HeldPort
from tests.peers.libspice import SpiceEndpoint, poured
from tests.peers.processes import wait_until
from tests.peers.qemu import QMP_PORT, Qemu
from tests.peers.qmp_client import QmpClient
from tests.real.faults import Noise, send_and_stay, send_noise
from tests.real.tools import (
    MIB,
    Start,
    Task,
    connection,
    exchange,
    one_line,
    receive,
    receive_to_end,
)

pytestmark = pytest.mark.real_peer

NAME = "com.example.port"
SIZE = 256 * MIB
MIDST = 64 * MIB
RECONNECT = "--reconnect=1", "--takeover-limit=0"
"""Sessions end soon and without a word here, as if others had taken them."""

when = pytest.mark.parametrize("early", [False, True], ids=["comes later", "waits meanwhile"])


@pytest.fixture
def port() -> Iterator[HeldPort]:
    """Where one server after another listens."""
    with HeldPort() as held:
        yield held


@pytest.fixture
def path(short_tmp: Path) -> Path:
    """Where applications connect."""
    return short_tmp / "s"


def bridge(path: Path, at: HeldPort | FaultyRelay, channel: str = "channelid=port") -> list[str]:
    """The command line of a bridge."""
    uri = at.uri if isinstance(at, FaultyRelay) else f"spice://127.0.0.1:{at.number}"
    return [uri, "-q", "--custom-channel", f"{channel},unixsocket={path}"]


def pouring(port: HeldPort) -> SpiceEndpoint:
    return SpiceEndpoint(f"pour:{NAME}", pour=SIZE, port=port)


def swallowing(port: HeldPort) -> SpiceEndpoint:
    return SpiceEndpoint(f"swallow:{NAME}", port=port)


def kill_while_it_pours(endpoint: SpiceEndpoint, path: Path) -> None:
    """The application reads what the server had sent, and end of file behind it."""
    with connection(path) as sock:
        noise = Noise(sock)
        assert noise.receive(MIDST).size == MIDST
        endpoint.popen.kill()
        got = noise.receive(SIZE)
    assert MIDST <= got.size < SIZE
    assert got.digest == poured(got.size)


def kill_while_it_swallows(endpoint: SpiceEndpoint, path: Path) -> None:
    """The application is told."""
    with connection(path) as sock:
        sending = Task(lambda: send_and_stay(sock, SIZE))
        wait_until(
            lambda: endpoint.stats(NAME)["received"] >= MIDST,
            what="the guest does not get a quarter",
            timeout=PATIENCE,
        )
        endpoint.popen.kill()
        sending.result()


def check_swallowed(endpoint: SpiceEndpoint) -> None:
    """The guest has got all."""
    state = endpoint.wait_state(NAME, False, timeout=PATIENCE)
    assert (state["received"], state["sha256"]) == (SIZE, poured(SIZE))


def test_a_server_killed_while_it_pours_ends_the_bridge(
    spicebridge: Start, path: Path, port: HeldPort
) -> None:
    with pouring(port) as endpoint:
        running = spicebridge(*bridge(path, port))
        kill_while_it_pours(endpoint, path)
        assert running.wait() == 8
    assert one_line(running)
    assert not path.exists()
    with pouring(port):
        spicebridge(*bridge(path, port))
        with connection(path) as sock:
            assert Noise(sock).receive(SIZE).digest == poured(SIZE)


def test_a_server_killed_while_it_swallows_ends_the_bridge(
    spicebridge: Start, path: Path, port: HeldPort
) -> None:
    with swallowing(port) as endpoint:
        running = spicebridge(*bridge(path, port))
        kill_while_it_swallows(endpoint, path)
        assert running.wait() == 8
    assert one_line(running)
    assert not path.exists()
    with swallowing(port) as endpoint:
        spicebridge(*bridge(path, port))
        with connection(path) as sock:
            send_noise(sock, SIZE)
        check_swallowed(endpoint)


# With --reconnect


@when
def test_from_the_server_after_the_one_that_was_killed_all_arrives(
    spicebridge: Start, path: Path, port: HeldPort, early: bool
) -> None:
    with ExitStack() as stack:
        with pouring(port) as endpoint:
            running = spicebridge(*bridge(path, port), *RECONNECT)
            place = path.stat().st_ino
            kill_while_it_pours(endpoint, path)
        if not early:
            stack.enter_context(pouring(port))
        sock = stack.enter_context(connection(path))
        if early:
            stack.enter_context(pouring(port))
        assert Noise(sock).receive(SIZE).digest == poured(SIZE)
        assert path.stat().st_ino == place
        assert running.stop() == 0


@when
def test_at_the_server_after_the_one_that_was_killed_all_arrives(
    spicebridge: Start, path: Path, port: HeldPort, early: bool
) -> None:
    with ExitStack() as stack:
        with swallowing(port) as endpoint:
            running = spicebridge(*bridge(path, port), *RECONNECT)
            kill_while_it_swallows(endpoint, path)
        if not early:
            endpoint = stack.enter_context(swallowing(port))
        with connection(path) as sock:
            sending = Task(lambda: send_noise(sock, SIZE))
            if early:
                endpoint = stack.enter_context(swallowing(port))
            sending.result()
        check_swallowed(endpoint)
        assert running.stop() == 0


@pytest.mark.parametrize("fault", [Fault.CLOSE, Fault.RESET, Fault.HALF_CLOSE])
def test_a_session_that_broke_is_there_again_each_time(
    spicebridge: Start, path: Path, fault: Fault
) -> None:
    data = os.urandom(MIB)
    with SpiceEndpoint(f"echo:{NAME}") as endpoint, FaultyRelay(endpoint.uri) as relay:
        running = spicebridge(*bridge(path, relay), *RECONNECT)
        for _ in range(3):
            with connection(path) as sock:
                assert exchange(sock, data, len(data)) == data
                relay.fail(fault)
                assert receive_to_end(sock) == b""
        assert running.stop() == 0


def test_applications_wait_while_the_server_is_out_of_reach(spicebridge: Start, path: Path) -> None:
    data = os.urandom(MIB)
    with SpiceEndpoint(f"echo:{NAME}") as endpoint, FaultyRelay(endpoint.uri) as relay:
        running = spicebridge(*bridge(path, relay), *RECONNECT)
        for _ in range(3):
            with connection(path) as sock:
                assert exchange(sock, data, len(data)) == data
                relay.go_away()
                assert receive_to_end(sock) == b""
            with connection(path) as sock:
                sending = Task(lambda: sock.sendall(data))
                relay.come_back()
                assert receive(sock, len(data)) == data
                sending.result()
        assert running.stop() == 0


def test_the_login_is_asked_again(
    spicebridge: Start, path: Path, port: HeldPort, tmp_path: Path
) -> None:
    ticket = tmp_path / "ticket"
    source = "--password-command", f"cat {shlex.quote(str(ticket))}"
    ticket.write_text("first")
    with SpiceEndpoint(f"echo:{NAME}", port=port, ticket="first") as endpoint:
        running = spicebridge(*bridge(path, port), *RECONNECT, *source)
        with connection(path) as sock:
            assert exchange(sock, b"one", 3) == b"one"
            endpoint.popen.kill()
            assert receive_to_end(sock) == b""
    ticket.write_text("second")
    with SpiceEndpoint(f"echo:{NAME}", port=port, ticket="second"):
        with connection(path) as sock:
            assert exchange(sock, b"two", 3) == b"two"
        assert running.stop() == 0


def test_a_refused_login_is_not_tried_again(spicebridge: Start, path: Path, port: HeldPort) -> None:
    env = {"SPICEBRIDGE_PASSWORD": "first"}
    with SpiceEndpoint(f"echo:{NAME}", port=port, ticket="first") as endpoint:
        running = spicebridge(*bridge(path, port), *RECONNECT, env=env)
        with connection(path) as sock:
            assert exchange(sock, b"one", 3) == b"one"
            endpoint.popen.kill()
            assert receive_to_end(sock) == b""
    with SpiceEndpoint(f"echo:{NAME}", port=port, ticket="second"):
        assert running.wait() == 5
    assert not path.exists()


def test_a_monitor_of_qemu_is_there_again_when_another_qemu_is(
    spicebridge: Start, path: Path, tmp_path: Path
) -> None:
    with Qemu(tmp_path) as qemu, FaultyRelay(qemu.uri) as relay:
        running = spicebridge(*bridge(path, relay, f"port={QMP_PORT}"), *RECONNECT)
        with connection(path) as sock:
            assert QmpClient(sock).execute("query-status")["status"] == "prelaunch"
            qemu.process.popen.kill()
            assert receive_to_end(sock) == b""
        with connection(path) as sock, Qemu(tmp_path) as other:
            # nobody is there where the first one was, and the relay says so by hanging up
            relay.wait(lambda: relay.refused >= 2, "it is not tried again", PATIENCE)
            relay.target = other.uri
            assert QmpClient(sock).execute("query-status")["status"] == "prelaunch"
        assert running.stop() == 0
