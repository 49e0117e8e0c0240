"""The monitors of a real QEMU as ports, through sockets and through stdin and stdout."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import EXECUTABLE
from tests.peers.processes import PeerError, peak_rss_kib, wait_until
from tests.peers.qemu import HMP_PORT, QMP_PORT, Qemu
from tests.peers.qmp_client import QmpClient
from tests.real.tools import (
    JSON_LOG,
    Start,
    communicate,
    connection,
    events,
    list_rows,
    listing,
    one_line,
    receive,
    receive_to_end,
    receive_until,
    wait_event,
)

pytestmark = pytest.mark.real_peer

PASSWORD = "correct horse, battery staple"
PROMPT = b"(qemu) "
LEAVINGS = 20
DUMP = "xp /100000xb 0"
DUMP_SIZE = 700_000
SMALL_DUMP = "xp /14000xb 0"
"""Dumps of the machine's memory, as long as the picture of a small screen."""


@pytest.fixture(params=["tcp", "unix"])
def qemu(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[Qemu]:
    with qemu_that_survives(short_tmp, unix=request.param == "unix") as running:
        yield running


@pytest.fixture
def tcp_qemu(short_tmp: Path) -> Iterator[Qemu]:
    with qemu_that_survives(short_tmp) as running:
        yield running


@pytest.fixture
def locked_qemu(short_tmp: Path) -> Iterator[Qemu]:
    with qemu_that_survives(short_tmp, password=PASSWORD) as running:
        yield running


@contextmanager
def qemu_that_survives(
    folder: Path, *, unix: bool = False, password: str | None = None
) -> Iterator[Qemu]:
    """A QEMU that has to be alive at the end of the test, too."""
    with Qemu(folder, unix=unix, password=password) as running:
        yield running
        assert_alive(running)


def assert_alive(qemu: Qemu) -> None:
    try:
        status = qemu.qmp("query-status")["status"]
    except (OSError, RuntimeError) as error:
        raise qemu.process.error(f"QEMU has not survived: {error}") from error
    assert status == "prelaunch"


def human(answer: bytes, command: str) -> str:
    """What the human monitor has answered, less its banner, the echo and the prompt."""
    assert answer.startswith(b"QEMU ")
    assert answer.endswith(PROMPT)
    text = answer.removesuffix(PROMPT).decode().replace("\r\n", "\n")
    # readline repeats the line after each letter that it echoes
    _, _, after = text.rpartition(f"{command}\x1b[K\n")
    return after


def ask(sock: socket.socket, *commands: str) -> None:
    """Send QMP commands without arguments, all at once."""
    sock.sendall(b"".join(json.dumps({"execute": each}).encode() for each in commands))


def unread(sock: socket.socket) -> int:
    """How many bytes wait to be read."""
    size = fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
    return int.from_bytes(size, sys.byteorder)


def stdio(
    spicebridge: Start, qemu: Qemu, commands: bytes, port: str, *, more: str = ""
) -> tuple[bytes, int, str]:
    """What `spicebridge` prints for commands on its stdin, its exit code and its stderr."""
    running = spicebridge(
        qemu.uri,
        "--custom-channel",
        f"stdio,port={port}{more}",
        ready=False,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    output = communicate(running, commands)
    return output, running.wait(), running.stderr()


# Through stdio


def test_printf_info_status_prints_the_whole_answer(qemu: Qemu, spicebridge: Start) -> None:
    output, code, stderr = stdio(spicebridge, qemu, b"info status\n", HMP_PORT)
    assert human(output, "info status") == qemu.hmp("info status").replace("\r\n", "\n")
    assert (code, stderr) == (0, "")


def test_the_command_line_of_the_documentation_works_in_a_shell(tcp_qemu: Qemu) -> None:
    script = 'printf "info status\\n" | "$0" "$1" --custom-channel stdio,port=' + HMP_PORT
    done = subprocess.run(
        ["sh", "-c", script, EXECUTABLE, tcp_qemu.uri],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert b"VM status: paused" in done.stdout
    assert done.stdout.endswith(PROMPT)
    assert (done.returncode, done.stderr) == (0, b"")


def test_several_lines_on_stdin_are_all_answered(tcp_qemu: Qemu, spicebridge: Start) -> None:
    output, code, _ = stdio(spicebridge, tcp_qemu, b"info name\ninfo status\ninfo kvm\n", HMP_PORT)
    assert code == 0
    assert output.count(PROMPT) >= 4
    assert output.endswith(PROMPT)
    assert human(output, "info kvm") == tcp_qemu.hmp("info kvm").replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["info qom-tree", DUMP])
def test_a_long_answer_of_the_human_monitor_is_whole_on_stdout(
    qemu: Qemu, spicebridge: Start, command: str
) -> None:
    output, code, stderr = stdio(spicebridge, qemu, f"{command}\n".encode(), HMP_PORT)
    assert human(output, command) == qemu.hmp(command).replace("\r\n", "\n")
    assert len(output) > (DUMP_SIZE if command == DUMP else 3000)
    assert (code, stderr) == (0, "")


def test_long_answers_of_qmp_are_whole_on_stdout(qemu: Qemu, spicebridge: Start) -> None:
    commands = ["qmp_capabilities", "qom-list-types", "query-cpu-definitions"]
    data = b"".join(json.dumps({"execute": each}).encode() + b"\n" for each in commands)
    output, code, stderr = stdio(spicebridge, qemu, data, QMP_PORT)
    greeting, negotiated, *answers = map(json.loads, output.splitlines())
    assert "QMP" in greeting
    assert negotiated == {"return": {}}
    assert answers == [{"return": qemu.qmp(each)} for each in commands[1:]]
    assert (code, stderr) == (0, "")


def test_stdout_of_a_verbose_run_holds_data_only(tcp_qemu: Qemu, spicebridge: Start) -> None:
    running = spicebridge(
        tcp_qemu.uri,
        "--custom-channel",
        f"stdio,port={QMP_PORT}",
        "-vv",
        *JSON_LOG,
        ready=False,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    lines = communicate(running, b'{"execute": "qmp_capabilities"}').splitlines()
    assert running.wait() == 0
    assert [list(json.loads(line)) for line in lines] == [["QMP"], ["return"]]
    assert events(running, "app-gone")
    assert events(running, "unlinked")


def test_quit_through_stdio_ends_qemu_and_then_spicebridge(
    short_tmp: Path, spicebridge: Start
) -> None:
    with Qemu(short_tmp) as qemu:
        output, code, stderr = stdio(spicebridge, qemu, b"quit\n", HMP_PORT, more=",linger=30")
        assert qemu.process.popen.wait(10) == 0
    assert output.startswith(b"QEMU ")
    assert (code, stderr) == (0, "")  # all was sent, and all that came was printed


# Through a socket


def test_qmp_handshake_and_query_status_through_a_socket(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}", *JSON_LOG
    )
    with connection(path) as sock, QmpClient(sock) as client:
        assert client.greeting["version"] == qemu.qmp("query-version")
        assert client.execute("query-status") == qemu.qmp("query-status")
        assert client.execute("qom-list-types") == qemu.qmp("qom-list-types")
    assert wait_event(running, "app-gone")["down"] > 30_000
    assert running.stop() == 0
    assert not path.exists()


def test_answers_of_100_kb_arrive_whole_ten_times(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    spicebridge(qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}")
    expected = qemu.hmp(SMALL_DUMP)
    assert len(expected) > 100_000
    with connection(path) as sock, QmpClient(sock) as client:
        for _ in range(10):
            assert client.hmp(SMALL_DUMP) == expected


def test_an_answer_that_qemu_gives_in_parts_arrives_whole(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    """QEMU 7.2 gives its SPICE server 64 KiB of one answer of QMP, and as much again whenever it
    has taken a command; spice-client-glib, too, waits for ever for the rest of such an answer."""
    path = short_tmp / "s"
    spicebridge(qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}")
    with connection(path) as sock, sock.makefile("rb") as lines:
        ask(sock, "qmp_capabilities", "query-qmp-schema", *["query-name"] * 10)
        answers = [json.loads(lines.readline()) for _ in range(13)]
    assert answers[2]["return"] == qemu.qmp("query-qmp-schema")
    assert answers[3:] == [{"return": {}}] * 10


def test_an_application_that_reads_late_gets_a_large_answer_whole(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    """It is larger than the buffers of the sockets, so that the bridge has to wait for it."""
    path = short_tmp / "s"
    running = spicebridge(
        qemu.uri, "--custom-channel", f"port={HMP_PORT},unixsocket={path}", *JSON_LOG
    )
    expected = qemu.hmp(DUMP).replace("\r\n", "\n")
    with connection(path) as sock:
        wait_event(running, "linked")
        sock.sendall(f"{DUMP}\n".encode())
        pid = running.process.pid
        try:
            wait_until(lambda: unread(sock) > 20_000, what="the bridge does not write")
        except PeerError as error:
            stuck = subprocess.run(
                ["ss", "-Htnpm"], capture_output=True, text=True, check=False
            ).stdout
            raise PeerError(
                f"{error}: {unread(sock)} bytes came; {stuck}; {running.stderr()}"
            ) from error
        assert_alive(qemu)
        answer = receive_until(sock, b"\r\n" + PROMPT)
        assert human(answer, DUMP) == expected
        assert peak_rss_kib(pid) < 80 * 1024


def test_the_human_monitor_through_a_socket_greets_every_application(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        qemu.uri, "--custom-channel", f"port={HMP_PORT},unixsocket={path}", *JSON_LOG
    )
    expected = qemu.hmp("info qtree").replace("\r\n", "\n")
    for number in range(1, 4):
        with connection(path) as sock:
            greeting = receive_until(sock, PROMPT)
            assert greeting.startswith(b"QEMU ")
            sock.sendall(b"info qtree\n")
            answer = receive_until(sock, b"\n" + PROMPT)
            assert human(greeting + answer, "info qtree") == expected
        wait_event(running, "unlinked", count=number)


def test_both_monitors_at_once_in_one_process(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    qmp, hmp = short_tmp / "q", short_tmp / "h"
    spicebridge(
        qemu.uri,
        "--custom-channel",
        f"port={QMP_PORT},unixsocket={qmp}",
        "--custom-channel",
        f"port={HMP_PORT},unixsocket={hmp}",
    )
    with connection(hmp) as human_socket, connection(qmp) as sock, QmpClient(sock) as client:
        receive_until(human_socket, PROMPT)
        human_socket.sendall(b"info version\n")
        assert b"7." in receive_until(human_socket, b"\n" + PROMPT)
        assert client.execute("query-status")["status"] == "prelaunch"


@pytest.mark.parametrize("pattern", ["*.qmp.*", "org.qemu.monitor.q?p.0", "org.*.[q]mp.0"])
def test_a_wildcard_names_the_port(
    tcp_qemu: Qemu, spicebridge: Start, short_tmp: Path, pattern: str
) -> None:
    path = short_tmp / "s"
    spicebridge(tcp_qemu.uri, "--custom-channel", f"port={pattern},unixsocket={path}")
    with connection(path) as sock, QmpClient(sock) as client:
        assert client.execute("query-status")["status"] == "prelaunch"


def test_a_wildcard_that_two_ports_match_lists_them(tcp_qemu: Qemu, spicebridge: Start) -> None:
    output, code, stderr = stdio(spicebridge, tcp_qemu, b"", "org.qemu.*")
    assert (output, code) == (b"", 6)
    assert len(stderr.splitlines()) == 1
    assert HMP_PORT in stderr
    assert QMP_PORT in stderr


def test_a_busy_port_refuses_a_second_application_and_serves_the_first(
    tcp_qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        tcp_qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}", *JSON_LOG
    )
    with connection(path) as first, QmpClient(first) as client:
        with connection(path) as second:
            assert receive_to_end(second) == b""
        refused = wait_event(running, "app-refused")
        assert f"pid {os.getpid()}" in refused["holder"]
        assert client.execute("query-status")["status"] == "prelaunch"


# Logging in


def test_a_password_file_opens_a_locked_qemu(
    locked_qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    file = short_tmp / "password"
    file.write_text(f"{PASSWORD}\n")
    path = short_tmp / "s"
    spicebridge(
        locked_qemu.uri,
        "--custom-channel",
        f"port={QMP_PORT},unixsocket={path}",
        "--password-file",
        str(file),
    )
    with connection(path) as sock, QmpClient(sock) as client:
        assert client.execute("query-status")["status"] == "prelaunch"


def test_the_password_variable_opens_a_locked_qemu(locked_qemu: Qemu, spicebridge: Start) -> None:
    running = spicebridge(
        locked_qemu.uri,
        "--custom-channel",
        f"stdio,port={HMP_PORT}",
        ready=False,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"SPICEBRIDGE_PASSWORD": PASSWORD},
    )
    assert b"VM status: paused" in communicate(running, b"info status\n")
    assert running.wait() == 0
    rows = list_rows(locked_qemu.uri, env={"SPICEBRIDGE_PASSWORD": PASSWORD})
    assert {row["port"] for row in rows} >= {HMP_PORT, QMP_PORT}


@pytest.mark.parametrize("given", ["wrong", "", None])
def test_a_wrong_password_and_none_end_with_5(
    locked_qemu: Qemu, spicebridge: Start, short_tmp: Path, given: str | None
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        locked_qemu.uri,
        "--custom-channel",
        f"port={QMP_PORT},unixsocket={path}",
        ready=False,
        env={} if given is None else {"SPICEBRIDGE_PASSWORD": given},
    )
    assert running.wait() == 5
    line = one_line(running)
    assert PASSWORD not in line
    assert not path.exists()


# Listing


def test_list_agrees_with_what_qemu_offers(qemu: Qemu) -> None:
    rows = list_rows(qemu.uri)
    assert {row["port"] for row in rows if row["type"] == "port"} == {HMP_PORT, QMP_PORT}
    chardevs = {each["filename"] for each in qemu.qmp("query-chardev")}
    assert sum("spiceport" in each for each in chardevs) <= 2
    ports = [row for row in rows if row["type"] == "port"]
    assert [row["id"] for row in ports] == [0, 1]
    for row in ports:
        assert (row["type_number"], row["open"], row["busy"]) == (10, True, False)
    for row in rows:
        if row["type"] != "port":
            assert (row["port"], row["open"]) == (None, None)


def test_the_table_says_the_same_as_the_json(qemu: Qemu) -> None:
    rows = list_rows(qemu.uri)
    head, *lines = [line.split() for line in listing(qemu.uri).splitlines()]
    assert head == ["TYPE", "ID", "PORT", "OPEN"]
    expected = [
        [row["type"], str(row["id"]), *([row["port"], "yes"] if row["port"] else [])]
        for row in rows
    ]
    assert lines == expected


def test_list_shows_usbredir(short_tmp: Path) -> None:
    with Qemu(short_tmp, usbredir=True) as qemu:
        rows = list_rows(qemu.uri)
        assert ("usbredir", 9, 0) in [(row["type"], row["type_number"], row["id"]) for row in rows]
        assert_alive(qemu)


# Being survived


def test_qemu_survives_being_listed(qemu: Qemu) -> None:
    for _ in range(5):
        assert len([row for row in list_rows(qemu.uri) if row["type"] == "port"]) == 2
        assert_alive(qemu)


@pytest.mark.parametrize("port", [HMP_PORT, QMP_PORT])
def test_qemu_survives_applications_that_come_and_go(
    tcp_qemu: Qemu, spicebridge: Start, short_tmp: Path, port: str
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        tcp_qemu.uri, "--custom-channel", f"port={port},unixsocket={path}", *JSON_LOG
    )
    request = b"info qtree\n" if port == HMP_PORT else b'{"execute": "qmp_capabilities"}'
    for number in range(1, LEAVINGS + 1):
        with connection(path) as sock:
            if number % 4 == 0:  # leaves after a question
                sock.sendall(request)
            elif number % 4 == 1:  # hears a bit, asks and leaves
                receive(sock, 10)
                sock.sendall(request)
            elif number % 4 == 2:  # waits for what it is told at the start, and leaves
                receive_until(sock, PROMPT if port == HMP_PORT else b"\r\n")
            # the fourth leaves at once
        wait_event(running, "app-gone", count=number)
        assert_alive(tcp_qemu)
    with connection(path) as sock:
        assert receive(sock, 4) in {b"QEMU", b'{"QM'}
    assert running.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_qemu_survives_a_signal_in_the_middle_of_an_answer(
    qemu: Qemu, spicebridge: Start, short_tmp: Path, number: signal.Signals
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}", *JSON_LOG
    )
    with connection(path) as sock:
        ask(sock, "qmp_capabilities", *["query-qmp-schema"] * 20)
        receive(sock, 100_000)
        code = running.stop(number)
        assert_alive(qemu)
    assert code == (0 if number is signal.SIGTERM else 130)
    assert not path.exists()
    # and it serves the next one
    assert len(list_rows(qemu.uri)) >= 2


def test_qemu_survives_the_death_of_spicebridge(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    """Nothing that we do can help here; QEMU has to have read all that was sent, and has."""
    path = short_tmp / "s"
    running = spicebridge(qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}")
    with connection(path) as sock, QmpClient(sock) as client:
        client.execute("query-status")
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    assert_alive(qemu)
    again = spicebridge(qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}")
    with connection(path) as sock, QmpClient(sock) as client:
        client.execute("query-status")
    assert again.stop() == 0


def test_a_new_session_throws_the_old_one_out(
    qemu: Qemu, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(qemu.uri, "--custom-channel", f"port={QMP_PORT},unixsocket={path}", "-q")
    with connection(path) as sock, QmpClient(sock) as client:
        client.execute("query-status")
        list_rows(qemu.uri, env={"XDG_RUNTIME_DIR": str(short_tmp)})  # as another user would
        assert receive_to_end(sock).endswith((b"", b"\r\n"))
        assert running.wait() == 8
    assert one_line(running)
    assert not path.exists()


def test_the_end_of_qemu_ends_the_bridge_with_one_line(short_tmp: Path, spicebridge: Start) -> None:
    path = short_tmp / "s"
    with Qemu(short_tmp) as qemu:
        running = spicebridge(
            qemu.uri, "--custom-channel", f"port={HMP_PORT},unixsocket={path}", "-q"
        )
        with connection(path) as sock:
            receive_until(sock, PROMPT)
            sock.sendall(b"quit\n")
            receive_to_end(sock)
        assert running.wait() == 8
        assert one_line(running)
        assert qemu.process.popen.wait(10) == 0
    assert not path.exists()


def test_a_tcp_reset_of_the_application_is_an_end_like_any_other(
    tcp_qemu: Qemu, spicebridge: Start
) -> None:
    host = f"127.78.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
    with socket.create_server((host, 0)) as probe:
        port = probe.getsockname()[1]
    running = spicebridge(
        tcp_qemu.uri, "--custom-channel", f"port={HMP_PORT},tcp={host}:{port}", *JSON_LOG
    )
    for number in range(1, 4):
        with socket.create_connection((host, port), 30) as sock:
            receive(sock, 10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_event(running, "app-gone", count=number)
        assert_alive(tcp_qemu)
    assert running.stop() == 0
    assert not events(running, "error")
