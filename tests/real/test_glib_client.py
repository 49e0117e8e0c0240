"""spice-client-glib, the library under virt-viewer, as a client of `spicebridge serve`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Spicebridge
from tests.peers import glib_client
from tests.peers.glib_client import GlibClient
from tests.peers.processes import PeerError
from tests.real.tools import (
    JSON_LOG,
    MIB,
    Start,
    Task,
    connection,
    events,
    exchange,
    receive,
    receive_to_end,
    served_uri,
    sha256,
    wait_event,
)

pytestmark = pytest.mark.real_peer

PORT = "com.example.port"
PASSWORD = "sesame"
SIZE = 8 * MIB


@pytest.fixture(params=["tcp", "unix"])
def listen(request: pytest.FixtureRequest, short_tmp: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{short_tmp / 'spice'}"


def serve(
    spicebridge: Start, listen: str, *specs: str, password_file: Path | None = None
) -> Spicebridge:
    words = [word for spec in specs for word in ("--custom-channel", spec)]
    words += ["--password-file", str(password_file)] if password_file else []
    return spicebridge("serve", "--listen", listen, *words, *JSON_LOG)


def echoed(client: GlibClient, data: bytes, out: Path) -> None:
    client.wait_message(received=len(data), timeout=PATIENCE)
    assert sha256(out.read_bytes()) == sha256(data)


def test_it_lists_what_is_served(spicebridge: Start, listen: str, short_tmp: Path) -> None:
    running = serve(
        spicebridge,
        listen,
        f"port=com.example.one,unixsocket={short_tmp / '1'}",
        "port=com.example.two,exec=cat",
        f"channelid=128,unixsocket={short_tmp / '128'}",
        f"channelid=usbredir,unixsocket={short_tmp / 'usb'}",
    )
    with connection(short_tmp / "1"):
        wait_event(running, "app-connected")
        channels = glib_client.list_channels(served_uri(running))
    found = {(each["type"], each["id"]): (each["name"], each["opened"]) for each in channels}
    assert found[10, 0] == ("com.example.one", True)
    assert found[10, 1][0] == "com.example.two"
    assert found[9, 0] == (None, None)


def test_a_program_echoes_8_mib(spicebridge: Start, listen: str, short_tmp: Path) -> None:
    running = serve(spicebridge, listen, f"port={PORT},exec=cat")
    source, out = short_tmp / "in", short_tmp / "out"
    data = os.urandom(SIZE)
    source.write_bytes(data)
    with glib_client.exchange(
        served_uri(running), PORT, send=source, expect=SIZE, out=out
    ) as client:
        echoed(client, data, out)
    record = wait_event(running, "app-gone")
    assert (record["up"], record["down"]) == (SIZE, SIZE)


def test_a_program_that_is_always_there_serves_one_client_after_another(
    spicebridge: Start, listen: str, short_tmp: Path
) -> None:
    running = serve(spicebridge, listen, f"port={PORT},exec=cat,attach=always")
    wait_event(running, "app-connected")
    source, out = short_tmp / "in", short_tmp / "out"
    for times in (1, 2, 3):
        data = os.urandom(MIB)
        source.write_bytes(data)
        uri = served_uri(running)
        with glib_client.exchange(uri, PORT, send=source, expect=MIB, out=out) as client:
            assert client.wait_message(port=PORT)["opened"]
            echoed(client, data, out)
        wait_event(running, "unlinked", count=times)
    assert not events(running, "app-gone")
    assert running.stop() == 0
    assert len(events(running, "app-connected")) == len(events(running, "app-gone")) == 1


def test_8_mib_each_way_with_an_application_at_a_socket(
    spicebridge: Start, listen: str, short_tmp: Path
) -> None:
    guest = short_tmp / "guest"
    running = serve(spicebridge, listen, f"port={PORT},unixsocket={guest}")
    source, out = short_tmp / "in", short_tmp / "out"
    down, up = os.urandom(SIZE), os.urandom(SIZE)
    source.write_bytes(up)
    with connection(guest) as sock:
        wait_event(running, "app-connected")
        moving = Task(lambda: exchange(sock, down, SIZE))
        uri = served_uri(running)
        with glib_client.exchange(uri, PORT, send=source, expect=SIZE, out=out) as client:
            echoed(client, down, out)
            assert moving.result() == up
            assert client.messages[0] == {"port": PORT, "opened": True}


def test_it_sees_the_port_open_and_close(spicebridge: Start, listen: str, short_tmp: Path) -> None:
    guest = short_tmp / "guest"
    running = serve(spicebridge, listen, f"port={PORT},unixsocket={guest}")
    source, out = short_tmp / "in", short_tmp / "out"
    source.write_bytes(b"hello, guest")
    with glib_client.exchange(served_uri(running), PORT, send=source, expect=17, out=out) as client:
        client.wait_message(port=PORT, opened=False)
        since = 1
        for number in range(3):
            with connection(guest) as sock:
                client.wait_message(port=PORT, opened=True, since=since)
                if number == 0:
                    assert receive(sock, 12) == b"hello, guest"
                    sock.sendall(b"hello, client")
                else:
                    sock.sendall(b"%d\n" % number)
                since = len(client.messages)
            client.wait_message(port=PORT, opened=False, since=since)
            since = len(client.messages)
        client.wait_message(received=17)
    assert out.read_bytes() == b"hello, client1\n2\n"
    wait_event(running, "unlinked", count=1)
    assert not events(running, "error")


def test_a_program_of_each_client_is_ended_with_it(
    spicebridge: Start, listen: str, short_tmp: Path
) -> None:
    running = serve(spicebridge, listen, f"port={PORT},exec=cat")
    source, out = short_tmp / "in", short_tmp / "out"
    for times in range(1, 4):
        data = os.urandom(times * 1000)
        source.write_bytes(data)
        with glib_client.exchange(
            served_uri(running), PORT, send=source, expect=len(data), out=out
        ) as client:
            echoed(client, data, out)
        wait_event(running, "app-gone", count=times)
    assert running.stop() == 0
    assert not events(running, "error")


def test_it_sees_a_program_that_ends_as_a_closed_port(
    spicebridge: Start, listen: str, short_tmp: Path
) -> None:
    code = "import sys; sys.stdout.write('x' * 100000); sys.stdin.read(5)"
    command = shlex.join([sys.executable, "-c", code]).replace(",", ",,")
    running = serve(spicebridge, listen, f"port={PORT},exec={command}")
    source, out = short_tmp / "in", short_tmp / "out"
    source.write_bytes(b"12345")
    uri = served_uri(running)
    with glib_client.exchange(uri, PORT, send=source, expect=100_000, out=out) as client:
        opened = client.wait_message(port=PORT, opened=True, timeout=PATIENCE)
        since = client.messages.index(opened)
        client.wait_message(port=PORT, opened=False, since=since, timeout=PATIENCE)
        client.wait_message(received=100_000)
    assert out.read_bytes() == b"x" * 100_000


def test_the_password_lets_it_in(spicebridge: Start, listen: str, short_tmp: Path) -> None:
    secret = short_tmp / "password"
    secret.write_text(f"{PASSWORD}\n")
    running = serve(spicebridge, listen, f"port={PORT},exec=cat", password_file=secret)
    source, out = short_tmp / "in", short_tmp / "out"
    data = os.urandom(SIZE)
    source.write_bytes(data)
    uri = served_uri(running)
    with glib_client.exchange(
        uri, PORT, send=source, expect=SIZE, out=out, password_file=secret
    ) as client:
        echoed(client, data, out)
    wrong = short_tmp / "wrong"
    wrong.write_text("please\n")
    with pytest.raises(PeerError, match="auth"):
        glib_client.list_channels(uri, password_file=wrong)
    channels = glib_client.list_channels(uri, password_file=secret)
    assert PORT in [each["name"] for each in channels]


def test_a_client_that_dies_leaves_a_served_port_for_the_next(
    spicebridge: Start, listen: str, short_tmp: Path
) -> None:
    guest = short_tmp / "guest"
    running = serve(spicebridge, listen, f"port={PORT},unixsocket={guest}")
    source, out = short_tmp / "in", short_tmp / "out"
    source.write_bytes(b"question")
    uri = served_uri(running)
    for times in range(1, 4):
        with (
            connection(guest) as sock,
            glib_client.exchange(uri, PORT, send=source, expect=6, out=out) as client,
        ):
            assert receive(sock, 8) == b"question"
            sock.sendall(b"answer")
            client.wait_message(received=6)
            client.popen.kill()
            assert receive_to_end(sock) == b""
        wait_event(running, "app-gone", count=times)
