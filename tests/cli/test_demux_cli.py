"""The executable with channels that carry many streams."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from spicebridge import ProtocolError
from tests.cli.echo import echo_server
from tests.cli.tools import connect, find_events, read_all, read_exactly, run, until, wait_event
from tests.conftest import Spicebridge

Start = Callable[..., Spicebridge]


def frame(client_id: int, data: bytes = b"") -> bytes:
    return struct.pack("<qH", client_id, len(data)) + data


class Server:
    """A ``spicebridge serve`` of one webdav channel, at which connections come in at `path`."""

    def __init__(self, start: Start, folder: Path, *specs: str) -> None:
        self.path = folder / "in"
        self.uri = f"spice+unix://{folder}/spice"
        options = ("serve", "--log-format", "json", "--listen", f"unix:{folder}/spice")
        channels = [word for spec in specs for word in ("--custom-channel", spec)]
        self.running = start(*options, *channels)


@pytest.fixture
def streams(spicebridge: Start, short_tmp: Path) -> Server:
    """A server whose connections become streams."""
    return Server(spicebridge, short_tmp, f"channelid=webdav,unixsocket={short_tmp}/in")


@pytest.fixture
def by_hand(spicebridge: Start, short_tmp: Path) -> Server:
    """A server whose guest is a raw connection: the test writes the frames."""
    return Server(
        spicebridge,
        short_tmp,
        f"channelid=webdav,demux=off,unixsocket={short_tmp}/in",
        f"channelid=128,unixsocket={short_tmp}/in-128",
    )


def read_frame(guest: socket.socket) -> tuple[int, bytes]:
    client_id, size = struct.unpack("<qH", read_exactly(guest, 10))
    return client_id, read_exactly(guest, size)


# What it says


def test_scripts_are_told_of_each_stream_with_its_id_and_its_bytes(
    spicebridge: Start, streams: Server, short_tmp: Path
) -> None:
    with echo_server(short_tmp / "echo"):
        spec = f"channelid=webdav,unixsocket={short_tmp}/echo"
        bridge = spicebridge(streams.uri, "--log-format", "json", "--custom-channel", spec)
        for number, size in enumerate((5, 70_000), 1):
            with connect(streams.path) as app:
                app.sendall(bytes(size))
                app.shutdown(socket.SHUT_WR)
                assert read_all(app) == bytes(size)
            for each in (bridge, streams.running):
                opened = wait_event(each, "stream-open", count=number)
                ended = wait_event(each, "stream-end", count=number)
                assert opened["bridge"] == ended["bridge"] == "channelid=webdav"
                assert opened["id"] == ended["id"] == number
                assert (opened["up"], opened["down"]) == (0, 0)
                assert (ended["up"], ended["down"]) == (size, size)
                assert (ended["undelivered"], ended["reason"]) == (0, "")
        assert bridge.stop() == 0


@pytest.mark.parametrize(("option", "told"), [((), False), (("-v",), True)])
def test_people_are_told_of_each_stream_only_if_they_ask(
    spicebridge: Start, streams: Server, short_tmp: Path, option: tuple[str, ...], told: bool
) -> None:
    with echo_server(short_tmp / "echo"):
        spec = f"channelid=webdav,unixsocket={short_tmp}/echo"
        bridge = spicebridge(streams.uri, *option, "--custom-channel", spec)
        with connect(streams.path) as app:
            app.sendall(b"hello")
            assert read_exactly(app, 5) == b"hello"
        wait_event(streams.running, "stream-end")
        assert bridge.stop() == 0
    assert ("stream 1 opened" in bridge.stderr()) is told
    assert ("stream 1 ended (5 bytes up, 5 down)" in bridge.stderr()) is told


def test_a_refused_stream_is_one_line(spicebridge: Start, by_hand: Server, short_tmp: Path) -> None:
    spec = f"channelid=webdav,unixsocket={short_tmp}/nobody"
    bridge = spicebridge(by_hand.uri, "--custom-channel", spec)
    with connect(by_hand.path) as guest:
        guest.sendall(frame(-7, b"anybody?"))
        assert read_frame(guest) == (-7, b"")
        (line,) = [each for each in bridge.stderr().splitlines() if "WARNING" in each]
        assert "stream -7 refused: " in line
        assert f"unixsocket={short_tmp}/nobody" in line
        assert "No such file" in line
        assert bridge.stop() == 0


# Programs


def test_a_program_for_each_stream(spicebridge: Start, streams: Server) -> None:
    bridge = spicebridge(
        streams.uri, "--custom-channel", "channelid=webdav,exec=sh -c 'echo $$; exec cat'"
    )
    pids = set()
    with ExitStack() as stack:
        for number in range(5):
            app = stack.enter_context(connect(streams.path))
            app.sendall(b"hello %d" % number)
            pid, word = b"", b""
            while not pid.endswith(b"\n"):
                pid += read_exactly(app, 1)
            word = read_exactly(app, 7)
            assert word == b"hello %d" % number
            pids.add(int(pid))
            if number % 2:
                app.shutdown(socket.SHUT_WR)
                assert app.recv(1) == b""
    assert len(pids) == 5
    until(
        "every program has ended",
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids),
    )
    assert bridge.stop() == 0


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_what_was_written_before_the_signal_arrives_at_both_sides(
    spicebridge: Start, streams: Server, short_tmp: Path, number: signal.Signals, code: int
) -> None:
    spec = f"channelid=webdav,mode=listen,unixsocket={short_tmp}/app"
    bridge = spicebridge(streams.uri, "--custom-channel", spec)
    with ExitStack() as stack:
        pairs = []
        for _ in range(3):
            client = stack.enter_context(connect(streams.path))
            app = stack.enter_context(connect(short_tmp / "app"))
            client.sendall(b"!")
            assert app.recv(1) == b"!"
            pairs.append((client, app, os.urandom(100_000), os.urandom(100_000)))
        for client, app, down, up in pairs:
            client.sendall(down)
            app.sendall(up)
        bridge.process.send_signal(number)
        for _, app, down, _ in pairs:
            assert read_all(app) == down
            app.close()
        for client, _, _, up in pairs:
            assert read_all(client) == up
    assert bridge.wait() == code
    assert not (short_tmp / "app").exists()


def test_a_server_that_is_stopped_drains_its_streams(
    spicebridge: Start, streams: Server, short_tmp: Path
) -> None:
    spec = f"channelid=webdav,mode=listen,unixsocket={short_tmp}/app"
    bridge = spicebridge(streams.uri, "--log-format", "json", "--custom-channel", spec)
    with connect(streams.path) as client, connect(short_tmp / "app") as app:
        client.sendall(b"!")
        assert app.recv(1) == b"!"
        down, up = os.urandom(100_000), os.urandom(100_000)
        client.sendall(down)
        app.sendall(up)
        streams.running.process.send_signal(signal.SIGTERM)
        assert read_all(app) == down
        app.close()
        assert read_all(client) == up
    assert streams.running.wait() == 0
    assert not streams.path.exists()
    assert bridge.wait() == 8


# Bytes that are no frames


GARBAGE = {
    "text": (b"The quick brown fox jumps over the lazy dog.\r\n" * 1000, "text, 'The quick '"),
    "zeros": (bytes(100_000), "zeros"),
    "random": (random.Random(1).randbytes(4_000_000), "ids and sizes at random"),
}


@pytest.mark.parametrize(("data", "what"), GARBAGE.values(), ids=[*GARBAGE])
def test_bytes_that_are_no_frames_end_the_bridge_with_one_line(
    spicebridge: Start, by_hand: Server, short_tmp: Path, data: bytes, what: str
) -> None:
    with echo_server(short_tmp / "echo"), connect(by_hand.path) as guest:
        spec = f"channelid=webdav,unixsocket={short_tmp}/echo"
        bridge = spicebridge(by_hand.uri, "--custom-channel", spec)
        try:
            guest.sendall(data)
        except BrokenPipeError:
            pass  # the bridge has gone
        guest.close()
        assert bridge.wait() == ProtocolError.exit_code
    (error,) = [each for each in bridge.stderr().splitlines() if "ERROR" in each]
    assert "webdav:0: mux frame at byte" in error
    assert what in error
    assert "demux=off" in error
    assert "Traceback" not in bridge.stderr()


def test_the_other_bridges_go_on(spicebridge: Start, by_hand: Server, short_tmp: Path) -> None:
    bridge = spicebridge(
        *(by_hand.uri, "--log-format", "json"),
        *("--custom-channel", "channelid=webdav,exec=cat"),
        *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/s"),
    )
    with connect(by_hand.path) as guest, connect(short_tmp / "s") as app:
        guest.sendall(b"Hello, world! " * 100)
        error = wait_event(bridge, "error", exit_code=ProtocolError.exit_code)
        assert error["bridge"] == "channelid=webdav"
        wait_event(bridge, "unlinked", bridge="channelid=webdav")
        with connect(short_tmp / "in-128") as other:
            app.sendall(b"still here")
            assert read_exactly(other, 10) == b"still here"
    assert not find_events(bridge, "stream-open")
    assert bridge.stop() == ProtocolError.exit_code


def test_a_frame_that_is_cut_off_at_the_end_is_told(
    spicebridge: Start, by_hand: Server, short_tmp: Path
) -> None:
    bridge = spicebridge(
        by_hand.uri, "--log-format", "json", "--custom-channel", "channelid=webdav,exec=cat"
    )
    with connect(by_hand.path) as guest:
        guest.sendall(frame(1, b"0123456789")[:15])
        assert read_frame(guest) == (1, b"01234")
    cut = wait_event(bridge, "frame-cut")
    assert (cut["level"], cut["missing"]) == ("warning", 5)
    wait_event(bridge, "stream-end", id=1)
    with connect(by_hand.path) as guest:
        guest.sendall(frame(2, b"clean"))
        assert read_frame(guest) == (2, b"clean")
    assert bridge.stop() == 0


# Descriptors


def test_there_is_room_for_the_descriptors_of_all_streams(
    spicebridge: Start, streams: Server, short_tmp: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        many, few = (
            spicebridge(streams.uri, "--custom-channel", spec)
            for spec in (
                f"channelid=webdav,unixsocket={short_tmp}/x,max-streams=1500",
                f"channelid=webdav,demux=off,unixsocket={short_tmp}/y",
            )
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limit = resource.prlimit(many.process.pid, resource.RLIMIT_NOFILE)
    assert limit[0] >= min(1500, hard)
    assert resource.prlimit(few.process.pid, resource.RLIMIT_NOFILE)[0] == min(soft, 256)


@pytest.mark.parametrize("end", ["unixsocket={tmp}/echo", "exec=cat"])
def test_without_descriptors_a_stream_is_refused_alone(
    spicebridge: Start, by_hand: Server, short_tmp: Path, end: str
) -> None:
    with echo_server(short_tmp / "echo"), connect(by_hand.path) as guest:
        spec = f"channelid=webdav,{end}".format(tmp=short_tmp)
        bridge = spicebridge(by_hand.uri, "--log-format", "json", "--custom-channel", spec)
        wait_event(bridge, "linked")
        guest.sendall(frame(1, b"first"))
        assert read_frame(guest) == (1, b"first")
        pid = bridge.process.pid
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, used + 20))
        for number in range(2, 6):
            guest.sendall(frame(number, b"one more"))
            assert read_frame(guest) == (number, b"")
        refused = find_events(bridge, "stream-refused")
        assert [each["id"] for each in refused] == [2, 3, 4, 5]
        assert all("Too many open files" in each["message"] for each in refused)
        guest.sendall(frame(1, b"go on"))
        assert read_frame(guest) == (1, b"go on")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        guest.sendall(frame(6, b"and now?"))
        assert read_frame(guest) == (6, b"and now?")
        assert bridge.stop() == 0


def test_a_server_without_descriptors_takes_connections_again_later(
    spicebridge: Start, streams: Server, short_tmp: Path
) -> None:
    with echo_server(short_tmp / "echo"):
        spec = f"channelid=webdav,unixsocket={short_tmp}/echo"
        bridge = spicebridge(streams.uri, "--custom-channel", spec)
        pid = streams.running.process.pid
        with connect(streams.path) as first:
            first.sendall(b"first")
            assert read_exactly(first, 5) == b"first"
            used = len(os.listdir(f"/proc/{pid}/fd"))  # whatever is to be opened for clients is
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, used + 20))
            with connect(streams.path) as second:
                second.sendall(b"second")
                first.sendall(b"go on")
                assert read_exactly(first, 5) == b"go on"
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
                assert read_exactly(second, 6) == b"second"
        assert bridge.stop() == 0
        assert streams.running.stop() == 0


# Folders


def http(path: Path, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request; returns the status and the body of the answer."""
    with connect(path) as app:
        head = f"{method} {target} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n"
        app.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer, _, content = read_all(app).partition(b"\r\n\r\n")
    return int(answer.split()[1]), content


