"""Faults while bytes flow: what arrives is as it was sent, and if some does not, it is told."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from spicebridge import ProtocolError, SessionLostError
from tests.conftest import PATIENCE, Spicebridge
from tests.peers.certificates import self_signed
from tests.peers.faulty_relay import Connection, Fault, FaultyRelay, Flow, Plan
from tests.peers.libspice import NOISE, SpiceEndpoint, poured
from tests.real.faults import Noise, send_and_stay, send_noise
from tests.real.tools import (
    JSON_LOG,
    MIB,
    Start,
    Task,
    communicate,
    connection,
    digest_of_fd,
    events,
    exchange,
    one_line,
    receive,
    receive_to_end,
    sha256,
    wait_event,
)

pytestmark = pytest.mark.real_peer

NAME = "com.example.port"
SIZE = 16 * MIB
ENDLESS = 1 << 40
MIDST = 4_999_999
"""Bytes on the wire after which a fault comes, inside a message."""

MAIN, FIRST = 0, 1
"""Numbers of connections: that of the main channel, and that of the first application."""

LOST = {ProtocolError.exit_code, SessionLostError.exit_code}

breaks = pytest.mark.parametrize("fault", [Fault.CLOSE, Fault.RESET, Fault.HALF_CLOSE])


class Bridged:
    """A guest, a relay in front of it, and a bridge whose applications connect to `path`."""

    def __init__(self, endpoint: SpiceEndpoint, relay: FaultyRelay, path: Path) -> None:
        self.endpoint, self.relay, self.path = endpoint, relay, path
        self.running: Spicebridge

    def stalled(self, number: int = FIRST) -> Connection:
        """Waits until a connection stalls."""
        stalled = self.relay.wait_connection(number)
        self.relay.wait(lambda: stalled.up.stalled or stalled.down.stalled, "it does not stall")
        return stalled


Bridge = Callable[..., Bridged]


@pytest.fixture
def bridge(spicebridge: Start, short_tmp: Path, peers: ExitStack) -> Bridge:
    """Starts a guest of a kind, a relay with a plan for the connection of a number, and a bridge.

    With `unix` all of it is on Unix sockets; `demux` is the key of that name. Further arguments
    are those of `SpiceEndpoint`.
    """

    def start(
        guest: str,
        plan: Plan,
        *,
        number: int | None = FIRST,
        unix: bool = False,
        demux: str = "off",
        **more: Any,
    ) -> Bridged:
        paths = (short_tmp / "spice", short_tmp / "relay") if unix else (None, None)
        endpoint = peers.enter_context(SpiceEndpoint(f"{guest}:{NAME}", unix=paths[0], **more))
        secure = "tls" in more
        relay = FaultyRelay(
            endpoint.tls_uri if secure else endpoint.uri,
            lambda each: plan if number in {None, each} else Plan(),
            unix=paths[1],
        )
        bridged = Bridged(endpoint, peers.enter_context(relay), short_tmp / "s")
        bridged.running = spicebridge(
            relay.uri,
            "--custom-channel",
            f"channelid=port,demux={demux},unixsocket={bridged.path}",
            *JSON_LOG,
            *(["--insecure-tls"] if secure else []),
        )
        return bridged

    return start


# Down


@pytest.mark.parametrize("after", [MIDST, 300])
def test_what_stalls_on_its_way_down_arrives_whole(bridge: Bridge, after: int) -> None:
    bridged = bridge("pour", Plan(down=Flow(Fault.STALL, after)), pour=SIZE)
    with connection(bridged.path) as sock:
        sock.settimeout(None)
        reading = Task(lambda: digest_of_fd(sock.fileno(), SIZE))
        stalled = bridged.stalled()
        assert stalled.down.passed == after
        stalled.resume()
        assert reading.result() == poured(SIZE)
    assert wait_event(bridged.running, "app-gone")["down"] == SIZE
    assert bridged.running.stop() == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@breaks
def test_a_break_on_the_way_down_is_end_of_file_behind_what_has_arrived(
    bridge: Bridge, tmp_path: Path, fault: Fault, tls: bool
) -> None:
    more = {"tls": self_signed(tmp_path, "localhost")} if tls else {}
    plan = Plan(down=Flow(fault, MIDST), spare=True)
    bridged = bridge("pour", plan, pour=SIZE, **more)
    with connection(bridged.path) as sock:
        got = receive_to_end(sock)
    assert 0 < len(got) < MIDST
    assert sha256(got) == poured(len(got))
    assert wait_event(bridged.running, "app-gone")["down"] == len(got)
    if fault is not Fault.RESET:  # which may overtake
        assert len(got) > 0.99 * MIDST - 64 * 1024
    with connection(bridged.path) as sock:  # the session goes on
        sock.settimeout(None)
        assert digest_of_fd(sock.fileno(), SIZE) == poured(SIZE)
    assert wait_event(bridged.running, "app-gone", count=2)["down"] == len(got) + SIZE
    assert bridged.running.stop() == 0


def test_a_server_that_ends_its_side_behind_all_of_it_is_end_of_file(bridge: Bridge) -> None:
    bridged = bridge("pour", Plan(), pour=SIZE)
    with connection(bridged.path) as sock:
        assert sha256(receive(sock, SIZE)) == poured(SIZE)
        bridged.relay.connections[FIRST].fail(Fault.HALF_CLOSE, up=False)
        assert receive_to_end(sock) == b""
    assert wait_event(bridged.running, "app-gone")["down"] == SIZE
    assert bridged.running.stop() == 0


def test_a_server_that_hears_the_end_while_it_pours_is_end_of_file(bridge: Bridge) -> None:
    bridged = bridge("pour", Plan(), pour=ENDLESS)
    with connection(bridged.path) as sock:
        noise = Noise(sock)
        noise.receive(MIB)
        bridged.relay.connections[FIRST].fail(Fault.HALF_CLOSE, down=False)
        got = noise.receive(ENDLESS)
    assert got.size > MIB
    assert got.digest == poured(got.size)
    assert wait_event(bridged.running, "app-gone")["down"] == got.size
    assert bridged.running.stop() == 0


# Up


def test_what_stalls_on_its_way_up_arrives_whole(bridge: Bridge) -> None:
    data = os.urandom(SIZE)
    bridged = bridge("swallow", Plan(up=Flow(Fault.STALL, MIDST)))
    with connection(bridged.path) as sock:
        sending = Task(lambda: sock.sendall(data))
        bridged.stalled().resume()
        sending.result()
    assert wait_event(bridged.running, "app-gone")["up"] == SIZE
    state = bridged.endpoint.wait_state(NAME, False)
    assert (state["received"], state["sha256"]) == (SIZE, sha256(data))
    assert bridged.running.stop() == 0


def test_what_an_application_that_has_gone_has_sent_arrives_after_a_stall(bridge: Bridge) -> None:
    """What the bridge has given the kernel stays on its way when the bridge has closed."""
    data = os.urandom(MIB)
    bridged = bridge("swallow", Plan(up=Flow(Fault.STALL, MIB // 2)))
    with connection(bridged.path) as sock:
        sock.sendall(data)
    stalled = bridged.stalled()
    assert wait_event(bridged.running, "app-gone")["up"] == len(data)
    stalled.resume()
    state = bridged.endpoint.wait_state(NAME, False)
    assert (state["received"], state["sha256"]) == (len(data), sha256(data))


@pytest.mark.parametrize(
    ("size", "after"), [(SIZE, MIDST), (MIB, MIB // 2)], ids=["much", "what buffers hold"]
)
@breaks
def test_a_break_on_the_way_up_is_told_to_an_application_that_stays(
    bridge: Bridge, fault: Fault, size: int, after: int
) -> None:
    bridged = bridge("swallow", Plan(up=Flow(fault, after), spare=True))
    with connection(bridged.path) as sock:
        send_and_stay(sock, size)
    state = bridged.endpoint.wait_state(NAME, False)
    assert state["received"] <= after
    assert state["sha256"] == poured(state["received"])
    gone = wait_event(bridged.running, "app-gone")
    assert gone["up"] >= state["received"]
    with connection(bridged.path) as sock:  # the session goes on
        send_noise(sock, size)
    assert wait_event(bridged.running, "app-gone", count=2)["up"] == gone["up"] + size
    state = bridged.endpoint.wait_state(NAME, False)
    assert (state["received"], state["sha256"]) == (size, poured(size))
    assert bridged.running.stop() == 0


# Both ways


@breaks
def test_a_break_of_both_ways_is_told(bridge: Bridge, fault: Fault) -> None:
    bridged = bridge("both", Plan(down=Flow(fault, MIDST), spare=True), pour=SIZE)
    with connection(bridged.path) as sock:
        sending = Task(lambda: send_noise(sock, SIZE))
        got = Noise(sock).receive(SIZE)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has been told anyway
            sending.result()
    assert 0 < got.size < SIZE
    assert got.digest == poured(got.size)
    assert wait_event(bridged.running, "app-gone")["down"] == got.size
    state = bridged.endpoint.wait_state(NAME, False)
    assert state["sha256"] == poured(state["received"])


def test_single_bytes_arrive_as_they_are(bridge: Bridge) -> None:
    single = Flow(piece=1)
    data = os.urandom(2 * 1024)
    bridged = bridge("echo", Plan(single, single), number=None, unix=True)
    with connection(bridged.path) as sock:
        assert exchange(sock, data, len(data)) == data
    assert bridged.running.stop() == 0


def test_late_bytes_arrive_as_they_are(bridge: Bridge) -> None:
    late = Flow(delay=0.02)
    data = os.urandom(8 * MIB)
    bridged = bridge("echo", Plan(late, late), number=None)
    with connection(bridged.path) as sock:
        assert exchange(sock, data, len(data)) == data
    assert bridged.running.stop() == 0


# One application only, which has no other way to hear of it than the exit code


@pytest.mark.parametrize(
    "stdin", [subprocess.PIPE, subprocess.DEVNULL], ids=["stdin is open", "stdin has ended"]
)
@breaks
def test_a_break_on_the_way_down_to_stdout_is_an_error(
    spicebridge: Start, fault: Fault, stdin: int
) -> None:
    plan = Plan(down=Flow(fault, MIDST), spare=True)
    with (
        SpiceEndpoint(f"pour:{NAME}", pour=SIZE) as endpoint,
        FaultyRelay(endpoint.uri, lambda number: plan if number == FIRST else Plan()) as relay,
    ):
        running = spicebridge(
            relay.uri,
            "--custom-channel",
            "channelid=port,stdio",
            stdin=stdin,
            stdout=subprocess.PIPE,
        )
        assert running.process.stdout is not None
        got = running.process.stdout.read()
        assert running.wait() in LOST
    assert one_line(running)
    assert sha256(got) == poured(len(got))


@breaks
def test_a_break_on_the_way_up_from_stdin_is_an_error(spicebridge: Start, fault: Fault) -> None:
    size = 8 * SIZE  # more than all that is on the way holds
    plan = Plan(up=Flow(fault, MIDST), spare=True)
    with (
        SpiceEndpoint(f"swallow:{NAME}") as endpoint,
        FaultyRelay(endpoint.uri, lambda number: plan if number == FIRST else Plan()) as relay,
    ):
        running = spicebridge(
            relay.uri,
            "--custom-channel",
            "channelid=port,stdio",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        communicate(running, bytes(size))
        assert running.wait() in LOST
        assert endpoint.wait_state(NAME, False)["received"] < MIDST
    assert one_line(running)


# Many streams


@breaks
def test_a_break_ends_every_stream_and_after_it_there_are_streams_again(
    bridge: Bridge, short_tmp: Path, fault: Fault
) -> None:
    streams, frame = 4, 65535  # which LZ4 does not look back on
    size = 64 * frame
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(str(short_tmp / "s"))
        listener.listen()
        plan = Plan(down=Flow(fault, MIDST), spare=True)
        more = {"streams": streams, "frame": frame, "end_streams": True, "pour": streams * size}
        bridge("mux", plan, demux="on", **more)

        def sizes() -> list[int]:
            """What the next streams bring, each to its end; it is as it was sent."""
            reading = []
            for _ in range(streams):
                sock = listener.accept()[0]
                sock.settimeout(PATIENCE)
                reading.append(Task(lambda sock=sock: read_and_close(sock)))  # type: ignore[misc]
            all_read = [task.result() for task in reading]
            whole = NOISE[:frame] * 64
            assert all(whole.startswith(each) for each in all_read)
            return [len(each) for each in all_read]

        assert 0 < sum(sizes()) < MIDST
        assert sizes() == [size] * streams


def read_and_close(sock: socket.socket) -> bytes:
    with sock:
        return receive_to_end(sock)


# The main channel


def test_a_main_channel_that_stalls_holds_no_other_up(bridge: Bridge) -> None:
    data = os.urandom(SIZE)
    bridged = bridge("echo", Plan())
    main = bridged.relay.connections[MAIN]
    main.fail(Fault.STALL)
    with connection(bridged.path) as sock:
        assert exchange(sock, data, SIZE) == data
    main.resume()
    assert bridged.running.stop() == 0


@breaks
def test_a_main_channel_that_breaks_ends_the_session_and_is_told(
    bridge: Bridge, fault: Fault
) -> None:
    bridged = bridge("pour", Plan(spare=True), pour=ENDLESS)
    with connection(bridged.path) as sock:
        noise = Noise(sock)
        noise.receive(MIB)
        bridged.relay.connections[MAIN].fail(fault, up=False)
        got = noise.receive(ENDLESS)
    assert got.size > MIB
    assert got.digest == poured(got.size)
    assert bridged.running.wait() == 8
    assert events(bridged.running, "app-gone")[0]["down"] == got.size
    assert not bridged.path.exists()
