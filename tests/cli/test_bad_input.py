"""Every refusal is one line on stderr with its own exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from spicebridge import (
    ApplicationError,
    ChannelBusyError,
    ChannelNotFoundError,
    ChannelType,
    ConnectError,
    EndpointError,
    LinkRefusedError,
    LoginError,
    ProtocolError,
    SessionLostError,
    UsageError,
)
from spicebridge.cli.app import main
from spicebridge.protocol.constants import LinkErr, Msg
from tests.cli.conftest import PASSWORD, Offered
from tests.cli.fake_server import (
    fake_server,
    link_client_of,
    message,
    serving,
    spice,
    until_gone,
)
from tests.cli.tools import Finished, connect, run, tree, wait_event
from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge

Refused = Callable[..., str]
Start = Callable[..., Spicebridge]

USAGE = UsageError.exit_code
ENDPOINT = EndpointError.exit_code


@pytest.fixture
def refused(short_tmp: Path) -> Refused:
    """Runs the executable, which must refuse; returns the one line that says why.

    Arguments are those of `run`, and: `code`, the exit code; `says`, words of the line;
    `started`, whether it may have logged more before.
    """

    def check(
        *args: str,
        code: int,
        says: tuple[str, ...] = (),
        started: bool = False,
        **more: object,
    ) -> str:
        before = tree(short_tmp)
        finished = run(*args, **more)  # type: ignore[arg-type]
        assert finished.code == code, finished
        assert "Traceback" not in finished.stderr
        errors = finished.errors()
        assert len(errors) == 1, finished.stderr
        if not started:
            assert len(finished.stderr.splitlines()) == 1, finished.stderr
        assert finished.stdout == b""
        for words in says:
            assert words in errors[0]
        assert tree(short_tmp) == before
        return errors[0]

    return check


@pytest.fixture
def refused_here(short_tmp: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """As `refused`, in this process: a process for each row of a long table would take minutes."""

    def check(*args: str, code: int, says: tuple[str, ...] = ()) -> str:
        before = tree(short_tmp)
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        out, err = capfd.readouterr()
        finished = Finished(cast("int", ended.value.code), out.encode(), err)
        assert finished.code == code, finished
        (error,) = finished.errors()
        assert len(err.splitlines()) == 1
        assert out == ""
        for words in says:
            assert words in error
        assert tree(short_tmp) == before
        return error

    return check


def nowhere(folder: Path) -> str:
    """A server that would be asked only after a mistake was overlooked."""
    return f"spice+unix://{folder}/nobody"


# What is wrong in itself


SPECS = {
    "unknown-key": ("unixsocke={tmp}/s,channelid=128", "'unixsocke'", "did you mean unixsocket?"),
    "doubled-key": ("unixsocket={tmp}/s,channelid=128,channelid=129", "channelid= is given twice"),
    "no-endpoint": ("channelid=128", "has no local end", "unixsocket"),
    "two-endpoints": ("unixsocket={tmp}/s,stdio,channelid=128", "2 local ends (unixsocket, stdio)"),
    "empty-exec": ("exec=,channelid=128", "exec= has no value"),
    "channelid-0": ("stdio,channelid=0", "channelid=0", "128 to 255"),
    "channelid-1": ("stdio,channelid=1", "channelid=1", "128 to 255"),
    "channelid-12": ("stdio,channelid=12", "channelid=12", "128 to 255"),
    "channelid-127": ("stdio,channelid=127", "channelid=127", "128 to 255"),
    "channelid-256": ("stdio,channelid=256", "channelid=256", "128 to 255"),
    "channelid-negative": ("stdio,channelid=-1", "channelid=-1", "128 to 255"),
    "channelid-word": ("stdio,channelid=abc", "channelid=abc", "webdav", "usbredir"),
    "perm-999": ("unixsocket={tmp}/s,channelid=128,perm=999", "perm=999", "octal"),
    "mode": ("unixsocket={tmp}/s,channelid=128,mode=foo", "mode=foo", "listen or connect"),
    "attach": ("unixsocket={tmp}/s,channelid=128,attach=foo", "attach=foo", "demand or always"),
    "linger-negative": ("stdio,channelid=128,linger=-1", "linger=-1"),
    "demux-stdio": ("stdio,channelid=128,demux=on", "stdio is one application", "demux=off"),
    "webdav-pipe": ("pipe={tmp}/p,channelid=webdav", "pipe is one application", "demux=off"),
    "buffer-raw": ("unixsocket={tmp}/s,channelid=128,buffer=1M", "buffer= is for", "demux=on"),
    "attach-demux": ("unixsocket={tmp}/s,channelid=webdav,attach=always", "attach=", "leave"),
    "readonly": ("unixsocket={tmp}/s,channelid=webdav,readonly=on", "readonly=", "for share"),
}

MORE_SPECS = {
    "unknown-key-onclose": ("stdio,channelid=128,onclose=keep", "'onclose'", "on-close?"),
    "unknown-bare-key": ("stdioo,channelid=128", "'stdioo'", "did you mean stdio?"),
    "doubled-end": ("unixsocket={tmp}/s,unixsocket={tmp}/t,channelid=128", "unixsocket= is given"),
    "no-channel": ("unixsocket={tmp}/s", "names no channel", "channelid=128"),
    "two-channels": ("unixsocket={tmp}/s,channelid=128,port=x", "two channels"),
    "port-and-instance": ("unixsocket={tmp}/s,port=x,instance=1", "two channels"),
    "empty-part": ("unixsocket={tmp}/s,channelid=128,", "empty part"),
    "empty": ("", "empty part"),
    "no-value": ("unixsocket=,channelid=128", "unixsocket= has no value"),
    "no-value-bare": ("unixsocket,channelid=128", "unixsocket= has no value"),
    "stdio-value": ("stdio=on,channelid=128", "stdio takes no value"),
    "channelid-huge": ("stdio,channelid=" + "9" * 5000, "channelid=999", "128 to 255"),
    "channelid-main": ("stdio,channelid=main", "channelid=main"),
    "channelid-upper": ("stdio,channelid=PORT", "channelid=PORT"),
    "channelid-digits": ("stdio,channelid=\u0661\u0662\u0668", "128 to 255"),
    "instance-256": ("stdio,channelid=128,instance=256", "instance=256", "0 to 255"),
    "instance-negative": ("stdio,channelid=128,instance=-1", "instance=-1"),
    "instance-word": ("stdio,channelid=128,instance=first", "instance=first"),
    "instance-huge": ("stdio,channelid=128,instance=" + "9" * 5000, "instance=999"),
    "perm-wide": ("unixsocket={tmp}/s,channelid=128,perm=1777", "perm=1777", "0777"),
    "perm-python": ("unixsocket={tmp}/s,channelid=128,perm=0o600", "perm=0o600"),
    "perm-tcp": ("tcp=127.0.0.1:0,channelid=128,perm=600", "perm= does not go with tcp"),
    "perm-connect": ("unixsocket={tmp}/s,mode=connect,channelid=128,perm=600", "mode=connect"),
    "mode-stdio": ("stdio,channelid=128,mode=listen", "mode= does not go with stdio"),
    "on-close": ("unixsocket={tmp}/s,channelid=128,on-close=foo", "on-close=foo", "eof or keep"),
    "linger-nan": ("stdio,channelid=128,linger=nan", "linger=nan"),
    "linger-inf": ("stdio,channelid=128,linger=inf", "linger=inf"),
    "linger-word": ("stdio,channelid=128,linger=long", "linger=long"),
    "linger-pty": ("pty,channelid=128,linger=1", "linger= does not go with pty"),
    "demux": ("unixsocket={tmp}/s,channelid=128,demux=yes", "demux=yes", "on or off"),
    "demux-pty": ("pty,channelid=128,demux=on", "pty is one application"),
    "demux-fd": ("fd=5,channelid=webdav", "fd is one application"),
    "stall-off": ("unixsocket={tmp}/s,channelid=webdav,demux=off,stall=1", "stall= is for streams"),
    "stall-nan": ("unixsocket={tmp}/s,channelid=webdav,stall=nan", "stall=nan"),
    "stall-negative": ("unixsocket={tmp}/s,channelid=webdav,stall=-1", "stall=-1"),
    "buffer-0": ("unixsocket={tmp}/s,channelid=webdav,buffer=0", "buffer=0", "buffer=1M"),
    "buffer-huge": ("unixsocket={tmp}/s,channelid=webdav,buffer=2G", "buffer=2G"),
    "buffer-unit": ("unixsocket={tmp}/s,channelid=webdav,buffer=1MB", "buffer=1MB"),
    "buffer-digits": ("unixsocket={tmp}/s,channelid=webdav,buffer=" + "9" * 5000, "buffer=999"),
    "max-streams-0": ("unixsocket={tmp}/s,channelid=webdav,max-streams=0", "from 1 to 65536"),
    "max-streams-huge": ("unixsocket={tmp}/s,channelid=webdav,max-streams=65537", "65536"),
    "on-close-demux": ("tcp=:80,channelid=128,demux=on,on-close=keep", "on-close="),
    "share-raw": ("share={tmp},channelid=webdav,demux=off", "share= serves streams"),
    "share-two-ends": ("share={tmp},stdio,channelid=webdav", "2 local ends"),
    "share-no-channel": ("share={tmp}", "names no channel"),
    "readonly-word": ("share={tmp},channelid=webdav,readonly=yes", "readonly=yes", "off or on"),
    "perm-demux": ("unixsocket={tmp}/s,channelid=webdav,perm=600", "perm=", "mode=connect"),
    "tcp-no-port": ("tcp=localhost,channelid=128", "'localhost' is not HOST:PORT"),
    "tcp-port-high": ("tcp=127.0.0.1:65536,channelid=128", "65535"),
    "tcp-port-huge": ("tcp=127.0.0.1:" + "9" * 5000 + ",channelid=128", "65535"),
    "tcp-v6": ("tcp=::1:5000,channelid=128", "[ADDRESS]:PORT"),
    "fd-word": ("fd=abc,channelid=128", "fd=abc"),
    "fd-negative": ("fd=-1,channelid=128", "fd=-1"),
}


@pytest.mark.parametrize(("spec", "says"), [(s[0], s[1:]) for s in SPECS.values()], ids=[*SPECS])
def test_a_specification_that_cannot_be_taken(
    refused: Refused, short_tmp: Path, spec: str, says: tuple[str, ...]
) -> None:
    spec = spec.replace("{tmp}", str(short_tmp))
    refused(nowhere(short_tmp), "--custom-channel", spec, code=USAGE, says=says)


@pytest.mark.parametrize(
    ("spec", "says"), [(s[0], s[1:]) for s in MORE_SPECS.values()], ids=[*MORE_SPECS]
)
def test_more_specifications_that_cannot_be_taken(
    refused_here: Refused, short_tmp: Path, spec: str, says: tuple[str, ...]
) -> None:
    spec = spec.replace("{tmp}", str(short_tmp))
    refused_here(nowhere(short_tmp), "--custom-channel", spec, code=USAGE, says=says)


SPEC = ("--custom-channel", "stdio,channelid=128")

TWO = ("--listen", "127.0.0.1:0", "--custom-channel")

LINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing-to-bridge": ((), ("nothing to bridge", "--custom-channel")),
    "nothing-to-serve": (("serve",), ("nothing to serve", "--custom-channel")),
    "unknown-option": (("--custom-chanel", "x"), ("--custom-chanel",)),
    "option-without-value": (("--custom-channel",), ("--custom-channel",)),
    "two-uris": (("spice://a:1", "spice://b:1", *SPEC), ("spice://b:1",)),
    "unknown-command": (("lst", *SPEC), ("'lst' is no SPICE URI", "spice://HOST:PORT")),
    "log-format": (("--log-format", "yaml", *SPEC), ("yaml", "json")),
    "ready-fd-word": (("--ready-fd", "x", *SPEC), ("--ready-fd",)),
    "ready-fd-0": (("--ready-fd", "0", *SPEC), ("--ready-fd",)),
    "reconnect-too-often": (("--reconnect=0.1", *SPEC), ("--reconnect", "0.2")),
    "reconnect-nan": (("--reconnect=nan", *SPEC), ("--reconnect", "0.2")),
    "reconnect-word": (("--reconnect=x", *SPEC), ("--reconnect", "number")),
    "reconnect-nothing": (("--reconnect=", *SPEC), ("--reconnect", "number")),
    "reconnect-apart": (("--reconnect", "5", *SPEC), ("'5' is no SPICE URI",)),
    "reconnect-list": (("list", "--reconnect"), ("--reconnect",)),
    "reconnect-serve": (("serve", "--reconnect=5", *SPEC), ("--reconnect",)),
    "takeover-limit-negative": (("--takeover-limit=-1", *SPEC), ("--takeover-limit", "0")),
    "takeover-limit-word": (("--takeover-limit=never", *SPEC), ("--takeover-limit", "integer")),
    "idle-timeout-0": (("--idle-timeout=0", *SPEC), ("--idle-timeout",)),
    "stdio-twice": ((*SPEC, "--custom-channel", "stdio,port=x"), ("stdio is asked for twice",)),
    "serve-stdio-twice": (
        ("serve", *SPEC, "--custom-channel", "stdio,port=x"),
        ("stdio is asked for twice",),
    ),
    "serve-listen": (("serve", "--listen", "nowhere", *SPEC), ("'nowhere' is not HOST:PORT",)),
    "serve-listen-no-path": (("serve", "--listen", "unix:", *SPEC), ("unix:",)),
    "serve-wildcard": (
        ("serve", "--listen", "127.0.0.1:0", "--custom-channel", "stdio,port=a*"),
        ("port=a*", "without wildcards"),
    ),
    "serve-port-twice": (
        ("serve", *TWO, "exec=cat,port=a", "--custom-channel=stdio,port=a"),
        ("port=a is offered twice",),
    ),
    "serve-channel-twice": (
        (
            "serve",
            *TWO,
            "exec=cat,channelid=128,instance=3",
            "--custom-channel=stdio,channelid=128,instance=3",
        ),
        ("the same type and instance",),
    ),
    "serve-demux-exec": (("serve", *TWO, "exec=cat,channelid=webdav"), ("listening socket",)),
    "serve-demux-share": (("serve", *TWO, "share=/srv,channelid=128"), ("listening socket",)),
    "serve-demux-connect": (
        ("serve", *TWO, "unixsocket=/x,mode=connect,channelid=webdav"),
        ("listening socket", "mode=listen"),
    ),
    "share-nothing": (("--share", ""), ("share= has no value",)),
    "share-twice": (("--share", "/", "--share"), ("--share",)),
    "list-option-of-bridge": (("list", *SPEC), ("--custom-channel",)),
    "password-file-missing": (("--password-file", "/nonexistent/p", *SPEC), ("No such file",)),
    "password-file-folder": (("--password-file", "/", *SPEC), ("--password-file /", "directory")),
    "password-twice": (
        ("--password-file", "/p", "--password-command", "pass", *SPEC),
        ("both given",),
    ),
    "password-command-missing": (
        ("--password-command", "/nonexistent/pass", *SPEC),
        ("/nonexistent/pass", "No such file"),
    ),
    "password-command-unclosed": (("--password-command", "echo 'x", *SPEC), ("quotation",)),
    "password-command-nothing": (("--password-command", " ", *SPEC), ("names no program",)),
}


@pytest.mark.parametrize(("args", "says"), LINES.values(), ids=[*LINES])
def test_a_command_line_that_cannot_be_taken(
    refused_here: Refused, args: tuple[str, ...], says: tuple[str, ...]
) -> None:
    refused_here(*args, code=USAGE, says=says)


URIS = {
    "empty": "",
    "no-scheme": "127.0.0.1:5900",
    "http": "http://127.0.0.1:5900",
    "tls-no-port": "spice+tls://127.0.0.1",
    "no-host": "spice://:5900",
    "no-port": "spice://127.0.0.1",
    "port-0": "spice://127.0.0.1:0",
    "port-high": "spice://127.0.0.1:65536",
    "port-word": "spice://127.0.0.1:abc",
    "port-negative": "spice://127.0.0.1:-1",
    "path": "spice://127.0.0.1:5900/vm",
    "query-twice": "spice://127.0.0.1?port=5900&port=5901",
    "query-other": "spice://127.0.0.1?pork=5900",
    "fragment": "spice://127.0.0.1:5900#x",
    "v6-open": "spice://[::1:5900",
    "v6-bare": "spice://::1:5900",
    "v6-none": "spice://[::g]:5900",
    "unix-relative": "spice+unix://tmp/s",
    "unix-nothing": "spice+unix://",
    "unix-nul": "spice+unix:///tmp/%00",
    "control-characters": "spice:\x1b[2J//127.0.0.1",
}


@pytest.mark.parametrize("uri", URIS.values(), ids=[*URIS])
def test_a_uri_that_is_none(refused_here: Refused, uri: str) -> None:
    refused_here("list", "--", uri, code=USAGE)


def test_a_uri_in_the_environment_that_is_none(refused: Refused) -> None:
    refused("list", code=USAGE, env={"SPICEBRIDGE_URI": "nonsense"}, says=("'nonsense'",))


def test_a_uri_that_is_no_text(refused: Refused) -> None:
    refused("list", code=USAGE, env_bytes={b"SPICEBRIDGE_URI": b"spice://\xff\xfe:5900"})


def test_nothing_is_told_to_a_ready_fd_that_is_not_open(
    refused: Refused, offered: Offered, short_tmp: Path
) -> None:
    args = (offered.uri, "--custom-channel", f"unixsocket={short_tmp}/s,channelid=128")
    refused(*args, "--ready-fd", "77", code=USAGE, says=("--ready-fd 77", "Bad file descriptor"))


def test_nothing_is_told_to_a_ready_fd_that_is_read_only(
    refused: Refused, offered: Offered, short_tmp: Path
) -> None:
    args = (offered.uri, "--custom-channel", f"unixsocket={short_tmp}/s,channelid=128")
    reader = os.open(os.devnull, os.O_RDONLY)
    try:
        refused(*args, "--ready-fd", str(reader), code=USAGE, pass_fds=(reader,))
    finally:
        os.close(reader)


# The server cannot be reached, or is none


HOSTS = {
    "name": "no-such-host.invalid",
    "label-empty": "a..invalid",
    "label-long": f"{'a' * 64}.invalid",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=[*HOSTS])
def test_a_host_without_an_address(refused_here: Refused, host: str) -> None:
    says = ("looking up", "check the host name")
    refused_here("list", f"spice://{host}:5900", code=ConnectError.exit_code, says=says)


def test_a_tcp_port_that_refuses(refused: Refused) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        uri = f"spice://127.0.0.1:{port}"
        says = (f"127.0.0.1:{port}", "Connection refused", "is the server running")
        refused("list", uri, code=ConnectError.exit_code, says=says)


def test_a_unix_socket_that_is_missing(refused: Refused, short_tmp: Path) -> None:
    says = (f"{short_tmp}/nobody", "No such file", "check the path")
    refused("list", nowhere(short_tmp), code=ConnectError.exit_code, says=says)


def test_a_unix_socket_that_nobody_serves(refused: Refused, short_tmp: Path) -> None:
    stale_socket(short_tmp / "nobody")
    refused("list", nowhere(short_tmp), code=ConnectError.exit_code, says=("Connection refused",))


def test_a_unix_socket_with_a_path_too_long(refused: Refused) -> None:
    refused("list", f"spice+unix:///{'x' * 200}", code=ConnectError.exit_code, says=("too long",))


def test_an_http_server_is_told_from_a_spice_server(refused: Refused) -> None:
    def http(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        until_gone(client)

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    uri = f"spice://127.0.0.1:{sock.getsockname()[1]}"
    with serving(sock, http):
        says = ("HTTP", "REDQ", "check that the port is that of a SPICE server")
        refused("list", uri, code=ProtocolError.exit_code, says=says)


def test_a_server_that_closes_the_connection(refused: Refused, short_tmp: Path) -> None:
    def reads_and_closes(client: socket.socket) -> None:
        client.recv(65536)

    with fake_server(short_tmp / "spice", reads_and_closes) as uri:
        says = ("closed connection", "check that the port is that of a SPICE server")
        refused("list", uri, code=ProtocolError.exit_code, says=says)


def test_a_server_that_resets_the_connection(refused: Refused) -> None:
    def resets(client: socket.socket) -> None:
        client.recv(1)  # and the rest stays unread

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    with serving(sock, resets):
        uri = f"spice://127.0.0.1:{sock.getsockname()[1]}"
        refused("list", uri, code=ConnectError.exit_code, says=("reset", "SPICE server"))


def test_a_server_that_says_nothing(refused: Refused, short_tmp: Path) -> None:
    with fake_server(short_tmp / "spice", until_gone) as uri:
        says = ("linking main:0", "no answer within 10 seconds")
        refused("list", uri, code=ConnectError.exit_code, says=says)


def test_a_server_that_says_nothing_for_as_long_as_was_asked_for(
    refused: Refused, short_tmp: Path
) -> None:
    spec = ("--custom-channel", f"unixsocket={short_tmp}/s,channelid=128")
    with fake_server(short_tmp / "spice", until_gone) as uri:
        says = ("linking main:0", "no answer within 0.2 seconds")
        for command in (["list"], spec):
            words = (*command, uri, "--connect-timeout", "0.2")
            refused(*words, code=ConnectError.exit_code, says=says)


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_a_time_that_is_none(refused: Refused, seconds: str) -> None:
    words = ("list", "--connect-timeout", seconds)
    refused(*words, code=UsageError.exit_code, says=("--connect-timeout",))


# Logging in


WRONG_PASSWORDS = {
    "wrong": {"SPICEBRIDGE_PASSWORD": "battery staple"},
    "empty": {"SPICEBRIDGE_PASSWORD": ""},
    "none": {},
}


@pytest.mark.parametrize("env", WRONG_PASSWORDS.values(), ids=[*WRONG_PASSWORDS])
def test_a_password_that_the_server_does_not_take(
    refused: Refused, locked: Offered, short_tmp: Path, env: dict[str, str]
) -> None:
    spec = f"unixsocket={short_tmp}/s,channelid=128"
    says = ("permission denied", "--password-file")
    line = refused(
        *(locked.uri, "--custom-channel", spec), code=LoginError.exit_code, env=env, says=says
    )
    assert "battery" not in line


def test_no_password_and_no_stdin_to_ask_at(refused: Refused, locked: Offered) -> None:
    says = ("--password-file, --password-command or $SPICEBRIDGE_PASSWORD",)
    refused("list", locked.uri, code=LoginError.exit_code, closed=[0], says=says)


def test_a_wrong_password_in_a_file(refused: Refused, locked: Offered, short_tmp: Path) -> None:
    password = short_tmp / "password"
    password.write_text(PASSWORD + "r\n")
    args = ("list", locked.uri, "--password-file", str(password))
    refused(*args, code=LoginError.exit_code, says=("permission denied",))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sh -c 'echo battery; exit 3'", "status 3"),
        ("true", "first line is empty"),
        ("sh -c 'echo; echo battery'", "first line is empty"),
        ("sh -c 'kill $$'", "status -15"),
        ("echo battery", "permission denied"),
    ],
)
def test_a_password_command_that_does_not_have_it(
    refused: Refused, locked: Offered, command: str, says: str
) -> None:
    words = ("list", locked.uri, "--password-command", command)
    assert "battery" not in refused(*words, code=LoginError.exit_code, says=(says,))


def test_a_password_file_that_is_no_text(
    refused: Refused, locked: Offered, short_tmp: Path
) -> None:
    password = short_tmp / "password"
    password.write_bytes(b"\xff\xfe\n")
    args = ("list", locked.uri, "--password-file", str(password))
    refused(*args, code=LoginError.exit_code, says=("permission denied",))


def test_a_password_that_is_no_text(refused: Refused, locked: Offered) -> None:
    env = {b"SPICEBRIDGE_PASSWORD": b"\xff\xfe"}
    refused("list", locked.uri, code=LoginError.exit_code, env_bytes=env)


@pytest.mark.parametrize("command", ["bridge", "list", "serve"])
def test_a_password_too_long_for_spice(refused: Refused, short_tmp: Path, command: str) -> None:
    args = {
        "bridge": (nowhere(short_tmp), "--custom-channel", f"unixsocket={short_tmp}/s,port=x"),
        "list": ("list", nowhere(short_tmp)),
        "serve": ("serve", f"--listen=unix:{short_tmp}/spice", "--custom-channel=exec=cat,port=x"),
    }[command]
    env = {"SPICEBRIDGE_PASSWORD": "secret" * 11}
    line = refused(*args, code=USAGE, env=env, says=("66 bytes", "60 at most"))
    assert "secret" not in line


# Channels that are not there, or not free


ABSENT = {
    "type": ("channelid=129", "no channel of type 129", "128:0"),
    "type-name": ("channelid=usbredir", "no channel of type usbredir", "port:0"),
    "instance": ("channelid=128,instance=1", "no instance 1 of 128", "0, 5"),
    "port": ("port=alpha", "no port alpha", "alpha.one, alpha.two, solo"),
    "wildcard-none": ("port=beta.*", "no port beta.*", "alpha.one, alpha.two, solo"),
    "wildcard-two": ("port=alpha.*", "matches 2 ports", "alpha.one, alpha.two"),
    "wildcard-all": ("port=*", "matches 3 ports", "alpha.one, alpha.two, solo"),
    "case": ("port=SOLO", "no port SOLO", "solo"),
}


@pytest.mark.parametrize(
    ("wanted", "says"), [(a[0], a[1:]) for a in ABSENT.values()], ids=[*ABSENT]
)
def test_a_channel_that_the_server_does_not_offer(
    refused_here: Refused, offered: Offered, short_tmp: Path, wanted: str, says: tuple[str, ...]
) -> None:
    args = (offered.uri, "--custom-channel", f"unixsocket={short_tmp}/s,{wanted}")
    refused_here(*args, code=ChannelNotFoundError.exit_code, says=says)


def test_the_same_channel_twice(refused: Refused, offered: Offered, short_tmp: Path) -> None:
    refused(
        *(offered.uri, "--custom-channel", f"unixsocket={short_tmp}/a,channelid=128"),
        *("--custom-channel", f"unixsocket={short_tmp}/b,channelid=128,instance=0"),
        code=USAGE,
        says=("128:0 is asked for twice",),
    )


def test_a_server_without_channels(refused: Refused, short_tmp: Path) -> None:
    with fake_server(short_tmp / "spice", spice(offers=())) as uri:
        refused("list", uri, code=ChannelNotFoundError.exit_code, says=("offers no channels",))


@pytest.fixture
def busy(short_tmp: Path, spicebridge: Start) -> str:
    """URI of a server whose channel 128 and port held are linked by another client."""
    uri = f"spice+unix://{short_tmp}/spice"
    spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/guest-1"),
        *("--custom-channel", f"port=held,unixsocket={short_tmp}/guest-2"),
    )
    holder = spicebridge(
        *(uri, "--log-format", "json"),
        *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/held-1,attach=always"),
        *("--custom-channel", f"port=held,unixsocket={short_tmp}/held-2,attach=always"),
    )
    wait_event(holder, "linked", channel="128:0")
    wait_event(holder, "linked", channel="port:0")
    return uri


@pytest.mark.parametrize("wanted", ["channelid=128", "channelid=port", "port=held"])
def test_a_channel_that_another_client_has(refused: Refused, busy: str, wanted: str) -> None:
    refused(
        *(busy, "--custom-channel", f"stdio,{wanted}"),
        code=ChannelBusyError.exit_code,
        says=("in use by another client", "close that client"),
    )


# Local ends


def stale_socket(path: Path) -> None:
    """A socket file that nobody serves any more."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.fixture
