"""``--reconnect``: what a bridge does while its server is away, seen from where it was started.

The server is ``spicebridge serve`` in a process of its own, which is killed and started again at
the same Unix socket. A kill ends sessions as a takeover does, and the server is back soon: hence
``--takeover-limit=0`` where that is not the point.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from spicebridge import (
    ChannelNotFoundError,
    ChannelType,
    ConnectError,
    LoginError,
    SessionLostError,
    TakeoverError,
)
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.events import ChannelsList, MainInit
from spicebridge.protocol.messages import encode_channels_list, encode_main_init
from tests.cli.fake_server import fake_server, link_client_of, message
from tests.cli.tools import (
    Event,
    connect,
    events,
    find_events,
    read_all,
    read_exactly,
    run,
    until,
    wait_event,
)
from tests.conftest import PATIENCE, Spicebridge

Start = Callable[..., Spicebridge]

JSON = ("--log-format", "json")
STAY = ("--reconnect=0.2", "--takeover-limit=0")


@pytest.fixture
def uri(short_tmp: Path) -> str:
    return f"spice+unix://{short_tmp}/spice"


@pytest.fixture
def path(short_tmp: Path) -> Path:
    """Where applications connect."""
    return short_tmp / "s"


@pytest.fixture
def serve(spicebridge: Start, short_tmp: Path) -> Start:
    """Starts the server, whose channel 128 echoes."""

    def start(*args: str) -> Spicebridge:
        listen = f"unix:{short_tmp}/spice"
        echo = "--custom-channel=channelid=128,exec=cat"
        return spicebridge("serve", "--listen", listen, echo, *JSON, *args)

    return start


@pytest.fixture
def bridge(spicebridge: Start, uri: str, path: Path) -> Start:
    """Starts a bridge of channel 128."""

    def start(*args: str, **more: object) -> Spicebridge:
        spec = f"--custom-channel=channelid=128,unixsocket={path}"
        return spicebridge(uri, spec, *JSON, *args, **more)

    return start


def kill(server: Spicebridge) -> None:
    """Ends a server without a word."""
    server.stop(signal.SIGKILL)


def echo(path: Path, data: bytes = b"word") -> None:
    """An application that sends and gets the same."""
    with connect(path) as app:
        app.sendall(data)
        assert read_exactly(app, len(data)) == data


def last_line(running: Spicebridge) -> Event:
    return events(running)[-1]


# The server comes back


def test_a_server_that_was_killed_is_there_again_for_everybody(
    serve: Start, bridge: Start, path: Path
) -> None:
    server = serve()
    running = bridge(*STAY)
    place = path.stat()
    with connect(path) as app:
        app.sendall(b"before")
        assert read_exactly(app, 6) == b"before"
        kill(server)
        assert read_all(app) == b""
    wait_event(running, "away")
    with connect(path) as app:
        app.sendall(b"meanwhile")
        wait_event(running, "app-connected", count=2)
        assert not find_events(running, "linked")[1:]
        serve()
        assert read_exactly(app, 9) == b"meanwhile"
    echo(path)
    assert (path.stat().st_ino, path.stat().st_dev) == (place.st_ino, place.st_dev)
    assert running.stop() == 0
    assert not path.exists()


def test_what_an_application_sends_meanwhile_is_held_and_it_may_be_much(
    serve: Start, bridge: Start, path: Path
) -> None:
    running = bridge(*STAY)
    data = os.urandom(1 << 20)
    with connect(path) as app:
        app.setblocking(False)
        sent = 0
        while select.select([], [app], [], 0)[1]:  # until nobody takes any more
            sent += app.send(data[sent:])
        assert 0 < sent < len(data)
        app.settimeout(PATIENCE)
        serve()
        assert read_exactly(app, sent) == data[:sent]
    assert running.stop() == 0


def test_the_log_tells_what_happens(serve: Start, bridge: Start, uri: str) -> None:
    running = bridge(*STAY)
    first = wait_event(running, "ready")
    address = uri.removeprefix("spice+")
    away = wait_event(running, "away")
    assert (away["level"], away["bridge"]) == ("warning", None)
    assert away["delay"] == 0.2  # that is the longest
    assert "No such file" in away["message"]
    server = serve()
    second = wait_event(running, "ready", count=2)
    assert {key: first[key] for key in ("bridges", "ends", "address")} == {
        key: second[key] for key in ("bridges", "ends", "address")
    }
    assert first["address"].replace(":", "://") == address
    kill(server)
    lost = wait_event(running, "session-lost")
    assert (lost["level"], lost["bridge"], lost["delay"]) == ("warning", None, 0.2)
    assert lost["takeovers"] == 0  # the server was away before it
    assert "ended the session" in lost["message"]
    # the same again is told to those alone who ask for details
    away = wait_event(running, "away", count=len(find_events(running, "away")) + 2)
    assert away["level"] == "debug"
    assert running.stop() == 0


def test_the_first_delays_grow(bridge: Start) -> None:
    running = bridge("--reconnect")
    wait_event(running, "away", count=3)
    delays = [each["delay"] for each in find_events(running, "away")[:3]]
    for index, delay in enumerate(delays):
        assert 0.2 * 2**index <= delay <= 0.3 * 2**index
    assert running.stop() == 0


def test_who_needs_no_server_for_long_is_told_ready_once(
    serve: Start, bridge: Start, short_tmp: Path, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{short_tmp}/notify")
        manager.settimeout(PATIENCE)

        def told() -> dict[str, str]:
            lines = manager.recv(4097).decode().split("\n")
            return dict(line.split("=", 1) for line in lines)

        running = bridge(*STAY, env={"NOTIFY_SOCKET": f"{short_tmp}/notify"})
        does = f"bridging channelid=128 to unixsocket={path}"
        said = [told(), told()]
        assert {"READY": "1", "STATUS": does} in said
        (away,) = (each["STATUS"] for each in said if "READY" not in each)
        assert away.endswith("; trying again")
        server = serve()
        while (status := told()) != {"STATUS": does}:
            assert status["STATUS"].endswith("; trying again")
        kill(server)
        lost = told()
        assert lost.keys() == {"STATUS"}
        assert "ended the session" in lost["STATUS"]
        assert running.stop() == 0


# Without it, and where it does not help


def test_without_it_a_lost_session_is_the_end(serve: Start, bridge: Start, path: Path) -> None:
    server = serve()
    running = bridge()
    with connect(path) as app:
        kill(server)
        assert read_all(app) == b""
    assert running.wait() == SessionLostError.exit_code
    assert last_line(running)["exit_code"] == SessionLostError.exit_code
    assert not path.exists()


def test_without_it_a_server_that_is_away_is_an_error(bridge: Start, path: Path) -> None:
    running = bridge(ready=False)
    assert running.wait() == ConnectError.exit_code
    assert not path.exists()


def test_one_application_that_was_cut_off_is_the_end(
    spicebridge: Start, serve: Start, uri: str
) -> None:
    server = serve()
    spec = "--custom-channel=channelid=128,stdio"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running = spicebridge(uri, spec, *JSON, *STAY, **pipes)
    assert running.process.stdin is not None
    assert running.process.stdout is not None
    running.process.stdin.write(b"x")
    running.process.stdin.flush()
    assert running.process.stdout.read(1) == b"x"
    kill(server)
    assert running.process.stdout.read() == b""
    assert running.wait() == SessionLostError.exit_code


def test_a_channel_that_is_not_there_is_an_error_at_the_start_and_waited_for_later(
    spicebridge: Start, serve: Start, uri: str, short_tmp: Path
) -> None:
    bridging = (uri, f"--custom-channel=channelid=129,unixsocket={short_tmp}/t", *JSON, *STAY)
    more = "--custom-channel=channelid=129,exec=cat"
    server = serve()
    assert spicebridge(*bridging, ready=False).wait() == ChannelNotFoundError.exit_code
    kill(server)
    server = serve(more)
    running = spicebridge(*bridging)
    kill(server)
    wait_event(running, "session-lost")
    server = serve()
    until(
        "it has asked the server that has no such channel",
        lambda: any("offers no channel" in each["message"] for each in events(running)),
    )
    kill(server)
    serve(more)
    echo(short_tmp / "t")
    assert running.stop() == 0


# The login


@pytest.fixture
def ticket(short_tmp: Path) -> Path:
    """The file with the password of the server; that of clients is beside it."""
    file = short_tmp / "ticket"
    file.write_text("ticket-1\n")
    (short_tmp / "known").write_text("ticket-1\n")
    return file


@pytest.mark.parametrize("source", ["file", "command"])
def test_the_password_is_asked_for_again_when_the_old_one_is_refused(
    serve: Start, bridge: Start, path: Path, ticket: Path, source: str
) -> None:
    known = ticket.with_name("known")
    asking = {"file": f"--password-file={known}", "command": f"--password-command=cat {known}"}
    server = serve(f"--password-file={ticket}")
    running = bridge(*STAY, asking[source])
    echo(path)
    kill(server)
    wait_event(running, "session-lost")
    ticket.write_text("ticket-2\n")
    known.write_text("ticket-2\n")
    serve(f"--password-file={ticket}")
    echo(path)
    assert running.stop() == 0
    assert "ticket-" not in running.stderr()


def test_a_login_that_is_refused_is_not_tried_again(
    serve: Start, bridge: Start, path: Path, ticket: Path
) -> None:
    server = serve(f"--password-file={ticket}")
    running = bridge(*STAY, f"--password-file={ticket.with_name('known')}")
    echo(path)
    kill(server)
    ticket.write_text("ticket-2\n")
    serve(f"--password-file={ticket}")
    assert running.wait() == LoginError.exit_code
    assert last_line(running)["exit_code"] == LoginError.exit_code
    assert not path.exists()


def test_a_login_that_is_refused_at_the_start_is_not_tried_again(
    serve: Start, bridge: Start, ticket: Path
) -> None:
    serve(f"--password-file={ticket}")
    wrong = ticket.with_name("known")
    wrong.write_text("ticket-2\n")
    running = bridge(*STAY, f"--password-file={wrong}", ready=False)
    assert running.wait() == LoginError.exit_code
    assert not find_events(running, "away")


# Another client


def taken_over(client: socket.socket) -> None:
    """A server whose every session ends as if another client had come."""
    if link_client_of(client).request.channel_type == ChannelType.MAIN:
        client.sendall(message(Msg.MAIN_INIT, encode_main_init(MainInit(7))))
        client.recv(6, socket.MSG_WAITALL)  # ATTACH_CHANNELS
        listed = encode_channels_list(ChannelsList(((128, 0),)))
        client.sendall(message(Msg.MAIN_CHANNELS_LIST, listed))


def test_sessions_that_are_taken_over_again_and_again_are_the_end(
    bridge: Start, short_tmp: Path, path: Path
) -> None:
    with fake_server(short_tmp / "spice", taken_over):
        running = bridge("--reconnect=0.5")
        assert running.wait() == TakeoverError.exit_code
    (lost,) = find_events(running, "session-lost")
    (takeover,) = find_events(running, "takeover")
    assert (lost["takeovers"], takeover["takeovers"]) == (1, 2)
    assert 0.2 <= lost["delay"] <= 0.3
    assert (takeover["level"], takeover["delay"]) == ("warning", 0.5)
    assert last_line(running)["exit_code"] == TakeoverError.exit_code
    assert "taken the session over 3 times" in last_line(running)["message"]
    assert not path.exists()


def test_no_number_of_takeovers_is_the_end_if_there_is_no_limit(
    bridge: Start, short_tmp: Path
) -> None:
    with fake_server(short_tmp / "spice", taken_over):
        running = bridge(*STAY)
        takeover = wait_event(running, "takeover", count=3)
        assert takeover["takeovers"] == 4
        assert running.stop() == 0


# While it is away


def test_list_tells_that_the_server_is_away(
    serve: Start, bridge: Start, uri: str, path: Path
) -> None:
    running = bridge(*STAY)
    for _ in range(2):  # before there was a session, and after it
        listed = run("list", uri)
        assert listed.code == ConnectError.exit_code
        assert len(listed.stderr.splitlines()) == 1
        server = serve()
        wait_event(running, "ready", count=len(find_events(running, "ready")) + 1)
        (row,) = json.loads(run("list", "--json", uri).stdout)
        assert row["bridge"]["end"] == f"unixsocket={path}"
        kill(server)
        wait_event(running, "away", count=len(find_events(running, "away")) + 1)
    assert running.stop() == 0


SPECS = {
    "raw": "channelid=128,unixsocket={}",
    "always": "channelid=128,attach=always,unixsocket={}",
    "streams": "channelid=128,demux=on,exec=cat",
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=[*SPECS])
def test_it_can_be_stopped_while_the_server_is_away(
    spicebridge: Start, uri: str, path: Path, spec: str
) -> None:
    running = spicebridge(uri, f"--custom-channel={spec.format(path)}", *JSON, *STAY)
    wait_event(running, "away")
    assert running.stop() == 0
    assert not [each for each in events(running) if each["level"] == "error"]
    assert not path.exists()


def test_it_can_be_stopped_while_an_application_waits_for_the_server(
    bridge: Start, path: Path
) -> None:
    running = bridge(*STAY)
    with connect(path) as app:
        wait_event(running, "app-connected")
        assert running.stop() == 0
        assert app.recv(1) == b""


def test_who_waits_for_the_server_and_goes_makes_room_for_the_next(
    serve: Start, bridge: Start, path: Path
) -> None:
    running = bridge(*STAY)
    with connect(path):
        wait_event(running, "app-connected")
    wait_event(running, "app-gone")
    with connect(path) as app:
        app.sendall(b"next")
        serve()
        assert read_exactly(app, 4) == b"next"
    assert running.stop() == 0
