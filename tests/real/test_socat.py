"""socat as the application at every kind of local end, against `spicebridge serve`."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge
from tests.peers.processes import Process, wait_until
from tests.real.tools import JSON_LOG, MIB, Start, Task, events, served_uri, wait_event

pytestmark = pytest.mark.real_peer

ECHO = "com.example.echo"
HELLO = "com.example.hello"
GREETING = b"hello from the guest\n" * 5000
SIZE = 4 * MIB


@pytest.fixture
def served(spicebridge: Start, short_tmp: Path) -> str:
    """The URI of an endpoint with an echo and with a guest that greets and closes its port."""
    greeting = short_tmp / "greeting"
    greeting.write_bytes(GREETING)
    running = spicebridge(
        "serve",
        "--listen",
        f"unix:{short_tmp / 'spice'}",
        "--custom-channel",
        f"port={ECHO},exec=cat",
        "--custom-channel",
        f"port={HELLO},exec=cat {greeting}",
        *JSON_LOG,
    )
    return served_uri(running)


@pytest.fixture
def host() -> str:
    """A loopback address on which nobody else takes a port."""
    return f"127.80.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


@pytest.fixture
def ours(short_tmp: Path) -> Iterator[socket.socket]:
    """A socket that listens at `short_tmp`/ours, for a socat that something else starts."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(str(short_tmp / "ours"))
        listener.listen()
        yield listener


def free_tcp_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def socat(*addresses: str, options: tuple[str, ...] = (), fds: tuple[int, ...] = ()) -> Process:
    return Process(
        ["socat", *options, *addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=fds,
    )


def send_and_receive(writer: int, reader: int, data: bytes) -> bytes:
    """Write all of `data` to one descriptor while as much is read from the other."""

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(writer, view) :]

    def read() -> bytes:
        got = bytearray()
        while len(got) < len(data):
            piece = os.read(reader, min(MIB, len(data) - len(got)))
            assert piece, f"end of file after {len(got)} bytes"
            got += piece
        return bytes(got)

    reading, writing = Task(read), Task(write)
    writing.result()
    received: bytes = reading.result()
    return received


def assert_echoes(process: Process, size: int = SIZE) -> None:
    """Random bytes into a socat come back out of it."""
    assert process.popen.stdin is not None
    assert process.popen.stdout is not None
    data = os.urandom(size)
    fds = process.popen.stdin.fileno(), process.popen.stdout.fileno()
    assert send_and_receive(*fds, data) == data


def assert_ends(process: Process) -> None:
    """End of file on its stdin ends a socat well."""
    assert process.popen.stdin is not None
    process.popen.stdin.close()
    assert process.popen.wait(PATIENCE) == 0, process.stderr()


def assert_greets(process: Process) -> None:
    """All that the guest says comes out of a socat, which then ends by itself."""
    assert process.popen.stdout is not None
    assert Task(process.popen.stdout.read).result() == GREETING
    assert process.popen.wait(PATIENCE) == 0, process.stderr()


def wait_listening(process: Process) -> str:
    """Wait until a socat with -d -d listens; return where."""

    def where() -> str:
        found = re.search(r"listening on (?:LEN=\d+ )?AF=\d+ \"?([^\s\"]+)", process.stderr())
        return found[1] if found else ""

    wait_until(lambda: bool(where()), what=f"socat does not listen: {process.stderr()}")
    return where()


def bridge(spicebridge: Start, uri: str, end: str, port: str = ECHO, **more: object) -> Spicebridge:
    return spicebridge(uri, "--custom-channel", f"port={port},{end}", *JSON_LOG, **more)


# Sockets


def test_a_unix_socket_that_we_listen_at(served: str, spicebridge: Start, short_tmp: Path) -> None:
    running = bridge(spicebridge, served, f"unixsocket={short_tmp / 's'}")
    for times in (1, 2, 3):
        with socat("-", f"UNIX-CONNECT:{short_tmp / 's'}") as process:
            assert_echoes(process)
            assert (
                f"pid {process.pid} (socat)"
                in wait_event(running, "app-connected", count=times)["app"]
            )
            assert_ends(process)
        wait_event(running, "app-gone", count=times)
    assert running.stop() == 0
    assert not (short_tmp / "s").exists()