def world(short_tmp: Path) -> Iterator[dict[str, object]]:
    """What is in the way of local ends; its names may stand in a specification in braces."""
    (short_tmp / "file").write_text("precious")
    (short_tmp / "folder").mkdir()
    (short_tmp / "script").write_text("no interpreter is named here")
    (short_tmp / "script").chmod(0o755)
    (short_tmp / "plain.in").write_text("")
    (short_tmp / "plain.out").write_text("")
    os.mkfifo(short_tmp / "half.in")
    os.mkfifo(short_tmp / "other.out")
    stale_socket(short_tmp / "stale")
    (short_tmp / "dangling").symlink_to(short_tmp / "file.in")
    with ExitStack() as stack:
        live = stack.enter_context(socket.socket(socket.AF_UNIX))
        live.bind(f"{short_tmp}/live")
        live.listen()
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield {"tmp": short_tmp, "long": "x" * 108, "taken": taken.getsockname()[1]}


ENDS = {
    "socket-path-too-long": ("unixsocket={tmp}/{long}", "107 at most"),
    "socket-folder-missing": ("unixsocket={tmp}/missing/s", "No such file", "create its folder"),
    "socket-not-writable": ("unixsocket=/proc/spicebridge", "/proc/spicebridge"),
    "socket-is-a-file": ("unixsocket={tmp}/file", "it exists and is no socket"),
    "socket-is-live": ("unixsocket={tmp}/live", "another program answers there"),
    "tcp-port-taken": ("tcp=127.0.0.1:{taken}", "in use", "choose another port"),
    "pipe-is-a-file": ("pipe={tmp}/plain", "plain.in", "is no FIFO"),
    "pipe-in-missing": ("pipe={tmp}/other", "other.in is missing", "mkfifo"),
    "exec-missing": ("exec=spicebridge-no-such-program -x", "'spicebridge-no-such-program'"),
    "exec-quotes": ("exec=sh -c 'cat", "No closing quotation", "close the quotation"),
    "fd-not-open": ("fd=77", "fd=77 is not open"),
    "share-missing": ("share={tmp}/missing", "No such file", "check the path"),
}

