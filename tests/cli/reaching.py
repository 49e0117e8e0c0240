"""What stands between the executable and a server: TLS, proxies, web servers, SASL; good and bad.

Everything listens on a free port of 127.0.0.1 in this process, see `fake_server`, except for
`served`, which is ``spicebridge serve``.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spicebridge.protocol.constants import AuthMechanism, CommonCap, Msg
from spicebridge.protocol.events import ChannelsList, MainInit
from spicebridge.protocol.messages import encode_channels_list, encode_main_init
from tests.cli.fake_server import Script, message, serving, until_gone
from tests.cli.tools import Finished, run, until
from tests.conftest import EXECUTABLE
from tests.peers.certificates import CertificateFiles
from tests.protocol.wire import PUBKEY

_U32 = struct.Struct("<I")

Converse = Callable[[socket.socket, bytes | None], bool]
"""The server's side of a SASL mechanism, given the client's first data; whether to go on."""


def check(finished: Finished, code: int, says: Sequence[str], warns: Sequence[str]) -> str:
    """Sees to it that a run was refused in one line; returns that line.

    Args:
        finished: the run.
        code: the exit code.
        says: words of the line.
        warns: words of the warnings before it, one for each.
    """
    assert finished.code == code, finished
    errors = finished.errors()
    assert len(errors) == 1, finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == 1 + len(warns), finished.stderr
    for words, line in zip(warns, lines, strict=False):
        assert " WARNING " in line
        assert words in line
    assert finished.stdout == b""
    for words in says:
        assert words in errors[0], errors[0]
    return errors[0]


def refused(
    *args: str,
    code: int,
    says: Sequence[str] = (),
    warns: Sequence[str] = (),
    env: dict[str, str] | None = None,
    stdin: bytes | int = subprocess.DEVNULL,
) -> str:
    """Runs the executable, which must refuse in one line; see `check` and `run`."""
    return check(run(*args, env=env, stdin=stdin), code, says, warns)


@dataclass(frozen=True)
class Served:
    """A ``spicebridge serve`` with a channel 128.

    Attributes:
        port: its TCP port.
        log: what it has logged, as JSON.
    """

    port: int
    log: Path


@contextmanager
def served(
    folder: Path,
    *options: str,
    spec: str = "channelid=128,exec=cat",
    env: dict[str, str] | None = None,
) -> Iterator[Served]:
    """Starts one, which several tests may share.

    Args:
        folder: where its log goes.
        options: more than where to listen.
        spec: of its channel.
        env: added to ours.
    """
    reader, writer = os.pipe()
    log = Path(tempfile.mkdtemp(dir=folder)) / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(EXECUTABLE, "serve", "--listen", "127.0.0.1:0", "--log-format", "json"),
                *("--custom-channel", spec, "--ready-fd", str(writer), *options),
            ],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(env or {})},
            pass_fds=(writer,),
        )
    try:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"ready\n", log.read_text()
        until("it has told its address", lambda: _ready(log) is not None)
        yield Served(int(str(_ready(log)).rpartition(":")[2]), log)
    finally:
        process.kill()
        process.wait()


def _ready(log: Path) -> object:
    """The address in the record ``ready``; None while there is none."""
    whole, _, _ = log.read_text().rpartition("\n")
    for record in map(json.loads, whole.splitlines()):
        if record["event"] == "ready":
            return record["address"]
    return None


def tls_options(files: CertificateFiles) -> tuple[str, ...]:
    """What makes a ``spicebridge serve`` speak TLS."""
    return ("--tls-cert", str(files.cert), "--tls-key", str(files.key))


@contextmanager
def tcp_server(script: Script) -> Iterator[int]:
    """Serves a script; gives its port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    with serving(sock, script):
        yield int(sock.getsockname()[1])


def on_tls(context: ssl.SSLContext, script: Script) -> Script:
    """A script on TLS."""

    def talk(client: socket.socket) -> None:
        try:
            with context.wrap_socket(client, server_side=True) as wrapped:
                script(wrapped)
        finally:
            client.close()

    return talk


