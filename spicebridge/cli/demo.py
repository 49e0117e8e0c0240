"""``spicebridge demo``: an endpoint and its bridges in one process, and bytes going through."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import ByteStream
from rich.filesize import decimal
from rich.table import Table

from spicebridge import (
    BridgeStatus,
    Ready,
    Session,
    SpicebridgeError,
    Target,
    UnixAddress,
    run_bridges,
    serve_bridges,
)
from spicebridge.cli.answer import print_answer, write_answer
from spicebridge.cli.demo_moved import Moved
from spicebridge.cli.demo_share import can_share, use_share
from spicebridge.cli.spec import parse_custom_channel, share_channel

_BULK: Final = 32 * 1024 * 1024  # bytes each way on the user-defined channel
_ECHO: Final = 8 * 1024 * 1024  # bytes to the program on the port, and back
_CHUNK: Final = 65536
_USER_CHANNEL: Final = 128
_ECHO_PORT: Final = "org.spicebridge.demo.echo"
_GUEST_PORT: Final = "org.spicebridge.demo.guest"


async def run_demo(stop: anyio.Event, ready: Ready, *, keep: bool) -> None:
    """Starts an endpoint with a few channels, bridges them, sends data and checks it.

    Args:
        stop: set to end it early.
        ready: told once everything is up.
        keep: whether to stay up until `stop`.

    Raises:
        SpicebridgeError: if what arrived is not what was sent.
    """
    with tempfile.TemporaryDirectory(prefix="spicebridge-") as name:
        folder = Path(name)
        ended = anyio.Event()
        async with anyio.create_task_group() as tasks:
            await _start(tasks, folder, ended, ready)
            moved = [
                *await _both_ways(folder / "guest", folder / "app"),
                await _echo(folder / "echo"),
            ]
            if can_share():
                moved += await anyio.to_thread.run_sync(
                    use_share, folder / "guest-webdav", folder / "shared"
                )
            print_answer(_table(moved))
            if not all(each.whole for each in moved):
                raise SpicebridgeError("what arrived is not what was sent")
            _say_what_next(folder, keep=keep)
            if keep:
                await stop.wait()
            ended.set()


async def _start(
    tasks: anyio.abc.TaskGroup, folder: Path, ended: anyio.Event, ready: Ready
) -> None:
    """Brings up the endpoint, then the bridges; returns once their sockets exist."""
    echo = shlex.join([sys.executable, "-c", _ECHO_PROGRAM])
    server = UnixAddress(str(folder / "spice"))
    served = [
        f"channelid={_USER_CHANNEL},unixsocket={_escape(folder / 'guest')}",
        f"port={_ECHO_PORT},exec={_escape(echo)}",
        f"port={_GUEST_PORT},unixsocket={_escape(folder / 'guest-port')}",
        f"channelid=webdav,unixsocket={_escape(folder / 'guest-webdav')}",
    ]
    bridged = [
        f"channelid={_USER_CHANNEL},unixsocket={_escape(folder / 'app')}",
        f"port={_ECHO_PORT},unixsocket={_escape(folder / 'echo')}",
        f"port={_GUEST_PORT},unixsocket={_escape(folder / 'app-port')}",
    ]
    if can_share():
        (folder / "shared").mkdir()
        bridged.append(share_channel(str(folder / "shared")))
    serving, bridging = anyio.Event(), anyio.Event()

    def server_ready(
        _server: Target, _bridges: Sequence[BridgeStatus], _session: Session | None
    ) -> None:
        serving.set()

    def bridges_ready(
        server: Target, bridges: Sequence[BridgeStatus], session: Session | None
    ) -> None:
        ready(server, bridges, session)
        bridging.set()

    async def serve() -> None:
        specs = [parse_custom_channel(text, serving=True) for text in served]
        await serve_bridges(server, specs, stop=ended, ready=server_ready)

    async def bridge() -> None:
        specs = [parse_custom_channel(text) for text in bridged]
        await run_bridges(Target(server), specs, stop=ended, ready=bridges_ready)

    tasks.start_soon(serve)
    await serving.wait()
    tasks.start_soon(bridge)
    await bridging.wait()


_ECHO_PROGRAM: Final = (
    "import os\nwhile data := os.read(0, 65536):\n    while data: data = data[os.write(1, data):]"
)


def _escape(value: object) -> str:
    return str(value).replace(",", ",,")


async def _both_ways(guest_path: Path, app_path: Path) -> list[Moved]:
    """Guest and application send each other random bytes at the same time."""
    down, up = os.urandom(_BULK), os.urandom(_BULK)
    begun = anyio.current_time()
    results: dict[str, bytes] = {}
    async with (
        await anyio.connect_unix(str(guest_path)) as guest,
        await anyio.connect_unix(str(app_path)) as app,
        anyio.create_task_group() as tasks,
    ):

        async def receive(way: str, stream: ByteStream) -> None:
            results[way] = await _receive(stream, _BULK)

        tasks.start_soon(receive, "down", app)
        tasks.start_soon(receive, "up", guest)
        tasks.start_soon(guest.send, down)
        tasks.start_soon(app.send, up)
    seconds = anyio.current_time() - begun
    name = f"channel {_USER_CHANNEL}"
    return [
        Moved(f"{name}: guest → app", _BULK, seconds, results["down"] == _digest(down)),
        Moved(f"{name}: app → guest", _BULK, seconds, results["up"] == _digest(up)),
    ]


async def _echo(path: Path) -> Moved:
    """The program on the port sends everything back."""
    data = os.urandom(_ECHO)
    begun = anyio.current_time()
    async with await anyio.connect_unix(str(path)) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(app.send, data)
        whole = await _receive(app, _ECHO) == _digest(data)
    seconds = anyio.current_time() - begun
    return Moved(f"port {_ECHO_PORT}: exec= and back", _ECHO, seconds, whole)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def _receive(stream: ByteStream, size: int) -> bytes:
    """The digest of the next `size` bytes."""
    digest = hashlib.sha256()
    while size:
        data = await stream.receive(min(size, _CHUNK))
        digest.update(data)
        size -= len(data)
    return digest.digest()


def _table(moved: list[Moved]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("WHAT WENT THROUGH", "BYTES", "SECONDS", "SHA-256"):
        table.add_column(title)
    for each in moved:
        verdict = "equal" if each.whole else "DIFFERENT"
        table.add_row(each.way, decimal(each.size), f"{each.seconds:.2f}", verdict)
    return table


def _say_what_next(folder: Path, *, keep: bool) -> None:
    if keep:
        lines = [
            "",
            "Everything is still up. In other terminals, try:",
            f"  socat - UNIX-CONNECT:{folder}/echo          # what you type comes back",
            f"  socat - UNIX-CONNECT:{folder}/guest-port    # be the guest of a port ...",
            f"  socat - UNIX-CONNECT:{folder}/app-port      # ... and the application at it",
            f"  {_share_hint(folder)}",
            f"  spicebridge list spice+unix://{folder}/spice",
            "Ctrl-C ends it.",
        ]
    else:
        lines = [
            "",
            "What to try next:",
            "  spicebridge demo --keep",
            "  spicebridge list spice://127.0.0.1:5900",
            "  spicebridge --custom-channel unixsocket=/tmp/s,channelid=128",
            "  spicebridge --share ~/Public",
        ]
    write_answer("\n".join(lines) + "\n")


def _share_hint(folder: Path) -> str:
    if can_share():
        return f"curl --unix-socket {folder}/guest-webdav http://localhost/    # {folder}/shared"
    return "pip install 'spicebridge[webdav]'    # then the demo shares a folder, too"