MORE_ENDS = {
    "socket-below-a-file": ("unixsocket={tmp}/file/s", "Not a directory"),
    "socket-is-a-folder": ("unixsocket={tmp}/folder", "it exists and is no socket"),
    "socket-is-a-fifo": ("unixsocket={tmp}/half.in", "it exists and is no socket"),
    "socket-is-a-link": ("unixsocket={tmp}/dangling", "it exists and is no socket"),
    "tcp-host-unknown": ("tcp=no-such-host.invalid:5000", "no-such-host.invalid"),
    "tcp-host-not-ours": ("tcp=192.0.2.1:5000", "192.0.2.1:5000"),
    "tcp-host-label-empty": ("tcp=a..b:5000", "a..b"),
    "pipe-out-missing": ("pipe={tmp}/half", "half.out is missing", "mkfifo"),
    "pipe-folder-missing": ("pipe={tmp}/missing/p", "No such file"),
    "pipe-below-a-file": ("pipe={tmp}/file/p", "Not a directory"),
    "pipe-name-too-long": ("pipe={tmp}/{long}{long}{long}", "too long"),
    "exec-missing-path": ("exec={tmp}/no-such-program", "no-such-program"),
    "exec-not-executable": ("exec={tmp}/file", "there is no program"),
    "exec-folder": ("exec={tmp}/folder", "there is no program"),
    "exec-blank": ("exec= ", "names no program"),
    "exec-backslash": ("exec=cat \\", "No escaped character"),
    "pty-link-is-a-file": ("pty={tmp}/file", "File exists"),
    "pty-link-is-live": ("pty={tmp}/live", "File exists"),
    "pty-link-folder-missing": ("pty={tmp}/missing/tty", "No such file"),
    "fd-huge": ("fd=2147483647", "fd=2147483647 is not open"),
    "share-is-a-file": ("share={tmp}/file", "it is no folder"),
    "share-name-too-long": ("share={tmp}/{long}{long}{long}", "too long"),
    "exec-missing-demux": ("exec=spicebridge-no-such-program,demux=on", "there is no program"),
    "socket-is-live-demux": ("unixsocket={tmp}/live,demux=on,mode=listen", "another program"),
}


