"""WebSocket frames as a client sends and reads them (RFC 6455, 5): bytes in, bytes out, no I/O.

wsproto does the handshake, but not this: it is the data path, and reading through wsproto's
buffers and events takes two to three times the processor time. Here payload goes from the buffer of
the wire below to the caller's in one copy, and as no frame is ever held its size is only counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final

_FIN: Final = 0x80
_RESERVED: Final = 0x70
_OPCODE: Final = 0x0F
_CONTROL: Final = 0x08
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F

_LENGTH_16: Final = 126
_LENGTH_64: Final = 127
_LENGTH_BYTES: Final = {_LENGTH_16: 2, _LENGTH_64: 8}
_KEY_BYTES: Final = 4

MAX_CONTROL: Final = 125
"""Bytes of payload of a control frame (RFC 6455, 5.5)."""

_SENT_CODES: Final = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
"""Status codes that may stand in a Close (RFC 6455, 7.4, and IANA's registry)."""


class Opcode(IntEnum):
    """What a frame is (RFC 6455, 5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class Status(IntEnum):
    """Why a connection is closed (RFC 6455, 7.4.1)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NONE = 1005  # never sent: the Close had no code
    INVALID_PAYLOAD = 1007


class FrameError(Exception):
    """The server broke RFC 6455, or sent what SPICE is not carried in.

    Attributes:
        status: what our Close says of it.
    """

    def __init__(self, problem: str, status: Status = Status.PROTOCOL_ERROR) -> None:
        super().__init__(problem)
        self.status = status


@dataclass(frozen=True)
class Close:
    """A Close of the server's.

    Attributes:
        code: its status code; `Status.NONE` where it has none.
        reason: its text, at most 123 bytes of UTF-8.
    """

    code: int
    reason: str = ""


def masked_frame(opcode: Opcode, payload: bytes | memoryview) -> bytes:
    """One whole frame, masked with a new key, as a client's must be (RFC 6455, 5.3).

    Args:
        opcode: not CONTINUATION.
        payload: of any size; at most `MAX_CONTROL` bytes in a control frame.
    """
    size = len(payload)
    if size < _LENGTH_16:
        frame = bytearray((_FIN | opcode, _MASKED | size))
    else:
        short = _LENGTH_16 if size < 1 << 16 else _LENGTH_64
        frame = bytearray((_FIN | opcode, _MASKED | short))
        frame += size.to_bytes(_LENGTH_BYTES[short], "big")
    key = os.urandom(_KEY_BYTES)
    frame += key
    start = len(frame)
    frame += payload
    # a third faster than an XOR of big integers, and the key has to be one that nobody foresees
    for lane, byte in enumerate(key, start):
        frame[lane::_KEY_BYTES] = frame[lane::_KEY_BYTES].translate(_xor_table(byte))
    return bytes(frame)


@cache
def _xor_table(byte: int) -> bytes:
    """Each byte XORed with one, for `bytes.translate`."""
    return bytes(byte ^ other for other in range(256))


def close_frame(code: int) -> bytes:
    """A Close with a status code; `Status.NONE` stands for an empty one."""
    return masked_frame(Opcode.CLOSE, b"" if code == Status.NONE else code.to_bytes(2, "big"))


class FrameReader:
    """Reads a server's frames, cut anywhere; binary messages are one stream of bytes.

    Attributes:
        ping: payload of the last ping that nobody has answered, for the caller to take: the last is
            all that needs an answer (RFC 6455, 5.5.3), and none does behind a Close (5.5.2).
        close: the server's Close, once it was read; nothing after it is.
    """

    def __init__(self) -> None:
        self.ping: bytes | None = None
        self.close: Close | None = None
        self._data = memoryview(b"")
        self._at = 0  # in `_data`: what is before it has been read
        self._header = bytearray()  # of a frame, as far as it has come
        self._left = 0  # bytes of this frame's payload still to come
        self._control: bytearray | None = None  # payload of a control frame, as far as it has come
        self._in_message = False  # whether the last data frame was not the message's last
        self._broken: FrameError | None = None
        self._over = False  # closed or broken

    def feed(self, data: memoryview) -> None:
        """Takes what came from the server.

        Args:
            data: of any size; must not change until `take` has returned None.
        """
        self._data = data
        self._at = 0

    def take(self, buffer: memoryview) -> int | None:
        """Gives payload of binary messages.

        Args:
            buffer: at least one byte.

        Returns:
            Bytes written to `buffer`; 0 once the server has closed; None if more must be fed.

        Raises:
            FrameError: see there; what came before it was given, and it will be raised again.
        """
        done = 0
        size = len(buffer)
        try:
            while done < size and not self._over and (self._left or self._enter()):
                piece = self._data[self._at : self._at + min(self._left, size - done)]
                count = len(piece)
                if self._control is not None:
                    self._control += piece
                elif count:
                    buffer[done : done + count] = piece
                    done += count
                self._at += count
                self._left -= count
                if not self._left:
                    self._leave()
                elif not count:
                    break
        except FrameError as error:
            self._broken = error
            self._over = True
        if self._broken is not None and not done:
            raise self._broken
        return done or (None if self.close is None else 0)

    def _enter(self) -> bool:
        """Reads the header of a frame; False if it has not come as a whole."""
        header = self._header
        while missing := _header_size(header) - len(header):
            piece = self._data[self._at : self._at + missing]
            if not piece:
                return False
            header += piece
            self._at += len(piece)
        self._begin(header[0], _length(header))
        return True

    def _begin(self, first: int, length: int) -> None:
        """Goes into a frame.

        Args:
            first: byte of its header.
            length: of its payload, up to 2**63 - 1: it is only counted.
        """
        opcode = first & _OPCODE
        if first & _RESERVED:  # each belongs to an extension, and we have asked for none
            raise FrameError("a frame has reserved bits set")
        if opcode & _CONTROL:
            if not first & _FIN or length > MAX_CONTROL:
                raise FrameError(f"a control frame is in pieces or above {MAX_CONTROL} bytes")
            self._control = bytearray()
        elif opcode == Opcode.TEXT:
            raise FrameError("a text message, where SPICE is binary", Status.UNSUPPORTED_DATA)
        elif opcode > Opcode.BINARY:
            raise FrameError(f"a frame has the unknown opcode {opcode}")
        elif self._in_message != (opcode == Opcode.CONTINUATION):
            raise FrameError("the pieces of a message are out of order")
        else:
            self._in_message = not first & _FIN
        self._left = length

    def _leave(self) -> None:
        """Goes out of a frame at its end."""
        if self._control is not None:
            self._hear(self._header[0] & _OPCODE, bytes(self._control))
            self._control = None
        self._header.clear()

    def _hear(self, opcode: int, payload: bytes) -> None:
        """Takes a whole control frame."""
        if opcode == Opcode.PING:
            self.ping = payload
        elif opcode == Opcode.CLOSE:
            self.close = _read_close(payload)
            self.ping = None
            self._over = True
        elif opcode != Opcode.PONG:  # those that nobody has asked for are heartbeats (5.5.3)
            raise FrameError(f"a frame has the unknown opcode {opcode}")


def _header_size(header: bytearray) -> int:
    """Bytes that a header has, as far as what has come of it tells."""
    return 2 if len(header) < 2 else 2 + _LENGTH_BYTES.get(header[1] & _LENGTH, 0)


def _length(header: bytearray) -> int:
    """Bytes of payload (RFC 6455, 5.2), from a whole header."""
    if header[1] & _MASKED:
        raise FrameError("a frame is masked, which a server's must not be")
    size = len(header) - 2
    if not size:
        return header[1]
    length = int.from_bytes(header[2:], "big")
    if length < _LENGTH_16 or (size == 8 and not 1 << 16 <= length < 1 << 63):
        raise FrameError(f"a frame gives its length as {length} in {size} bytes")
    return length


def _read_close(payload: bytes) -> Close:
    """A Close from its payload (RFC 6455, 5.5.1)."""
    if not payload:
        return Close(Status.NONE)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or code not in _SENT_CODES:
        raise FrameError(f"a Close without a valid status code ({code})")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise FrameError("the reason of a Close is no UTF-8", Status.INVALID_PAYLOAD) from None