def test_a_unix_socket_that_socat_listens_at(
    served: str, spicebridge: Start, short_tmp: Path
) -> None:
    with socat(f"UNIX-LISTEN:{short_tmp / 's'}", "-", options=("-d", "-d")) as process:
        wait_listening(process)
        running = bridge(spicebridge, served, f"unixsocket={short_tmp / 's'},mode=connect")
        assert_echoes(process)
        assert_ends(process)
        assert running.wait() == 0


def test_a_tcp_port_that_we_listen_at(served: str, spicebridge: Start, host: str) -> None:
    address = f"{host}:{free_tcp_port(host)}"
    running = bridge(spicebridge, served, f"tcp={address}")
    for times in (1, 2, 3):
        with socat("-", f"TCP:{address}") as process:
            assert_echoes(process)
            assert_ends(process)
        wait_event(running, "app-gone", count=times)
    assert running.stop() == 0


def test_a_tcp_port_that_socat_listens_at(served: str, spicebridge: Start, host: str) -> None:
    listen = f"TCP-LISTEN:0,bind={host}"
    with socat(listen, "-", options=("-d", "-d")) as process:
        running = bridge(spicebridge, served, f"tcp={wait_listening(process)},mode=connect")
        assert_echoes(process)
        assert_ends(process)
        assert running.wait() == 0


@pytest.mark.parametrize("end", ["unixsocket", "tcp"])
def test_the_guest_s_end_of_file_ends_socat_behind_all_bytes(
    served: str, spicebridge: Start, short_tmp: Path, host: str, end: str
) -> None:
    if end == "unixsocket":
        place, address = f"{short_tmp / 's'}", f"UNIX-CONNECT:{short_tmp / 's'}"
    else:
        place = f"{host}:{free_tcp_port(host)}"
        address = f"TCP:{place}"
    bridge(spicebridge, served, f"{end}={place}", HELLO)
    for _ in range(3):
        with socat("-", address) as process:
            assert_greets(process)


def test_socat_that_only_sends_loses_nothing(spicebridge: Start, short_tmp: Path) -> None:
    """`-u` closes as soon as it has sent everything."""
    taken = short_tmp / "taken"
    server = spicebridge(
        "serve",
        "--listen",
        f"unix:{short_tmp / 'spice'}",
        "--custom-channel",
        f"channelid=128,exec=socat -u - OPEN:{taken},,creat,,trunc",
        *JSON_LOG,
    )
    running = spicebridge(
        served_uri(server),
        "--custom-channel",
        f"channelid=128,unixsocket={short_tmp / 's'}",
        *JSON_LOG,
    )
    data = os.urandom(20 * MIB)
    source = short_tmp / "source"
    source.write_bytes(data)
    for times in (1, 2, 3):
        with socat("-u", f"OPEN:{source}", f"UNIX-CONNECT:{short_tmp / 's'}") as process:
            assert process.popen.wait(PATIENCE) == 0
        wait_event(running, "app-gone", count=times)
        wait_event(server, "app-gone", count=times)
        assert taken.read_bytes() == data


# FIFOs


def test_fifos_that_we_create(served: str, spicebridge: Start, short_tmp: Path) -> None:
    fifo = short_tmp / "fifo"
    running = bridge(spicebridge, served, f"pipe={fifo}")
    with socat("-", f"OPEN:{fifo}.out,rdonly!!OPEN:{fifo}.in,wronly") as process:
        assert_echoes(process)
        assert_ends(process)
    with socat("-", f"OPEN:{fifo}.out,rdonly!!OPEN:{fifo}.in,wronly") as process:
        assert_echoes(process)
    assert running.stop() == 0
    assert not Path(f"{fifo}.in").exists()
    assert not Path(f"{fifo}.out").exists()


def test_fifos_that_were_there_stay_there(served: str, spicebridge: Start, short_tmp: Path) -> None:
    fifo = short_tmp / "fifo"
    for name in ("in", "out"):
        os.mkfifo(f"{fifo}.{name}")
    running = bridge(spicebridge, served, f"pipe={fifo}")
    with socat("-", f"OPEN:{fifo}.out,rdonly!!OPEN:{fifo}.in,wronly") as process:
        assert_echoes(process)
    assert running.stop() == 0
    assert Path(f"{fifo}.in").is_fifo()
    assert Path(f"{fifo}.out").is_fifo()