@pytest.mark.parametrize(("end", "says"), [(e[0], e[1:]) for e in ENDS.values()], ids=[*ENDS])
def test_a_local_end_that_cannot_be_set_up_is_told_before_the_server_is_asked(
    refused: Refused,
    world: dict[str, object],
    short_tmp: Path,
    end: str,
    says: tuple[str, ...],
) -> None:
    spec = end.format_map(world) + ",channelid=128"
    refused(nowhere(short_tmp), "--custom-channel", spec, code=ENDPOINT, says=says)
    assert (short_tmp / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("end", "says"), [(e[0], e[1:]) for e in MORE_ENDS.values()], ids=[*MORE_ENDS]
)
def test_more_local_ends_that_cannot_be_set_up(
    refused_here: Refused,
    world: dict[str, object],
    short_tmp: Path,
    end: str,
    says: tuple[str, ...],
) -> None:
    spec = end.format_map(world) + ",channelid=128"
    refused_here(nowhere(short_tmp), "--custom-channel", spec, code=ENDPOINT, says=says)
    assert (short_tmp / "file").read_text() == "precious"


def test_what_was_created_before_another_local_end_failed_is_removed(
    refused: Refused, world: dict[str, object], short_tmp: Path
) -> None:
    del world
    refused(
        nowhere(short_tmp),
        *("--custom-channel", f"unixsocket={short_tmp}/a,channelid=128"),
        *("--custom-channel", f"pipe={short_tmp}/b,channelid=129"),
        *("--custom-channel", f"pty={short_tmp}/c,channelid=130"),
        *("--custom-channel", f"unixsocket={short_tmp}/file,channelid=131"),
        code=ENDPOINT,
        says=("it exists and is no socket",),
    )


