"""What servers say before there is SPICE: WebSockets, proxies of either kind, and certificates."""

from __future__ import annotations

import base64
import errno
import hashlib
import itertools
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from spicebridge.errors import SpicebridgeError
from spicebridge.transport.address import TcpAddress, WebAddress
from spicebridge.transport.certificate import describe_certificate, key_digest, subject_of
from spicebridge.transport.http_connect import ask_http
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.socks5 import ask_socks5
from spicebridge.transport.subject import format_subject, matches
from spicebridge.transport.websocket import WebSocketWire, _shake_hands
from spicebridge.transport.websocket_frames import FrameError, FrameReader, Opcode, masked_frame
from spicebridge.transport.wire import Wire
from tests.fuzz.script import Parser, Script, cut, told

ACCEPT: Final = b"{accept}"
"""Stands for the proof that a server of WebSockets has read our request (RFC 6455, 4.2.2)."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = re.compile(rb"sec-websocket-key: *(\S+)", re.IGNORECASE)

_VM: Final = TcpAddress("vm.example", 5900)
_QUERY: Final = "token=classified"
_WEB: Final = WebAddress("vm.example", 80, f"/spice?{_QUERY}")
_PASSWORD: Final = "classified"
_FIN: Final = 0x80

_CONTROLS: Final = (Opcode.PING, Opcode.PONG)
_ROOMS: Final = (1, 2, 1000, 70_000)


class Said(Wire):
    """A wire on which a peer has said something, in pieces; then it has closed the connection.

    Args:
        pieces: what it says, once it was asked.

    Attributes:
        heard: bytes that it was told.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.heard = bytearray()
        self._pieces = iter(pieces)
        self._piece = b""
        self._waits = False

    def read_nowait(self, buffer: memoryview) -> int | None:
        if not self._piece and not self._waits:
            self._piece = self._answer(next(self._pieces, b""))
            self._waits = bool(self._piece)
            if self._waits:
                return None  # once for each piece, as a kernel has it
        self._waits = False
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def _answer(self, piece: bytes) -> bytes:
        return piece

    def rest(self) -> bytes:
        """What was not read."""
        return self._piece + b"".join(self._pieces)

    def peer_ended(self) -> bool:
        return False

    async def readable(self) -> None:
        pass

    def write_nowait(self, buffers: Sequence[memoryview | bytearray]) -> int:
        self.heard += b"".join(buffers)
        return sum(map(len, buffers))

    async def writable(self) -> None:
        pass

    def end(self) -> None:
        pass

    def hang_up(self) -> None:
        self.end()

    def close(self) -> None:
        pass


def _run(asking: Coroutine[Any, Any, bytes | None]) -> bytes | None:
    """What comes of a coroutine that waits for nothing but a `Said`."""
    try:
        asking.send(None)
    except StopIteration as stop:
        result: bytes | None = stop.value
        return result
    raise AssertionError("it waits")


# WebSockets


def frames(script: Script) -> bool:
    """Frames as they come, whole and in pieces."""
    cuts, stream = script.number(), script.rest()
    whole = _read([stream], _ROOMS[-1:])
    assert _read(cut(stream, cuts), _ROOMS) == whole
    return not whole[1]


def _read(pieces: Iterable[bytes], rooms: Sequence[int]) -> tuple[bytes, str]:
    """What a reader gives, and how it ends."""
    reader = FrameReader()
    room = itertools.cycle(rooms)
    out = bytearray()
    buffer = memoryview(bytearray(max(rooms)))
    try:
        for piece in pieces:
            data = bytearray(piece)
            reader.feed(memoryview(data))
            while count := reader.take(buffer[: next(room)]):
                out += buffer[:count]
            data[:] = bytes(len(data))  # nothing of it is needed any more
    except FrameError as error:
        return bytes(out), told(str(error))
    return bytes(out), ""


def made_frames(script: Script) -> bool:
    """Good frames: all payload has to come out, whatever stands between its pieces."""
    cuts = script.number()
    stream, data = bytearray(), bytearray()
    within = False
    while script.more:
        choice = script.number()
        payload = script.take(choice >> 3)
        last = bool(choice & 1)
        if choice & 2:
            stream += _frame(_FIN | _CONTROLS[last], payload)
            continue
        if choice & 4:
            payload += bytes(2 * script.number(2))
        opcode = Opcode.CONTINUATION if within else Opcode.BINARY
        stream += _frame(opcode | (_FIN if last else 0), payload)
        within = not last
        data += payload
    assert _read(cut(bytes(stream), cuts), _ROOMS) == (bytes(data), "")
    return True


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    bytes_of_size = 2 if size < 1 << 16 else 8
    marker = 126 if bytes_of_size == 2 else 127
    return bytes((first, marker)) + size.to_bytes(bytes_of_size, "big") + payload


