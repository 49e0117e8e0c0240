"""SIGINT, SIGTERM and SIGHUP: drain, remove what was created, give the terminal back; and what else
a process lives through."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spicebridge import SessionLostError
from spicebridge.protocol.constants import Msg
from tests.cli.conftest import Offered
from tests.cli.fake_server import fake_server, message, spice
from tests.cli.tools import (
    Screen,
    connect,
    connect_once_served,
    events,
    find_events,
    marked,
    read_all,
    read_exactly,
    until,
    wait_event,
)
from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge

Start = Callable[..., Spicebridge]

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 129)]


@pytest.fixture
def echoing(spicebridge: Start, short_tmp: Path) -> str:
    """URI of a server whose channels 128 to 132 echo."""
    specs = [f"channelid={number},exec=cat" for number in range(128, 133)]
    listen = ("--listen", f"unix:{short_tmp}/spice")
    spicebridge("serve", *listen, *[f"--custom-channel={spec}" for spec in specs])
    return f"spice+unix://{short_tmp}/spice"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_everything_that_was_created_is_removed(
    spicebridge: Start, offered: Offered, short_tmp: Path, number: signal.Signals, code: int
) -> None:
    (short_tmp / "mine").mkdir()
    os.mkfifo(short_tmp / "mine" / "p.in")
    os.mkfifo(short_tmp / "mine" / "p.out")
    bridge = spicebridge(
        offered.uri,
        *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/a"),
        *("--custom-channel", f"port=alpha.one,pipe={short_tmp}/b"),
        *("--custom-channel", f"port=alpha.two,pty={short_tmp}/c"),
        *("--custom-channel", f"port=solo,pipe={short_tmp}/mine/p"),
    )
    names = {path.name for path in short_tmp.iterdir()} - {bridge.log.name}
    assert names == {"a", "b.in", "b.out", "c", "mine"}
    assert bridge.stop(number) == code
    assert {path.name for path in short_tmp.iterdir()} == {bridge.log.name, "mine"}
    assert len(list((short_tmp / "mine").iterdir())) == 2
    assert "Traceback" not in bridge.stderr()


@pytest.mark.parametrize("moment", ["at-once", "with-an-app"])
def test_a_signal_right_after_ready_is_not_lost(
    spicebridge: Start, offered: Offered, short_tmp: Path, moment: str
) -> None:
    spec = f"channelid=128,unixsocket={short_tmp}/a"
    bridge = spicebridge(offered.uri, "--custom-channel", spec)
    if moment == "with-an-app":
        with connect(short_tmp / "a") as app:
            bridge.process.send_signal(signal.SIGTERM)
            assert app.recv(1) == b""
        assert bridge.wait() == 0
    else:
        assert bridge.stop() == 0
    assert not (short_tmp / "a").exists()


def test_a_signal_while_the_server_is_silent_ends_it_at_once(
    spicebridge: Start, short_tmp: Path
) -> None:
    linking = threading.Event()

    def silent(client: socket.socket) -> None:
        linking.set()
        while client.recv(65536):
            pass

    with fake_server(short_tmp / "spice", silent) as uri:
        spec = f"channelid=128,unixsocket={short_tmp}/a"
        bridge = spicebridge(uri, "--custom-channel", spec, ready=False)
        assert linking.wait(PATIENCE)
        assert bridge.stop(signal.SIGINT) == 130  # 3 once it has lost its patience
    assert not (short_tmp / "a").exists()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_what_was_written_before_the_signal_arrives_at_both_sides(
    spicebridge: Start, short_tmp: Path, number: signal.Signals, code: int
) -> None:
    server = spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice", "--log-format", "json"),
        *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/guest"),
    )
    bridge = spicebridge(
        f"spice+unix://{short_tmp}/spice",
        *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/s"),
    )
    with connect(short_tmp / "guest") as guest, connect(short_tmp / "s") as app:
        guest.sendall(b"!")
        assert app.recv(1) == b"!"
        down, up = os.urandom(100_000), os.urandom(100_000)
        guest.sendall(down)
        app.sendall(up)
        bridge.process.send_signal(number)
        assert read_all(app) == down
        app.close()
        assert read_all(guest) == up
    assert bridge.wait() == code
    gone = wait_event(server, "app-gone")
    assert (gone["down"], gone["up"]) == (len(up), 1 + len(down))


def test_what_an_application_wrote_before_the_signal_comes_back_from_the_guest(
    spicebridge: Start, echoing: str, short_tmp: Path
) -> None:
    bridge = spicebridge(echoing, "--custom-channel", f"channelid=128,unixsocket={short_tmp}/s")
    data = os.urandom(100_000)
    with connect(short_tmp / "s") as app:
        app.sendall(b"!")
        assert app.recv(1) == b"!"
        app.sendall(data)
        bridge.process.send_signal(signal.SIGTERM)
        assert read_all(app) == data
    assert bridge.wait() == 0


def test_no_application_is_taken_after_the_signal(
    spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    specs = [f"channelid=128,unixsocket={short_tmp}/a", f"port=solo,unixsocket={short_tmp}/b"]
    bridge = spicebridge(
        offered.uri, "--log-format", "json", *[f"--custom-channel={spec}" for spec in specs]
    )
    with connect(short_tmp / "a") as app:
        wait_event(bridge, "linked")
        bridge.process.send_signal(signal.SIGTERM)
        assert app.recv(1) == b""
        try:
            with connect(short_tmp / "b") as late:
                assert late.recv(1) == b""
        except OSError:  # the socket has gone, or is just going
            pass
    assert bridge.wait() == 0
    assert len(find_events(bridge, "app-connected")) == 1


@pytest.fixture
def stubborn(short_tmp: Path) -> Iterator[str]:
    """URI of a server that never ends its side of a channel, for which the first signal waits."""
    released = threading.Event()

    def script(client: socket.socket) -> None:
        spice(says={128: message(Msg.PING, bytes(12))})(client)
        released.wait(PATIENCE)

    with fake_server(short_tmp / "spice", script) as uri:
        yield uri
        released.set()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_it_at_once(
    spicebridge: Start, stubborn: str, short_tmp: Path, second: signal.Signals
) -> None:
    spec = f"channelid=128,unixsocket={short_tmp}/s"
    bridge = spicebridge(stubborn, "--log-format", "json", "--custom-channel", spec)
    with connect(short_tmp / "s"):
        wait_event(bridge, "linked")
        bridge.process.send_signal(signal.SIGTERM)
        until("it drains", lambda: "draining" in bridge.stderr())
        assert bridge.stop(second) == 128 + second
    assert not (short_tmp / "s").exists()
    assert "Traceback" not in bridge.stderr()


def test_a_drain_is_bounded(spicebridge: Start, stubborn: str, short_tmp: Path) -> None:
    spec = f"channelid=128,unixsocket={short_tmp}/s"
    bridge = spicebridge(stubborn, "--log-format", "json", "--custom-channel", spec)
    with connect(short_tmp / "s"):
        wait_event(bridge, "linked")
        assert bridge.stop(signal.SIGTERM) == 0
    assert not (short_tmp / "s").exists()
    assert all(each["level"] != "error" for each in events(bridge))


def test_no_signal_kills_it_on_its_way_out(
    spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    """Whenever another one comes, the exit status is ours."""
    spec = f"channelid=128,unixsocket={short_tmp}/s"
    bridge = spicebridge(offered.uri, "--custom-channel", spec)
    bridge.process.send_signal(signal.SIGTERM)
    while (short_tmp / "s").exists() and bridge.process.poll() is None:
        pass  # without a pause: some milliseconds are left then
    while bridge.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            bridge.process.send_signal(number)
    assert bridge.process.returncode in {0, *(code for _, code in SIGNALS), 143}
    assert "Traceback" not in bridge.stderr()


def test_a_third_signal_waits_for_no_program(
    spicebridge: Start, echoing: str, short_tmp: Path
) -> None:
    script = f"trap true TERM; echo $$ > {short_tmp}/pid; while true; do sleep 60; done"
    bridge = spicebridge(
        *(echoing, "--log-format", "json"),
        *("--custom-channel", f"channelid=128,exec=sh -c '{script}'"),
    )
    pid = short_tmp / "pid"
    until("the program runs", lambda: pid.exists() and bool(pid.read_text()))
    while bridge.process.poll() is None:
        bridge.process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert bridge.process.returncode == 128 + signal.SIGTERM
    os.killpg(int(pid.read_text()), signal.SIGKILL)


def test_sighup_that_is_ignored_stays_so(spicebridge: Start, echoing: str, short_tmp: Path) -> None:
    """As under nohup(1)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        spec = f"channelid=128,unixsocket={short_tmp}/s"
        bridge = spicebridge(echoing, "--custom-channel", spec)
    finally:
        signal.signal(signal.SIGHUP, before)
    bridge.process.send_signal(signal.SIGHUP)
    assert_echoes(short_tmp / "s")
    assert bridge.stop() == 0
    assert "draining" in bridge.stderr()
    assert "SIGHUP" not in bridge.stderr()