@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_the_place_where_serve_listens_is_taken(
    refused: Refused, world: dict[str, object], where: str
) -> None:
    listen = {"unix": "unix:{tmp}/live", "tcp": "127.0.0.1:{taken}"}[where].format_map(world)
    spec = "unixsocket={tmp}/guest,channelid=128".format_map(world)
    refused("serve", "--listen", listen, "--custom-channel", spec, code=ENDPOINT, says=(listen,))


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY], ids=["read-only", "write-only"])
def test_a_descriptor_that_is_open_one_way(refused: Refused, short_tmp: Path, flags: int) -> None:
    fd = os.open(os.devnull, flags)
    try:
        args = (nowhere(short_tmp), "--custom-channel", f"fd={fd},channelid=128")
        says = (f"fd={fd} is open for", "only", "open it both ways")
        refused(*args, code=ENDPOINT, pass_fds=(fd,), says=says)
    finally:
        os.close(fd)


LATE_ENDS = {
    "connect-missing": ("unixsocket={tmp}/missing,mode=connect", "No such file"),
    "connect-stale": ("unixsocket={tmp}/stale,mode=connect", "Connection refused"),
    "connect-file": ("unixsocket={tmp}/file,mode=connect", "Connection refused"),
    "connect-long": ("unixsocket={tmp}/{long},mode=connect", "too long"),
    "exec-format": ("exec={tmp}/script", "Exec format error"),
}