def masked(script: Script) -> bool:
    """Our own frames, unmasked again."""
    payload = bytes(2 * script.number(2)) + script.rest()
    frame = masked_frame(Opcode.BINARY, payload)
    head = _frame(_FIN | Opcode.BINARY, payload)[: -len(payload) or None]
    size = len(head)
    assert frame[:size] == bytes((head[0], head[1] | 0x80)) + head[2:]
    key, hidden = frame[size : size + 4], frame[size + 4 :]
    whole = int.from_bytes((key * (len(payload) // 4 + 1))[: len(payload)])
    assert (int.from_bytes(hidden) ^ whole).to_bytes(len(payload)) == payload
    return True


class _Server(Said):
    """A server of WebSockets, who knows the proof, and gives it once."""

    _proved = False

    def _answer(self, piece: bytes) -> bytes:
        if self._proved:
            return piece
        self._proved = ACCEPT in piece
        key = _KEY.search(self.heard)
        proof = hashlib.sha1((key[1] if key else b"") + _GUID, usedforsecurity=False).digest()
        return piece.replace(ACCEPT, base64.b64encode(proof), 1)


def websocket(script: Script) -> bool:
    """A server's answer, and then frames, as the data path reads them."""
    cuts, stream = script.number(), script.rest()
    whole = _open(_Server([stream]))
    head, end, tail = stream.partition(ACCEPT)
    in_pieces = [*cut(head, cuts), *([end] if end else []), *cut(tail, cuts)]
    pieces = _open(_Server(in_pieces))
    # what is quoted of an answer that is none is what has come of it
    assert pieces == whole or whole[1].startswith("ConnectError")
    return not whole[1]


def _open(inner: _Server) -> tuple[bytes, str]:
    data = bytearray()
    buffer = memoryview(bytearray(500))
    try:
        early = _run(_shake_hands(inner, _WEB))
        layer = WebSocketWire(inner, early or b"")
        while (count := layer.read_nowait(buffer)) != 0:
            data += buffer[: count or 0]
    except SpicebridgeError as error:
        return b"", f"{type(error).__name__}: {_without(_QUERY, error)}"
    except OSError as error:
        if error.errno not in {errno.EPROTO, errno.ECONNABORTED}:
            raise
        return bytes(data), told(error.strerror or "")  # as a channel tells it
    return bytes(data), ""


def _without(secret: str, error: SpicebridgeError) -> str:
    """The text of an error, which does not repeat our secret, even if the peer does."""
    text = told(error)
    assert not secret or secret not in text, text
    return text


# Proxies

_Ask = Callable[[Wire, ProxyAddress, TcpAddress], Coroutine[Any, Any, None]]


def _asks(ask: _Ask, scheme: str, script: Script) -> bool:
    """A proxy's answer; what stands behind it is not read."""
    (login,), cuts, stream = script.flags(1), script.number(), script.rest()
    user = ("me", _PASSWORD) if login else ("", "")
    proxy = ProxyAddress(scheme, "proxy.example", 3128, *user)
    wire = Said([stream])
    whole = _answered(ask, wire, proxy)
    pieces = Said(cut(stream, cuts))
    assert bool(_answered(ask, pieces, proxy)) == bool(whole)
    if whole:
        return False
    assert stream.endswith(rest := wire.rest())
    assert pieces.rest() == rest
    return True


def _answered(ask: _Ask, wire: Said, proxy: ProxyAddress) -> str:
    try:
        _run(ask(wire, proxy, _VM))
    except SpicebridgeError as error:
        return _without(proxy.password, error)
    except EOFError:
        return "end of file"
    return ""


def http_proxy(script: Script) -> bool:
    """An HTTP proxy's answer to CONNECT."""
    return _asks(ask_http, "http", script)


def socks_proxy(script: Script) -> bool:
    """A SOCKS5 proxy's answers."""
    return _asks(ask_socks5, "socks5", script)


# Certificates


def certificate(script: Script) -> bool:
    """A certificate in DER."""
    der = script.rest()
    told(describe_certificate(der))  # before an error below: it has none
    assert len(key_digest(der)) == 32
    subject = subject_of(der)
    told(format_subject(subject))
    assert matches(subject, subject)
    return True


PARSERS: Final[Sequence[Parser]] = (
    frames,
    made_frames,
    masked,
    websocket,
    http_proxy,
    socks_proxy,
    certificate,
)
