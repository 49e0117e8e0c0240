"""``spicebridge serve``: a SPICE endpoint whose guests are local programs and sockets."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from spicebridge import LoginError
from tests.cli.tools import (
    connect,
    find_events,
    read_all,
    read_exactly,
    run,
    until,
    wait_event,
    wait_taken,
)
from tests.conftest import PATIENCE, Spicebridge

Start = Callable[..., Spicebridge]
Serve = Callable[..., tuple[Spicebridge, str]]


@pytest.fixture
def serve(spicebridge: Start, short_tmp: Path) -> Serve:
    """Starts a server at a Unix socket with the given channels; returns it and its URI."""

    def start(*specs: str, options: tuple[str, ...] = ()) -> tuple[Spicebridge, str]:
        channels = [word for spec in specs for word in ("--custom-channel", spec)]
        listen = ("--listen", f"unix:{short_tmp}/spice")
        server = spicebridge("serve", "--log-format", "json", *listen, *options, *channels)
        return server, f"spice+unix://{short_tmp}/spice"

    return start


@pytest.fixture
def bridge(spicebridge: Start) -> Callable[..., Spicebridge]:
    """Bridges channels of a server."""

    def start(uri: str, *specs: str) -> Spicebridge:
        channels = [word for spec in specs for word in ("--custom-channel", spec)]
        return spicebridge(uri, "--log-format", "json", *channels)

    return start


def channels(uri: str) -> list[tuple[int, int, str | None]]:
    finished = run("list", "--json", uri)
    assert finished.code == 0, finished
    return [(row["type_number"], row["id"], row["port"]) for row in json.loads(finished.stdout)]


# Where it listens


def test_port_0_takes_a_free_port_and_tells_which(spicebridge: Start) -> None:
    server = spicebridge(
        *("serve", "--listen", "127.0.0.1:0", "--log-format", "json"),
        *("--custom-channel", "channelid=128,exec=cat"),
    )
    host, _, port = wait_event(server, "ready")["address"].rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    assert channels(f"spice://127.0.0.1:{port}") == [(128, 0, None)]


def test_it_listens_on_ipv6(spicebridge: Start) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    server = spicebridge(
        *("serve", "--listen", "[::1]:0", "--log-format", "json"),
        *("--custom-channel", "channelid=128,exec=cat"),
    )
    assert channels(f"spice://{wait_event(server, 'ready')['address']}") == [(128, 0, None)]


def test_its_unix_socket_is_for_its_user_only(serve: Serve, short_tmp: Path) -> None:
    serve("channelid=128,exec=cat")
    assert stat.S_IMODE((short_tmp / "spice").stat().st_mode) == 0o600


def test_a_stale_socket_is_replaced(serve: Serve, short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{short_tmp}/spice")
    _, uri = serve("channelid=128,exec=cat")
    assert channels(uri) == [(128, 0, None)]


# What it offers


def test_it_offers_every_type_and_numbers_what_has_no_number(serve: Serve) -> None:
    _, uri = serve(
        "port=a,exec=cat",
        "port=b,exec=cat",
        "channelid=port,instance=1,exec=cat",
        "channelid=usbredir,exec=cat",
        "channelid=webdav,demux=off,exec=cat",
        "channelid=128,exec=cat",
        "channelid=128,exec=cat",
        "channelid=255,instance=7,exec=cat",
    )
    found = channels(uri)
    assert [(kind, number) for kind, number, _ in found] == [
        (9, 0),
        (10, 0),
        (10, 1),
        (10, 2),
        (11, 0),
        (128, 0),
        (128, 1),
        (255, 7),
    ]
    assert [name for kind, _, name in found if kind == 10] == ["a", None, "b"]


def test_a_password_keeps_others_out(serve: Serve, short_tmp: Path) -> None:
    (short_tmp / "password").write_text("x" * 60)
    _, uri = serve("channelid=128,exec=cat", options=("--password-file", f"{short_tmp}/password"))
    for password, code in {"x" * 60: 0, "x" * 59: LoginError.exit_code}.items():
        assert run("list", uri, env={"SPICEBRIDGE_PASSWORD": password}).code == code


# Who plays the guest


def test_a_program_is_started_for_each_client(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    server, uri = serve("channelid=128,exec=cat")
    bridge(uri, f"channelid=128,unixsocket={short_tmp}/s")
    for count in (1, 2, 3):
        with connect(short_tmp / "s") as app:
            app.sendall(b"hello")
            app.shutdown(socket.SHUT_WR)
            assert read_exactly(app, 5) == b"hello"
        wait_event(server, "app-gone", count=count)
    assert len({each["app"] for each in find_events(server, "app-connected")}) == 3


def test_a_program_that_ends_is_end_of_file_for_the_application(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    _, uri = serve("channelid=128,exec=sh -c 'echo all I have'")
    bridge(uri, f"channelid=128,unixsocket={short_tmp}/s")
    with connect(short_tmp / "s") as app:
        assert read_all(app) == b"all I have\n"


@pytest.mark.parametrize("end", ["exec", "listen", "connect", "pipe", "pty"])
def test_bytes_go_both_ways_with_every_kind_of_guest(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path, end: str
) -> None:
    """Each guest gives back what it gets, 256 KiB of it."""
    data = random.Random(1).randbytes(262144)

    def echo(read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        left = len(data)
        while left:
            piece = read(65536)
            if not piece:
                return
            left -= len(piece)
            while piece:
                written = write(piece)
                piece = piece[written if isinstance(written, int) else len(piece) :]

    with ExitStack() as stack:
        spec = {
            "exec": "exec=cat",
            "listen": f"unixsocket={short_tmp}/guest",
            "connect": f"unixsocket={short_tmp}/guest,mode=connect",
            "pipe": f"pipe={short_tmp}/guest",
            "pty": f"pty={short_tmp}/guest",
        }[end]
        if end == "connect":
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{short_tmp}/guest")
            listener.listen()
            listener.settimeout(PATIENCE)
        _, uri = serve(f"channelid=128,{spec}")
        bridge(uri, f"channelid=128,unixsocket={short_tmp}/s")
        app = stack.enter_context(connect(short_tmp / "s"))
        guest: socket.socket | None = None
        thread: threading.Thread | None = None
        if end == "listen":
            guest = stack.enter_context(connect(short_tmp / "guest"))
        elif end == "connect":
            guest = stack.enter_context(listener.accept()[0])
            guest.settimeout(PATIENCE)
        if guest is not None:
            thread = threading.Thread(target=echo, args=(guest.recv, guest.sendall))
        elif end in {"pipe", "pty"}:
            names = ("guest.out", "guest.in") if end == "pipe" else ("guest", "guest")
            fds = [os.open(short_tmp / name, os.O_RDWR | os.O_NOCTTY) for name in names]
            for fd in fds:
                stack.callback(os.close, fd)
            thread = threading.Thread(
                target=echo, args=(lambda n: os.read(fds[0], n), lambda d: os.write(fds[1], d))
            )
        if thread is not None:
            thread.start()
        sending = threading.Thread(target=app.sendall, args=(data,))
        sending.start()
        assert read_exactly(app, len(data)) == data
        sending.join(PATIENCE)
        if thread is not None:
            thread.join(PATIENCE)


def test_the_guest_sees_applications_come_and_they_see_it_go(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    server, uri = serve(f"port=p,unixsocket={short_tmp}/guest")
    bridge(uri, f"port=p,unixsocket={short_tmp}/s")
    for count in (1, 2):
        with connect(short_tmp / "guest") as guest:
            with connect(short_tmp / "s") as app:
                app.sendall(b"hello")
                assert read_exactly(guest, 5) == b"hello"
                guest.sendall(b"bye")
                guest.shutdown(socket.SHUT_WR)
                guest.close()
                assert read_all(app) == b"bye"
            wait_event(server, "unlinked", count=1 + count)  # the first one asked for its name


def test_what_an_application_sends_waits_until_there_is_a_guest(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    _, uri = serve(f"port=p,unixsocket={short_tmp}/guest")
    running = bridge(uri, f"port=p,unixsocket={short_tmp}/s")
    with connect(short_tmp / "s") as app:
        app.sendall(b"are you there?")
        wait_event(running, "linked")
        with connect(short_tmp / "guest") as guest:
            assert read_exactly(guest, 14) == b"are you there?"


def test_an_application_with_on_close_keep_meets_one_guest_after_another(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    server, uri = serve(f"port=p,unixsocket={short_tmp}/guest")
    bridge(uri, f"port=p,unixsocket={short_tmp}/s,on-close=keep")
    with connect(short_tmp / "s") as app:
        for count in (1, 2, 3):
            with connect(short_tmp / "guest") as guest:
                guest.sendall(b"hello")
                assert read_exactly(app, 5) == b"hello"
                app.sendall(b"you again")
                assert read_exactly(guest, 9) == b"you again"
            wait_event(server, "app-gone", count=count)


def test_clients_on_different_channels_do_not_meet(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    numbers = range(128, 132)
    server, uri = serve(*[f"channelid={n},unixsocket={short_tmp}/guest-{n}" for n in numbers])
    with ExitStack() as stack:
        pairs = {}
        for number in numbers:  # each in a session of its own
            bridge(uri, f"channelid={number},unixsocket={short_tmp}/app-{number}")
            guest = stack.enter_context(connect(short_tmp / f"guest-{number}"))
            pairs[number] = guest, stack.enter_context(connect(short_tmp / f"app-{number}"))
        for number, (guest, app) in pairs.items():
            guest.sendall(f"down {number}".encode())
            app.sendall(f"up {number}".encode())
        for number, (guest, app) in pairs.items():
            assert read_exactly(app, 8) == f"down {number}".encode()
            assert read_exactly(guest, 6) == f"up {number}".encode()
        assert len(find_events(server, "linked")) == len(numbers)


def test_one_session_may_have_all_channels(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    specs = ["channelid=128", "channelid=128,instance=9", "channelid=200", "port=p", "port=q"]
    _, uri = serve(*[f"{spec},exec=sh -c 'echo {n}; cat'" for n, spec in enumerate(specs)])
    bridge(uri, *[f"{spec},unixsocket={short_tmp}/{n}" for n, spec in enumerate(specs)])
    with ExitStack() as stack:
        apps = [stack.enter_context(connect(short_tmp / str(n))) for n in range(len(specs))]
        for number, app in enumerate(apps):
            app.sendall(b"hello\n")
            assert read_exactly(app, 8) == f"{number}\nhello\n".encode()


# stdio as the guest


@pytest.mark.parametrize("channel", ["channelid=128", "port=p"])
def test_a_guest_on_stdio_ends_the_process_with_its_client(
    spicebridge: Start, bridge: Callable[..., Spicebridge], short_tmp: Path, channel: str
) -> None:
    """A client that only asks for the name of the port is not the one that it waits for."""
    server = spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", f"{channel},stdio"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    bridge(f"spice+unix://{short_tmp}/spice", f"{channel},unixsocket={short_tmp}/s")
    assert server.process.stdin
    assert server.process.stdout
    with connect(short_tmp / "s") as app:
        app.sendall(b"to the guest")
        assert server.process.stdout.read(12) == b"to the guest"
        server.process.stdin.write(b"to the application")
        server.process.stdin.close()
        assert read_all(app) == b"to the application"
    assert server.wait() == 0
    assert server.process.stdout.read() == b""
    assert server.stderr() == ""
    assert not (short_tmp / "spice").exists()


# Stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_removes_what_it_created(
    serve: Serve, short_tmp: Path, number: signal.Signals, code: int
) -> None:
    server, _ = serve(
        f"channelid=128,unixsocket={short_tmp}/a",
        f"channelid=129,pipe={short_tmp}/b",
        f"channelid=130,pty={short_tmp}/c",
        "channelid=131,exec=cat",
    )
    until("the terminal's link is there", (short_tmp / "c").is_symlink)
    assert server.stop(number) == code
    assert [path.name for path in short_tmp.iterdir()] == [server.log.name]


def test_what_is_on_its_way_arrives_when_the_server_is_stopped(
    serve: Serve, bridge: Callable[..., Spicebridge], short_tmp: Path
) -> None:
    server, uri = serve(f"port=p,unixsocket={short_tmp}/guest")
    bridge(uri, f"port=p,unixsocket={short_tmp}/s")
    with connect(short_tmp / "guest") as guest, connect(short_tmp / "s") as app:
        wait_event(server, "linked")
        down, up = b"d" * 100_000, b"u" * 100_000
        app.sendall(b"!")
        assert guest.recv(1) == b"!"
        guest.sendall(down)
        app.sendall(up)
        wait_taken(app)  # what the bridge has not read yet is not on its way
        server.process.send_signal(signal.SIGTERM)
        assert read_all(app) == down
        app.close()
        assert read_all(guest) == up
    assert server.wait() == 0