@pytest.mark.parametrize(
    ("end", "says"), [(e[0], e[1:]) for e in LATE_ENDS.values()], ids=[*LATE_ENDS]
)
def test_an_application_that_cannot_be_reached_or_started(
    refused: Refused,
    offered: Offered,
    world: dict[str, object],
    end: str,
    says: tuple[str, ...],
) -> None:
    spec = end.format_map(world) + ",port=solo"
    refused(offered.uri, "--custom-channel", spec, code=ENDPOINT, says=says, started=True)


@pytest.mark.parametrize("fd", [0, 1], ids=["stdin", "stdout"])
def test_standard_descriptors_that_are_closed(refused: Refused, offered: Offered, fd: int) -> None:
    args = (offered.uri, "--custom-channel", "stdio,channelid=128,instance=5")
    refused(*args, code=ENDPOINT, closed=[fd], says=("stdio",))


def test_an_error_has_its_exit_code_where_nobody_can_read_it() -> None:
    finished = run("--custom-channel", "nonsense", closed=[2])
    assert finished == type(finished)(USAGE, b"", "")


@pytest.mark.parametrize(
    ("command", "says"), [("sh -c 'exit 3'", "status 3"), ("sh -c 'kill -9 $$'", "SIGKILL")]
)
def test_a_program_that_fails(refused: Refused, offered: Offered, command: str, says: str) -> None:
    spec = f"exec={command},channelid=128,instance=5"
    code = ApplicationError.exit_code
    refused(offered.uri, "--custom-channel", spec, code=code, says=(says,), started=True)