@pytest.mark.parametrize("name", ["folder", "a,b", "a b"])
def test_a_folder_is_shared_with_the_short_form(
    spicebridge: Start, streams: Server, short_tmp: Path, name: str
) -> None:
    folder = short_tmp / name
    folder.mkdir()
    data = os.urandom(300_000)
    (folder / "there").write_bytes(data)
    bridge = spicebridge(streams.uri, "--share", str(folder))
    assert http(streams.path, "GET", "/there") == (200, data)
    assert http(streams.path, "PUT", "/new", data[::-1])[0] == 201
    assert (folder / "new").read_bytes() == data[::-1]
    assert http(streams.path, "GET", "/missing")[0] == 404
    assert bridge.stop() == 0


def test_a_readonly_folder_is_not_written_to(
    spicebridge: Start, streams: Server, short_tmp: Path
) -> None:
    folder = short_tmp / "folder"
    folder.mkdir()
    (folder / "there").write_bytes(b"data")
    spec = f"channelid=webdav,share={folder},readonly=on"
    bridge = spicebridge(streams.uri, "--custom-channel", spec)
    assert http(streams.path, "GET", "/there") == (200, b"data")
    assert http(streams.path, "PUT", "/there", b"other")[0] == 403
    assert http(streams.path, "DELETE", "/there")[0] == 403
    assert [each.name for each in folder.iterdir()] == ["there"]
    assert (folder / "there").read_bytes() == b"data"
    assert bridge.stop() == 0


def test_the_short_form_and_channels_go_together(
    spicebridge: Start, by_hand: Server, short_tmp: Path
) -> None:
    spec = f"channelid=128,unixsocket={short_tmp}/s"
    bridge = spicebridge(by_hand.uri, "--share", str(short_tmp), "--custom-channel", spec)
    with connect(short_tmp / "s") as app, connect(short_tmp / "in-128") as other:
        app.sendall(b"hello")
        assert read_exactly(other, 5) == b"hello"
    assert bridge.stop() == 0


def test_a_folder_that_is_not_there_is_told_before_the_server_is_asked(short_tmp: Path) -> None:
    finished = run(f"spice+unix://{short_tmp}/nobody", "--share", f"{short_tmp}/missing")
    assert finished.code == 9
    (error,) = finished.errors()
    assert f"share={short_tmp}/missing: No such file or directory" in error
