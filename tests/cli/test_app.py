"""The command line as users write it, and what it shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from spicebridge import ConnectError, __version__
from spicebridge.cli.commands import app
from tests.cli.conftest import PASSWORD, Offered
from tests.cli.tools import (
    Screen,
    connect,
    connect_once_served,
    marked,
    read_exactly,
    run,
    tree,
    until,
    wait_event,
)
from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge

Start = Callable[..., Spicebridge]


def port_names(output: bytes) -> set[str]:
    return {row["port"] for row in json.loads(output) if row["port"]}


# Which command it is


def test_the_version() -> None:
    finished = run("--version")
    assert (finished.code, finished.stdout.decode()) == (0, f"spicebridge {__version__}\n")


def test_help_shows_every_command_and_the_options_of_bridging() -> None:
    finished = run("--help", env={"COLUMNS": "200"})
    assert finished.code == 0
    text = finished.stdout.decode()
    group = typer.main.get_command(app)
    commands = getattr(group, "commands")  # noqa: B009 - of a group, which mypy cannot know
    for name, command in commands.items():
        if command.hidden:
            for param in command.params:
                assert (param.opts[0] if param.opts[0].startswith("-") else "URI") in text
        else:
            assert re.search(rf"^  {name} ", text, re.MULTILINE)
    assert "--version" in text
    assert "spicebridge(1)" in text
    assert "bridge  " not in text.replace("spicebridge", "")


@pytest.mark.parametrize("command", ["list", "serve", "demo"])
def test_each_command_has_its_help(command: str) -> None:
    finished = run(command, "--help")
    assert finished.code == 0
    assert f"spicebridge {command} [OPTIONS]" in finished.stdout.decode()


ORDERS = {
    "uri-last": ["--log-format", "json", "--custom-channel", "{spec}", "{uri}"],
    "uri-first": ["{uri}", "--custom-channel", "{spec}", "--log-format", "json"],
    "uri-between": ["--log-format=json", "{uri}", "--custom-channel={spec}"],
    "flag-first": ["-v", "--log-format", "json", "{uri}", "--custom-channel", "{spec}"],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=[*ORDERS])
def test_without_a_command_it_bridges_however_the_line_is_ordered(
    spicebridge: Start, offered: Offered, short_tmp: Path, order: list[str]
) -> None:
    words = {"uri": offered.uri, "spec": f"unixsocket={short_tmp}/s,port=solo"}
    bridge = spicebridge(*[word.format_map(words) for word in order])
    wait_event(bridge, "ready")
    assert (short_tmp / "s").is_socket()
    assert bridge.stop() == 0


LISTS = {
    "plain": ["list", "--json", "{uri}"],
    "uri-first": ["list", "{uri}", "--json"],
    "flag-before-command": ["-v", "list", "--json", "{uri}"],
    "option-before-command": ["--log-format", "json", "list", "--json", "{uri}"],
    "quiet": ["-q", "list", "--json", "{uri}"],
    "behind-dashes": ["list", "--json", "--", "{uri}"],
}


@pytest.mark.parametrize("args", LISTS.values(), ids=[*LISTS])
def test_options_may_stand_before_a_command(offered: Offered, args: list[str]) -> None:
    finished = run(*[word.format(uri=offered.uri) for word in args])
    assert finished.code == 0, finished
    assert port_names(finished.stdout) == {"alpha.one", "alpha.two", "solo"}


def test_a_value_of_an_option_is_never_taken_for_a_command(short_tmp: Path) -> None:
    """A specification or a file may well be called as a command is."""
    (short_tmp / "list").write_text("secret\n")
    args = ("--password-file", "list", f"spice+unix://{short_tmp}/nobody")
    finished = run(*args, "--custom-channel", f"unixsocket={short_tmp}/s,port=p", cwd=short_tmp)
    assert finished.code == ConnectError.exit_code


# Where the server is


def test_the_uri_may_come_from_the_environment(offered: Offered) -> None:
    finished = run("list", "--json", env={"SPICEBRIDGE_URI": offered.uri})
    assert port_names(finished.stdout) == {"alpha.one", "alpha.two", "solo"}


def test_the_uri_of_the_command_line_comes_first(offered: Offered) -> None:
    finished = run("list", "--json", offered.uri, env={"SPICEBRIDGE_URI": "nonsense"})
    assert finished.code == 0


def test_an_empty_variable_is_as_good_as_none(spicebridge: Start) -> None:
    """Then it is the default, of which only the name is checked here: somebody may serve it."""
    finished = run("list", env={"SPICEBRIDGE_URI": ""})
    assert finished.code == 0 or "127.0.0.1:5900" in finished.stderr


# The password


def test_a_password_file(locked: Offered, short_tmp: Path) -> None:
    for content in (PASSWORD, f"{PASSWORD}\n", f"{PASSWORD}\r\nsecond line\n"):
        (short_tmp / "password").write_text(content, newline="")
        finished = run("list", locked.uri, "--password-file", f"{short_tmp}/password")
        assert finished.code == 0, finished


def test_the_password_in_the_environment(locked: Offered) -> None:
    finished = run("list", locked.uri, env={"SPICEBRIDGE_PASSWORD": PASSWORD})
    assert finished.code == 0, finished


def test_a_password_file_comes_before_the_environment(locked: Offered, short_tmp: Path) -> None:
    (short_tmp / "password").write_text(PASSWORD)
    args = ("list", locked.uri, "--password-file", f"{short_tmp}/password")
    assert run(*args, env={"SPICEBRIDGE_PASSWORD": "wrong"}).code == 0


def test_a_password_command_comes_before_the_environment(locked: Offered) -> None:
    command = f"printf '%s\\nsecond line\\n' {shlex.quote(PASSWORD)}"
    args = ("list", locked.uri, "--password-command", command)
    finished = run(*args, env={"SPICEBRIDGE_PASSWORD": "wrong"})
    assert finished.code == 0, finished
    assert PASSWORD not in finished.stderr


def test_a_password_command_reads_nothing_of_what_is_for_the_guest(
    locked: Offered,
) -> None:
    command = shlex.join(["sh", "-c", f"cat; echo {shlex.quote(PASSWORD)}"])
    words = (locked.uri, "--password-command", command, "--custom-channel")
    with connect(Path(locked.uri.removeprefix("spice+unix://")).with_name("guest")) as guest:
        finished = run(*words, "stdio,channelid=128", stdin=b"for the guest")
        assert finished.code == 0, finished
        assert read_exactly(guest, 13) == b"for the guest"


def test_a_person_at_a_terminal_is_asked_for_the_password(locked: Offered) -> None:
    with Screen() as screen:
        process = subprocess.Popen(
            [EXECUTABLE, "list", "--json", locked.uri],
            stdin=screen.slave,
            stdout=subprocess.PIPE,
            stderr=screen.slave,
            start_new_session=True,  # no /dev/tty: what is asked must be asked here
        )
        try:
            screen.until(b"Password for unix:")
            screen.type(PASSWORD.encode() + b"\n")
            stdout, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert PASSWORD.encode() not in screen.seen
    assert process.returncode == 0
    assert [row["type"] for row in json.loads(stdout)] == ["128"]


# list


def test_list_shows_a_table(offered: Offered) -> None:
    finished = run("list", offered.uri)
    rows = [line.split() for line in finished.stdout.decode().splitlines()]
    assert rows[0] == ["TYPE", "ID", "PORT", "OPEN", "BYTES"]
    assert rows[1:] == [
        ["port", "0", "alpha.one", "no", "0", "bytes"],
        ["port", "1", "alpha.two", "no", "0", "bytes"],
        ["port", "2", "solo", "no", "0", "bytes"],
        ["128", "0", "0", "bytes"],
        ["128", "5", "0", "bytes"],
    ]
    assert finished.stderr == ""


def test_list_shows_which_port_the_guest_has_open_and_which_is_in_use(
    spicebridge: Start, short_tmp: Path
) -> None:
    server = spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice", "--log-format", "json"),
        *("--custom-channel", f"port=a,unixsocket={short_tmp}/guest-a"),
        *("--custom-channel", f"port=b,unixsocket={short_tmp}/guest-b"),
    )
    uri = f"spice+unix://{short_tmp}/spice"
    spec = f"port=b,unixsocket={short_tmp}/b,attach=always"
    (short_tmp / "elsewhere").mkdir(0o700)
    elsewhere = {"XDG_RUNTIME_DIR": f"{short_tmp}/elsewhere"}  # as if another user had started it
    holder = spicebridge(uri, "--log-format", "json", "--custom-channel", spec, env=elsewhere)
    wait_event(holder, "linked")
    with connect(short_tmp / "guest-a"):
        wait_event(server, "app-connected", bridge="port=a")
        first, second = json.loads(run("list", "--json", uri).stdout)
    assert [each.pop("bridge")["pid"] for each in (first, second)] == [server.process.pid] * 2
    common = {"type": "port", "type_number": 10}
    assert first == {**common, "id": 0, "port": "a", "open": True, "busy": False}
    assert second == {**common, "id": 1, "port": None, "open": None, "busy": True}


# How much it says


def said(short_tmp: Path, uri: str, start: Start, *args: str) -> str:
    """What a bridge that is started and stopped says."""
    spec = f"unixsocket={short_tmp}/s,channelid=128"
    bridge = start(uri, *args, "--custom-channel", spec)
    if "-q" not in args:
        until("it has said that it is ready", lambda: "ready" in bridge.stderr())
    assert bridge.stop() == 0
    return bridge.stderr()


def test_it_says_when_it_is_ready(spicebridge: Start, offered: Offered, short_tmp: Path) -> None:
    text = said(short_tmp, offered.uri, spicebridge)
    assert " INFO spicebridge: ready: unix:" in text
    assert "DEBUG" not in text


def test_v_says_more(spicebridge: Start, offered: Offered, short_tmp: Path) -> None:
    assert "DEBUG" in said(short_tmp, offered.uri, spicebridge, "-v")


def test_q_says_nothing(spicebridge: Start, offered: Offered, short_tmp: Path) -> None:
    assert said(short_tmp, offered.uri, spicebridge, "-q") == ""


def test_q_still_says_what_went_wrong() -> None:
    finished = run("-q", "list", "spice://nowhere.invalid:1")
    assert len(finished.errors()) == 1


def test_stdio_says_nothing_that_nobody_asked_for(spicebridge: Start, short_tmp: Path) -> None:
    spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", "channelid=128,exec=cat"),
    )
    finished = run(
        f"spice+unix://{short_tmp}/spice",
        *("--custom-channel", "stdio,channelid=128,linger=0.2"),
        stdin=b"hello",
    )
    assert (finished.code, finished.stdout, finished.stderr) == (0, b"hello", "")


# The live line


CURSOR_UP = b"\x1b[1A"
ERASED = b"\x1b[2K"


def test_on_a_terminal_a_live_line_tells_state_and_bytes_and_vanishes(
    spicebridge: Start, short_tmp: Path
) -> None:
    spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", "channelid=128,exec=cat"),
    )
    uri = f"spice+unix://{short_tmp}/spice"
    spec = f"unixsocket={short_tmp}/s,channelid=128"
    with Screen() as screen:
        process = screen.run(uri, "--custom-channel", spec)
        try:
            screen.until(b"waiting")
            assert b"down 0 bytes" in screen.seen
            with connect(short_tmp / "s") as app:
                app.sendall(b"x" * 2000)
                assert read_exactly(app, 2000) == b"x" * 2000
                screen.until(b"up 2.0 kB")
                assert b"joined" in screen.seen
            process.send_signal(signal.SIGTERM)
            screen.until_ended(process)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0
        drawn = screen.seen.rpartition(b"up 2.0 kB")[2]
        assert ERASED in drawn
        assert b"channelid=128  " not in drawn.rpartition(ERASED)[2]


@pytest.mark.parametrize("args", [("-q",), ("--log-format", "json")], ids=["quiet", "json"])
def test_no_live_line_where_it_was_not_wanted(
    offered: Offered, short_tmp: Path, args: tuple[str, ...]
) -> None:
    spec = f"unixsocket={short_tmp}/s,channelid=128"
    with Screen() as screen:
        process = screen.run(offered.uri, *args, "--custom-channel", spec)
        try:
            connect_once_served(short_tmp / "s").close()
            process.send_signal(signal.SIGTERM)
            screen.until_ended(process)
        finally:
            process.kill()
            process.wait()
        assert b"down " not in screen.seen
        assert b"\x1b" not in screen.seen


def test_no_live_line_nor_any_escape_where_stderr_is_no_terminal(
    spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    text = said(short_tmp, offered.uri, spicebridge)
    assert "\x1b" not in text
    assert "down 0" not in text


# demo


def test_the_demo_moves_bytes_and_shows_equal_digests(short_tmp: Path) -> None:
    finished = run("demo", env={"TMPDIR": str(short_tmp), "COLUMNS": "100"})
    assert (finished.code, finished.stderr) == (0, "")
    lines = finished.stdout.decode().splitlines()
    verdicts = {line.split()[-1] for line in lines[1:] if line.startswith(("channel", "port"))}
    assert verdicts == {"equal"}
    shared = [line.split()[-1] for line in lines if line.startswith("webdav")]
    assert shared == ["equal"] * 3
    assert "spicebridge demo --keep" in finished.stdout.decode()
    assert tree(short_tmp) == set()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_demo_stays_up_on_demand_until_a_signal(
    short_tmp: Path, number: signal.Signals, code: int
) -> None:
    mark = os.urandom(8).hex()
    process = subprocess.Popen(
        [EXECUTABLE, "demo", "--keep"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(short_tmp), "SPICEBRIDGE_TEST_MARK": mark},
    )
    with process:
        assert process.stdout
        assert process.stderr
        try:
            shown = b""
            while b"Ctrl-C ends it" not in shown:
                shown += process.stdout.readline()
            (folder,) = short_tmp.iterdir()
            assert str(folder).encode() in shown
            with connect(folder / "echo") as app:
                app.sendall(b"hello")
                assert read_exactly(app, 5) == b"hello"
            with connect(folder / "guest-port") as guest, connect(folder / "app-port") as app:
                guest.sendall(b"down")
                assert read_exactly(app, 4) == b"down"
                app.sendall(b"up")
                assert read_exactly(guest, 2) == b"up"
            uri = f"spice+unix://{folder}/spice"
            assert "org.spicebridge.demo.echo" in port_names(run("list", "--json", uri).stdout)
            process.send_signal(number)
            assert process.wait(PATIENCE) == code
            assert process.stderr.read() == b""
        finally:
            process.kill()
    assert tree(short_tmp) == set()
    assert not marked(mark)