def answers(answer: bytes, *, to: int | bytes = b"\r\n\r\n") -> Script:
    """A server that hears something, answers, and then waits until the client has gone.

    Args:
        answer: what it says; ``%s`` in it is what it has heard, on one line.
        to: how much it hears: a number of bytes, or up to an end.
    """

    def talk(client: socket.socket) -> None:
        heard = receive(client, to) if isinstance(to, int) else receive_until(client, to)
        client.sendall(answer.replace(b"%s", b" ".join(heard.split(b"\r\n"))))
        until_gone(client)

    return talk


def hangs_up_at_once(client: socket.socket) -> None:
    """A server that hears a little and wants no more."""
    client.recv(1)


def receive(client: socket.socket, size: int) -> bytes:
    """The next `size` bytes."""
    data = b""
    while len(data) < size:
        piece = client.recv(size - len(data))
        if not piece:
            raise ConnectionAbortedError
        data += piece
    return data


def receive_until(client: socket.socket, end: bytes) -> bytes:
    """All up to and with `end`."""
    data = b""
    while not data.endswith(end):
        data += receive(client, 1)
    return data


# SASL


def listed(*names: str) -> bytes:
    """The list of mechanisms, as libspice-server sends it."""
    return sized(f",{','.join(names)},".encode())


def sized(text: bytes) -> bytes:
    """A length and as many bytes."""
    return _U32.pack(len(text)) + text


def data(text: bytes | None, *, done: bool) -> bytes:
    """The server's data, and whether it is done."""
    return (_U32.pack(0) if text is None else sized(text + b"\0")) + bytes([done])


def read_data(client: socket.socket) -> bytes | None:
    """The client's data."""
    (size,) = _U32.unpack(receive(client, _U32.size))
    return receive(client, size)[:-1] if size else None


def sasl(offered: Sequence[str], converse: Converse) -> Script:
    """A SPICE server with a channel 128 that lets clients in with SASL, and with nothing else.

    Args:
        offered: its mechanisms.
        converse: what it says once the client has chosen one, up to SASL's own result.
    """

    def talk(client: socket.socket) -> None:
        header = receive(client, 16)
        receive(client, _U32.unpack_from(header, 12)[0])
        caps = [CommonCap.PROTOCOL_AUTH_SELECTION, CommonCap.AUTH_SASL, CommonCap.MINI_HEADER]
        body = bytes(4) + PUBKEY + struct.pack("<3I", 1, 0, 178)
        body += _U32.pack(sum(1 << cap for cap in caps))
        client.sendall(struct.pack("<4s3I", b"REDQ", 2, 2, len(body)) + body)
        assert _U32.unpack(receive(client, 4)) == (AuthMechanism.SASL,)
        client.sendall(listed(*offered))
        (size,) = _U32.unpack(receive(client, 4))
        receive(client, size)
        if converse(client, read_data(client)):
            client.sendall(bytes(4))  # the link result
            client.sendall(message(Msg.MAIN_INIT, encode_main_init(MainInit(7))))
            receive(client, 6)  # ATTACH_CHANNELS
            offers = encode_channels_list(ChannelsList(((128, 0),)))
            client.sendall(message(Msg.MAIN_CHANNELS_LIST, offers))
        until_gone(client)

    return talk


def hangs_up(client: socket.socket, _first: bytes | None) -> bool:
    """Refuses as libspice-server does: without a word."""
    client.shutdown(socket.SHUT_RDWR)
    return False


def never(_client: socket.socket, _first: bytes | None) -> bool:
    """What is not to be reached."""
    raise AssertionError("the client has begun a mechanism")


# Files


def connection_file(folder: Path, *lines: str, mode: int = 0o600) -> str:
    """Writes a .vv file of these keys."""
    path = folder / "console.vv"
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_text("\n".join(["[virt-viewer]", "type=spice", *lines, ""]))
    return str(path)