# A server that breaks off, or the protocol


def test_a_session_that_the_server_loses_while_bridges_are_up(
    spicebridge: Start, short_tmp: Path
) -> None:
    server = spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/guest"),
    )
    bridge = spicebridge(
        f"spice+unix://{short_tmp}/spice",
        *("--log-format", "json", "--custom-channel", f"channelid=128,unixsocket={short_tmp}/s"),
    )
    with connect(short_tmp / "s") as app:
        wait_event(bridge, "linked")
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        assert app.recv(1) == b""
    assert bridge.wait() == SessionLostError.exit_code
    error = wait_event(bridge, "error")
    assert "ended the session" in error["message"]
    assert error["exit_code"] == SessionLostError.exit_code
    assert not (short_tmp / "s").exists()


LINK_REPLIES: dict[str, tuple[bytes, int, str]] = {
    "magic": (b"QDER" + bytes(200), ProtocolError.exit_code, "REDQ"),
    "version": (
        b"REDQ\x03\0\0\0\0\0\0\0\xc2\0\0\0" + bytes(194),
        ProtocolError.exit_code,
        "major version 2",
    ),
    "oversized": (
        b"REDQ\x02\0\0\0\x02\0\0\0\xff\xff\xff\xff",
        ProtocolError.exit_code,
        "4294967295",
    ),
    "undersized": (b"REDQ\x02\0\0\0\x02\0\0\0\0\0\0\0", ProtocolError.exit_code, "a size of"),
    "capabilities": (
        b"REDQ\x02\0\0\0\x02\0\0\0\xb2\0\0\0" + bytes(166) + b"\xff" * 12,
        ProtocolError.exit_code,
        "capabilities",
    ),
    "key": (
        b"REDQ\x02\0\0\0\x02\0\0\0\xb6\0\0\0"
        + bytes(166)
        + b"\x01\0\0\0\0\0\0\0\xb2\0\0\0\x0b\0\0\0",
        ProtocolError.exit_code,
        "RSA public key",
    ),
    "cut-off": (b"REDQ\x02\0\0\0\x02\0\0\0\xb2\0\0\0\0\0", ProtocolError.exit_code, "closed"),
    "need-secured": (
        b"REDQ\x02\0\0\0\x02\0\0\0\xb2\0\0\0\x05\0\0\0" + bytes(174),
        LinkRefusedError.exit_code,
        "only for TLS",
    ),
    "unknown-error": (
        b"REDQ\x02\0\0\0\x02\0\0\0\xb2\0\0\0\x63\0\0\0" + bytes(174),
        LinkRefusedError.exit_code,
        "the server answered 99",
    ),
}


