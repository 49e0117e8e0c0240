"""The security layer that a SASL login may leave behind: all that follows goes in frames.

A frame is a u32 length, big-endian for once, and that many bytes of a token that the mechanism has
made of at most so many bytes as both sides agreed on (RFC 4422, section 3.7). How the tokens are
made is the mechanism's: `FrameLayer` is given two functions for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from spicebridge.errors import ProtocolError

_LENGTH = struct.Struct(">I")


class SecurityLayer(Protocol):
    """Turns bytes for the peer into frames, and frames from the peer into bytes."""

    def encode(self, data: bytes | memoryview) -> bytes:
        """Whole frames for `data`, of any size; they have to be sent in the order of the calls.

        Raises:
            SessionLostError: the mechanism can make no more of them.
        """
        ...

    @property
    def needed(self) -> int:
        """Bytes from the peer until there is more to take. Who feeds no more waits for no more."""
        ...

    def feed(self, data: bytes | memoryview) -> None:
        """Takes bytes from the peer, cut anywhere; `data` is used during the call only.

        Raises:
            ProtocolError: a frame is too long, or its token is not the peer's.
        """
        ...

    def take(self, buffer: memoryview) -> int | None:
        """Writes what the frames held to `buffer`; returns how much, or None if nothing is there.

        An empty frame holds nothing, so 0 is returned only for an empty buffer.
        """
        ...


class FrameLayer:
    """A `SecurityLayer` around two functions.

    Args:
        wrap: makes a token of up to `max_plain` bytes for the peer; may raise what `encode` may.
        unwrap: gives the bytes of a token from the peer; raises `BadTokenError` for a forged one.
        max_plain: bytes that one of our frames may carry, so that the peer takes its token.
        max_token: bytes that a token from the peer may have: what we told it.
        position: bytes that came from the peer before the first frame, for errors.
    """

    def __init__(
        self,
        wrap: Callable[[bytes], bytes],
        unwrap: Callable[[bytes], bytes],
        *,
        max_plain: int,
        max_token: int,
        position: int,
    ) -> None:
        self._wrap = wrap
        self._unwrap = unwrap
        self._max_plain = max_plain
        self._max_token = max_token
        self._position = position
        self._token: int | None = None  # bytes of the token, once its length has come
        self._received = bytearray()
        self._plain = bytearray()

    def encode(self, data: bytes | memoryview) -> bytes:
        """Whole frames for `data`; see `SecurityLayer`."""
        frames = bytearray()
        for start in range(0, len(data), self._max_plain):
            token = self._wrap(bytes(data[start : start + self._max_plain]))
            frames += _LENGTH.pack(len(token))
            frames += token
        return bytes(frames)

    @property
    def needed(self) -> int:
        """Bytes from the peer until the frame, or its length, is whole."""
        return self._wanted - len(self._received)

    @property
    def _wanted(self) -> int:
        return _LENGTH.size if self._token is None else self._token

    def feed(self, data: bytes | memoryview) -> None:
        """Takes bytes from the peer; see `SecurityLayer`."""
        rest = memoryview(data)
        while rest or not self.needed:  # an empty token needs nothing
            piece = rest[: self.needed]
            self._received += piece
            rest = rest[len(piece) :]
            if not self.needed:
                self._advance(bytes(self._received))

    def _advance(self, received: bytes) -> None:
        self._received.clear()
        if self._token is not None:
            try:
                self._plain += self._unwrap(received)
            except BadTokenError as error:
                raise ProtocolError(
                    "SASL frame", self._position, "a token made by the server", str(error)
                ) from error
            self._token = None
        else:
            (length,) = _LENGTH.unpack(received)
            if length > self._max_token:
                raise ProtocolError(
                    "SASL frame", self._position, f"at most {self._max_token} bytes", f"{length}"
                )
            self._token = length
        self._position += len(received)

    def take(self, buffer: memoryview) -> int | None:
        """Writes what the frames held to `buffer`; see `SecurityLayer`."""
        if not self._plain:
            return None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        del self._plain[:count]
        return count


class BadTokenError(Exception):
    """A token that the peer cannot have made."""