def test_what_a_reader_of_a_fifo_gets(served: str, spicebridge: Start, short_tmp: Path) -> None:
    """The guest greets and closes its port: a reader that was there sees all, then the end."""
    fifo = short_tmp / "fifo"
    os.mkfifo(f"{fifo}.in")
    os.mkfifo(f"{fifo}.out")
    with socat("-u", f"OPEN:{fifo}.out,rdonly", "-") as process:
        bridge(spicebridge, served, f"pipe={fifo}", HELLO)
        assert process.popen.stdout is not None
        got = Task(process.popen.stdout.read).result()
        assert got
        assert got == GREETING * (len(got) // len(GREETING))


# Standard input and output


def escape(text: str) -> str:
    """For an address of socat."""
    return re.sub(r"([,:!\"'\\\[\](){}])", r"\\\1", text)


@pytest.mark.parametrize("options", ["", ",pipes", ",pty,raw,echo=0", ",socktype=1"])
@pytest.mark.parametrize("kind", ["EXEC", "SYSTEM"])
def test_stdio_of_a_spicebridge_that_socat_starts(served: str, kind: str, options: str) -> None:
    """On a socket pair, on two pipes and on a terminal."""
    command = f"{EXECUTABLE} {served} --custom-channel stdio,port={ECHO}"
    with socat("-", f"{kind}:{escape(command)}{options}") as process:
        assert_echoes(process, MIB)
        assert_ends(process)


def test_stdio_in_a_pipeline_of_socats(served: str, short_tmp: Path) -> None:
    data = os.urandom(SIZE)
    source, target = short_tmp / "source", short_tmp / "target"
    source.write_bytes(data)
    script = (
        f'set -o pipefail; socat -u OPEN:{source} - | "$0" {served} '
        f"--custom-channel stdio,port={ECHO} | socat -u - CREATE:{target}"
    )
    done = subprocess.run(
        ["bash", "-c", script, EXECUTABLE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert target.read_bytes() == data


def test_stdio_ends_when_the_guest_closes_its_port(served: str) -> None:
    command = f"{EXECUTABLE} {served} --custom-channel stdio,port={HELLO}"
    with socat("-", f"EXEC:{escape(command)}") as process:
        assert_greets(process)


# Programs, terminals, descriptors


def test_a_socat_that_we_start(
    served: str, spicebridge: Start, short_tmp: Path, ours: socket.socket
) -> None:
    """It takes its data from a socket of the test and brings it back there."""
    command = shlex.join(["socat", "-", f"UNIX-CONNECT:{short_tmp / 'ours'}"])
    running = bridge(spicebridge, served, f"exec={command}")
    with ours.accept()[0] as sock:
        sock.settimeout(None)
        data = os.urandom(SIZE)
        assert send_and_receive(sock.fileno(), sock.fileno(), data) == data
    assert running.wait() == 0


def test_a_socat_that_we_start_sees_the_guest_s_end_of_file(
    served: str, spicebridge: Start, short_tmp: Path, ours: socket.socket
) -> None:
    command = shlex.join(["socat", "-", f"UNIX-CONNECT:{short_tmp / 'ours'}"])
    running = bridge(spicebridge, served, f"exec={command}", HELLO)
    with ours.accept()[0] as sock, sock.makefile("rb") as stream:
        sock.settimeout(PATIENCE)
        assert stream.read() == GREETING
    assert running.wait() == 0


def test_a_terminal_with_a_link(served: str, spicebridge: Start, short_tmp: Path) -> None:
    link = short_tmp / "tty"
    running = bridge(spicebridge, served, f"pty={link}")
    for times in (1, 2, 3):
        with socat("-", f"FILE:{link},raw,echo=0") as process:
            assert_echoes(process, MIB)
            assert_ends(process)
        wait_event(running, "app-gone", count=times)
    assert running.stop() == 0
    assert not link.is_symlink()


def test_a_terminal_without_a_link_is_told_in_the_log(served: str, spicebridge: Start) -> None:
    running = bridge(spicebridge, served, "pty")
    wait_event(running, "ready")
    found = re.search(r"/dev/pts/\d+", running.stderr())
    assert found, f"nobody knows where the terminal is:\n{running.stderr()}"
    with socat("-", f"FILE:{found[0]},raw,echo=0") as process:
        assert_echoes(process, MIB)
        assert_ends(process)
    wait_event(running, "app-gone")
    assert running.stop() == 0


def test_a_descriptor(served: str, spicebridge: Start) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs, socat("-", f"FD:{mine.fileno()}", fds=(mine.fileno(),)) as process:
        mine.close()
        fd = theirs.fileno()
        running = bridge(spicebridge, served, f"fd={fd}", pass_fds=(fd,))
        theirs.close()
        assert_echoes(process)
        assert_ends(process)
        assert running.wait() == 0


def test_a_descriptor_that_is_a_terminal(served: str, spicebridge: Start) -> None:
    master, slave = os.openpty()
    try:
        with socat("-", f"FILE:{os.ttyname(slave)},raw,echo=0") as process:
            running = bridge(spicebridge, served, f"fd={master}", pass_fds=(master,))
            assert_echoes(process, MIB)
            assert_ends(process)
    finally:
        os.close(master)
        os.close(slave)
    assert running.wait() == 0


# The guest's side


@pytest.mark.parametrize("guest", ["unixsocket", "tcp", "pipe", "pty", "fd", "exec"])
def test_socat_as_the_guest_at_every_local_end_of_serve(
    spicebridge: Start, short_tmp: Path, host: str, guest: str
) -> None:
    place = short_tmp / "guest"
    address = f"{host}:{free_tcp_port(host)}"
    mine, theirs = socket.socketpair()
    with mine, theirs:
        specs = {
            "unixsocket": (f"unixsocket={place}", f"UNIX-CONNECT:{place}"),
            "tcp": (f"tcp={address}", f"TCP:{address}"),
            "pipe": (f"pipe={place}", f"OPEN:{place}.out,rdonly!!OPEN:{place}.in,wronly"),
            "pty": (f"pty={place}", f"FILE:{place},raw,echo=0"),
            "fd": (f"fd={theirs.fileno()}", f"FD:{mine.fileno()}"),
            "exec": ("exec=socat - EXEC:cat", ""),
        }
        spec, at = specs[guest]
        server = spicebridge(
            "serve",
            "--listen",
            f"unix:{short_tmp / 'spice'}",
            "--custom-channel",
            f"channelid=200,{spec}",
            *JSON_LOG,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        app = short_tmp / "app"
        spicebridge(served_uri(server), "--custom-channel", f"channelid=200,unixsocket={app}")
        with socat("-", f"UNIX-CONNECT:{app}") as process:
            if not at:
                assert_echoes(process, MIB)
                return
            with socat(at, "EXEC:cat", fds=(mine.fileno(),)):
                mine.close()
                assert_echoes(process, MIB)
    assert not events(server, "error")


@pytest.mark.parametrize("key", ["attach=always", "on-close=keep"])
def test_a_program_that_waits_for_a_client_is_ended_with_serve(
    spicebridge: Start, served: str, short_tmp: Path, key: str
) -> None:
    """It does not care for its end of file."""
    del served
    server = spicebridge(
        "serve",
        "--listen",
        f"unix:{short_tmp / 'waiting'}",
        "--custom-channel",
        f"channelid=200,exec=socat -u PIPE:{short_tmp / 'never'} -,{key}",
        *JSON_LOG,
    )
    if key != "attach=always":
        app = short_tmp / "app"
        spicebridge(served_uri(server), "--custom-channel", f"channelid=200,unixsocket={app}")
        with socat("-", f"UNIX-CONNECT:{app}") as process:
            wait_event(server, "app-connected")
            assert_ends(process)
        wait_event(server, "unlinked")
    name = wait_event(server, "app-connected")["app"]
    pid = int(re.findall(r"pid (\d+)", name)[0])
    try:
        assert server.stop() == 0
        assert not Path(f"/proc/{pid}").exists(), f"{name} is left behind"
        assert events(server, "app-gone")
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