def assert_echoes(path: Path) -> None:
    """The bridge is there and works."""
    with connect_once_served(path) as app:
        app.sendall(b"hello")
        assert read_exactly(app, 5) == b"hello"


# What it lives through


def test_sigpipe(spicebridge: Start, echoing: str, short_tmp: Path) -> None:
    spec = f"channelid=128,unixsocket={short_tmp}/s"
    bridge = spicebridge(echoing, "--custom-channel", spec)
    bridge.process.send_signal(signal.SIGPIPE)
    assert_echoes(short_tmp / "s")
    assert bridge.stop() == 0


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_standard_error_that_nobody_reads(
    echoing: str, short_tmp: Path, number: signal.Signals, code: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(EXECUTABLE), echoing, f"--custom-channel=channelid=128,unixsocket={short_tmp}/s"]
    process = subprocess.Popen(command, stderr=writer)
    os.close(writer)
    with ended(process):
        assert_echoes(short_tmp / "s")
        process.send_signal(number)
        assert process.wait(PATIENCE) == code


def test_standard_descriptors_that_are_closed_are_nobodys(echoing: str, short_tmp: Path) -> None:
    script = f"ls -l /proc/self/fd > {short_tmp}/fds; cat"
    command = [
        *("sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', str(EXECUTABLE), echoing),
        *(f"--custom-channel=channelid=128,unixsocket={short_tmp}/s",),
        *(f"--custom-channel=channelid=129,exec=sh -c '{script}'",),
    ]
    process = subprocess.Popen(command)
    with ended(process):
        assert_echoes(short_tmp / "s")
        fds = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in range(3)]
        assert fds == [os.devnull] * 3
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert " 2 -> /dev/null\n" in (short_tmp / "fds").read_text()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_program_gets_end_of_file_and_its_time_to_exit(
    spicebridge: Start, echoing: str, short_tmp: Path
) -> None:
    mark = os.urandom(8).hex()
    script = f"cat >/dev/null; echo done > {short_tmp}/done"
    bridge = spicebridge(
        echoing,
        *("--log-format", "json", "--custom-channel", f"channelid=128,exec=sh -c '{script}'"),
        env={"SPICEBRIDGE_TEST_MARK": mark},
    )
    wait_event(bridge, "linked")
    assert bridge.stop(signal.SIGINT) == 130
    assert (short_tmp / "done").read_text() == "done\n"
    assert not marked(mark)


