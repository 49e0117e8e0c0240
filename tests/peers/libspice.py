"""An endpoint on libspice-server: ports whose guests pour, swallow, echo, count or keep silent.

`spice_endpoint.c` beside this file is the program and says what it can do; it is compiled once
into the test cache. libspice-server compresses with LZ4 over TCP on its own.
"""

import hashlib
import random
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import cache
from .certificates import CertificateFiles
from .held_port import HeldPort
from .processes import PATIENCE, JsonProcess, Message, free_port

_SOURCE = Path(__file__).with_name("spice_endpoint.c")
_LIBRARIES = ("spice-server", "glib-2.0", "libcrypto")
_BACKLOG = 1024

NOISE = random.Random(1).randbytes(1_000_003)
"""What a guest pours by default: not compressible, and of a prime size, so that a lost, doubled
or swapped message cannot leave the stream as it was."""


def poured(size: int, content: bytes = NOISE) -> str:
    """The SHA-256, in hex, of what a guest pours: `content` over and over, `size` bytes in all."""
    whole = hashlib.sha256()
    for _ in range(size // len(content)):
        whole.update(content)
    whole.update(content[: size % len(content)])
    return whole.hexdigest()


class SpiceEndpoint(JsonProcess):
    """A running endpoint.

    Args:
        channels: `KIND:NAME` each, as `spice_endpoint.c` explains.
        unix: the path of the Unix socket to listen on; else a TCP port of 127.0.0.1.
        port: that TCP port, where one endpoint after another has the same; else any.
        ticket: the password that clients need; without it there is none.
        closed: the names of ports whose guest's side starts closed.
        pour: how many bytes a pouring guest sends to each client, or a counting one awaits.
        content: what it pours, over and over.
        message: the most bytes that a guest gives in one DATA message.
        digest: whether what the guests receive is hashed.
        streams: how many streams there are in what a `mux` guest sends.
        frame: the bytes in each of its frames.
        end_streams: whether it ends them all when everything was sent.
        tls: the certificate of a port for TLS, beside the plain one.

    Attributes:
        uri: where it listens.
        tls_uri: where it listens with TLS.
    """

    def __init__(
        self,
        *channels: str,
        unix: Path | None = None,
        port: HeldPort | None = None,
        ticket: str | None = None,
        closed: Sequence[str] = (),
        pour: int = 0,
        content: bytes = NOISE,
        message: int | None = None,
        digest: bool = True,
        streams: int = 0,
        frame: int = 0,
        end_streams: bool = False,
        tls: CertificateFiles | None = None,
    ) -> None:
        argv = [str(_program()), f"--bytes={pour}"]
        argv += [f"--channel={channel}" for channel in channels]
        argv += [f"--closed={name}" for name in closed]
        if ticket is not None:
            argv.append(f"--ticket={ticket}")
        if message is not None:
            argv.append(f"--message={message}")
        if not digest:
            argv.append("--no-digest")
        if streams:
            argv += [f"--streams={streams}", f"--frame={frame}"]
        if end_streams:
            argv.append("--end-streams")
        if tls is not None:
            tls_port = free_port()
            self.tls_uri = f"spice+tls://127.0.0.1:{tls_port}"
            argv += [f"--tls-port={tls_port}", f"--tls-key={tls.key}"]
            argv += [f"--tls-cert={tls.cert}", f"--tls-ca={tls.ca}"]
        listening = port.listen() if port else listen(unix)
        with listening as listener, tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            fd = listener.fileno()
            argv += [f"--listen-fd={fd}", f"--content={file.name}"]
            if unix:
                self.uri = f"spice+unix://{unix}"
            else:
                self.uri = f"spice://127.0.0.1:{listener.getsockname()[1]}"
            super().__init__(argv, pass_fds=[fd])
            try:
                self.wait_message(ready=True)
            except BaseException:
                self.stop()
                raise

    def stats(self, name: str) -> Message:
        """What the guest of `name` has `received` (and its `sha256`) and `sent` since the link."""
        since = len(self.messages)
        self.send(f"stats {name}")
        return self.wait_message(stats=name, since=since)

    def event(self, name: str, event: str) -> None:
        """Have the guest's side of port `name` be `opened`, `closed`, or send a `break`."""
        self.send(f"event {name} {event}")

    def take(self, name: str) -> None:
        """Have the silent guest of `name` take all from now on, queued bytes first."""
        self.send(f"take {name}")

    def wait_state(self, name: str, connected: bool, *, timeout: float = PATIENCE) -> Message:
        """Wait until the last that was heard of `name` is that a client is, or is not, linked.

        The message has what `stats` has.
        """

        def last(messages: Sequence[Message]) -> Message | None:
            state = next((m for m in reversed(messages) if m.get("state") == name), None)
            return state if state and state["connected"] is connected else None

        what = f"{name} was not {'linked' if connected else 'unlinked'}"
        return self.wait_messages(last, what=what, timeout=timeout)


def _program() -> Path:
    def build(folder: Path) -> None:
        flags = cache.command("pkg-config", "--cflags", "--libs", *_LIBRARIES).split()
        cache.command("gcc", "-O2", "-Wall", "-o", folder / "spice_endpoint", _SOURCE, *flags)

    return cache.cached(f"endpoint-{cache.digest(_SOURCE.read_bytes())}", build) / "spice_endpoint"


def listen(path: Path | None) -> socket.socket:
    """A listening socket: a Unix one, or on some TCP port of 127.0.0.1."""
    if path is None:
        return socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(_BACKLOG)
    return listener