@pytest.mark.parametrize(("reply", "code", "says"), LINK_REPLIES.values(), ids=[*LINK_REPLIES])
def test_a_link_reply_that_is_garbage_or_a_refusal(
    refused_here: Refused, short_tmp: Path, reply: bytes, code: int, says: str
) -> None:
    def script(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(reply)
        client.shutdown(socket.SHUT_WR)
        until_gone(client)

    with fake_server(short_tmp / "spice", script) as uri:
        refused_here("list", uri, code=code, says=(says,))


def test_a_server_that_refuses_the_link(refused: Refused, short_tmp: Path) -> None:
    def script(client: socket.socket) -> None:
        link_client_of(client, LinkErr.NEED_SECURED)

    with fake_server(short_tmp / "spice", script) as uri:
        says = ("need secured", "only for TLS")
        refused("list", uri, code=LinkRefusedError.exit_code, says=says)


GARBAGE = {
    "oversized-data": (message(Msg.DATA, b"x", size=2**32 - 1), "SPICEVMC_DATA", "4294967295"),
    "oversized-ping": (message(Msg.PING, size=2**31), "2147483648"),
    "unknown-type": (message(999), "999"),
    "malformed-set-ack": (message(Msg.SET_ACK, b"\0"), "SET_ACK"),
    "malformed-compression": (message(Msg.COMPRESSED_DATA, b"\x07\x01\0\0\0x"), "COMPRESSED_DATA"),
    "malformed-lz4": (message(Msg.COMPRESSED_DATA, b"\x01\xff\0\0\0\xff\xff\xff"), "COMPRESSED"),
}

CUT_OFF = {
    "header": (b"\x65\0", "end of the stream"),
    "data": (message(Msg.DATA, b"abc", size=10), "end of the stream", "7 bytes"),
}


@pytest.mark.parametrize(
    ("code", "says", "words"),
    [
        *((ProtocolError.exit_code, each[0], each[1:]) for each in GARBAGE.values()),
        *((SessionLostError.exit_code, each[0], each[1:]) for each in CUT_OFF.values()),
    ],
    ids=[*GARBAGE, *(f"cut-off-{each}" for each in CUT_OFF)],
)
def test_a_channel_that_breaks_the_protocol_or_off(
    short_tmp: Path, code: int, says: bytes, words: tuple[str, ...]
) -> None:
    greeting = message(Msg.PING, bytes(12)) + message(Msg.DATA, b"good")
    script = spice(says={128: greeting + says}, hang_up=True)
    with fake_server(short_tmp / "spice", script) as uri:
        finished = run(uri, "--custom-channel", "stdio,channelid=128")
    assert finished.code == code, finished
    (error,) = finished.errors()
    assert all(word in error for word in words), error
    assert finished.stdout in {b"", b"good", b"goodabc"}


PORT_GARBAGE = {
    "name-outside": message(Msg.PORT_INIT, b"\xff\0\0\0\x09\0\0\0\x01name\0"),
    "name-inside-header": message(Msg.PORT_INIT, b"\x05\0\0\0\x00\0\0\0\x01name\0"),
    "too-short": message(Msg.PORT_INIT, b"\x05"),
    "oversized": message(Msg.PORT_INIT, size=2**32 - 1),
    "event": message(Msg.PORT_EVENT, b"\x09"),
}


@pytest.mark.parametrize("says", PORT_GARBAGE.values(), ids=[*PORT_GARBAGE])
def test_a_port_that_breaks_the_protocol(
    refused_here: Refused, short_tmp: Path, says: bytes
) -> None:
    script = spice(offers=[(ChannelType.PORT, 0)], says={ChannelType.PORT: says})
    with fake_server(short_tmp / "spice", script) as uri:
        args = (uri, "--custom-channel", f"unixsocket={short_tmp}/s,port=name")
        refused_here(*args, code=ProtocolError.exit_code, says=("PORT_",))


MAIN_GARBAGE = {
    "unknown-type": message(999),
    "oversized": message(Msg.NOTIFY, size=2**32 - 1),
    "malformed-list": message(Msg.MAIN_CHANNELS_LIST, b"\xff\xff\xff\xff"),
    "malformed-notify": message(Msg.NOTIFY, b"\0" * 7),
}


@pytest.mark.parametrize("main", MAIN_GARBAGE.values(), ids=[*MAIN_GARBAGE])
def test_a_main_channel_that_breaks_the_protocol(
    refused: Refused, short_tmp: Path, main: bytes
) -> None:
    with fake_server(short_tmp / "spice", spice(main=main)) as uri:
        refused(
            *(uri, "--custom-channel", f"unixsocket={short_tmp}/s,channelid=128"),
            code=ProtocolError.exit_code,
            says=("at byte",),
            started=True,
        )


def test_a_main_channel_that_never_begins(refused: Refused, short_tmp: Path) -> None:
    def script(client: socket.socket) -> None:
        link_client_of(client)
        client.sendall(message(Msg.MAIN_INIT, b"\0"))
        until_gone(client)

    with fake_server(short_tmp / "spice", script) as uri:
        refused("list", uri, code=ProtocolError.exit_code, says=("MAIN_INIT", "at byte"))


def test_one_application_that_breaks_the_protocol_leaves_the_others_alone(
    spicebridge: Start, short_tmp: Path
) -> None:
    """With a listening end the error is logged, and the next application may come."""
    script = spice(says={128: message(Msg.PING, bytes(12)) + message(999)})
    with fake_server(short_tmp / "spice", script) as uri:
        spec = f"channelid=128,unixsocket={short_tmp}/s"
        bridge = spicebridge(uri, "--log-format", "json", "--custom-channel", spec)
        for count in (1, 2):
            with connect(short_tmp / "s") as app:
                assert app.recv(1) == b""
            error = wait_event(bridge, "error", count=count)
            assert error["level"] == "error"
            assert "999" in error["message"]
            wait_event(bridge, "app-gone", count=count)
        assert bridge.stop() == 0


def test_nothing_reads_the_answer_of_list(offered: Offered) -> None:
    """As in ``spicebridge list | head -0``: it ends as other programs do, without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [EXECUTABLE, "list", "--json", offered.uri],
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writer)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (141, b"")