# The terminal


@contextmanager
def running(*command: str, screen: Screen, **fds: int) -> Iterator[subprocess.Popen[bytes]]:
    process = screen.run(*command, **fds)
    with ended(process):
        yield process


def restored(screen: Screen, before: list[object]) -> None:
    """Whether the terminal is as it was; the pending bit is the kernel's own."""
    now = termios.tcgetattr(screen.slave)
    now[3] &= ~termios.PENDIN
    assert now == before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_terminal_on_stdio_is_given_back_as_it_was(
    echoing: str, number: signal.Signals, code: int
) -> None:
    with Screen() as screen:
        before = termios.tcgetattr(screen.slave)
        fds = {"stdin": screen.slave, "stdout": screen.slave}
        command = (echoing, "--custom-channel", "stdio,channelid=128")
        with running(*command, screen=screen, **fds) as process:
            until("the terminal is quiet", lambda: not echoes(screen))
            screen.type(b"hello")  # no line: what is typed goes at once
            screen.until(b"hello")
            process.send_signal(number)
            screen.until_ended(process)
            assert process.returncode == code
        assert screen.seen.count(b"hello") == 1  # from the guest, not from the terminal's echo
        restored(screen, before)


def echoes(screen: Screen) -> bool:
    return bool(termios.tcgetattr(screen.slave)[3] & termios.ECHO)


def test_a_terminal_is_given_back_when_the_server_goes(spicebridge: Start, short_tmp: Path) -> None:
    server = spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice", "--custom-channel"),
        "channelid=128,exec=cat",
    )
    with Screen() as screen:
        before = termios.tcgetattr(screen.slave)
        fds = {"stdin": screen.slave, "stdout": screen.slave}
        command = (f"spice+unix://{short_tmp}/spice", "--custom-channel", "stdio,channelid=128")
        with running(*command, screen=screen, **fds) as process:
            until("the terminal is quiet", lambda: not echoes(screen))
            server.stop(signal.SIGKILL)
            screen.until_ended(process)
            assert process.returncode == SessionLostError.exit_code
        restored(screen, before)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_link_of_a_pty_is_removed_while_somebody_has_it_open(
    spicebridge: Start, echoing: str, short_tmp: Path, number: signal.Signals, code: int
) -> None:
    link = short_tmp / "tty"
    bridge = spicebridge(
        echoing, "--log-format", "json", "--custom-channel", f"channelid=128,pty={link}"
    )
    fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
    try:
        wait_event(bridge, "linked")
        os.write(fd, b"hello\n")
        assert os.read(fd, 6) == b"hello\n"
        assert bridge.stop(number) == code
    finally:
        os.close(fd)
    assert not link.is_symlink()


@pytest.mark.parametrize("ours", [True, False], ids=["SIGHUP", "no-signal"])
def test_a_terminal_that_goes_takes_the_live_line_alone(
    echoing: str, short_tmp: Path, ours: bool
) -> None:
    """It drains for SIGHUP, if the terminal was the one that it belonged to."""
    master, slave = os.openpty()
    command = ["setsid", "--ctty"] if ours else ["setsid"]
    command += [str(EXECUTABLE), echoing]
    command += [f"--custom-channel=channelid=128,unixsocket={short_tmp}/s"]
    env = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=slave, stderr=slave, env=env)
    os.close(slave)
    with ended(process):
        shown = b""
        while b"waiting" not in shown:
            shown += os.read(master, 65536)
        os.close(master)
        if not ours:
            assert_echoes(short_tmp / "s")
            process.terminate()
        assert process.wait(PATIENCE) == (129 if ours else 0)
    assert not (short_tmp / "s").exists()


def test_o_nonblock_is_not_left_on_what_others_share(echoing: str) -> None:
    """A socket as stdin, as systemd and inetd give one: the flag is everybody's."""
    ours, theirs = socket.socketpair()
    with Screen() as screen, ours, theirs:
        ours.settimeout(PATIENCE)
        fds = {"stdin": theirs.fileno(), "stdout": theirs.fileno()}
        command = (echoing, "--custom-channel", "stdio,channelid=128")
        with running(*command, screen=screen, **fds) as process:
            ours.sendall(b"hello")
            assert read_exactly(ours, 5) == b"hello"
            process.send_signal(signal.SIGTERM)
            screen.until_ended(process)
            assert process.returncode == 0
        assert os.get_blocking(theirs.fileno())
