"""Data headers: what stands before every message once a channel is linked.

With MINI_HEADER agreed a header is u16 type, u32 size (SpiceMiniDataHeader); without it u64 serial,
u16 type, u32 size, u32 sub_list (SpiceDataHeader). Both are little-endian.
"""

from __future__ import annotations

import struct
from typing import Final

from spicebridge.errors import ProtocolError

_MINI: Final = struct.Struct("<HI")
_FULL: Final = struct.Struct("<QHII")

MAX_HEADER: Final = _FULL.size
"""Bytes of the larger of the two headers."""


class Framing:
    """Packs and unpacks the headers of one channel.

    Args:
        mini_header: what was agreed on when the channel was linked.

    Attributes:
        size: bytes of a header, 6 or 18.
    """

    def __init__(self, *, mini_header: bool) -> None:
        self.mini_header = mini_header
        self.size = _MINI.size if mini_header else _FULL.size
        self._serial = 0

    def pack_into(self, buffer: bytearray, offset: int, message_type: int, size: int) -> None:
        """Writes the header of our next message, whose payload has `size` bytes."""
        if self.mini_header:
            _MINI.pack_into(buffer, offset, message_type, size)
        else:
            self._serial += 1
            _FULL.pack_into(buffer, offset, self._serial, message_type, size, 0)

    def pack_header(self, message_type: int, size: int) -> bytes:
        """The header of our next message, whose payload has `size` bytes."""
        header = bytearray(self.size)
        self.pack_into(header, 0, message_type, size)
        return bytes(header)

    def pack(self, message_type: int, payload: bytes) -> bytes:
        """Our next message, whole."""
        return self.pack_header(message_type, len(payload)) + payload

    def unpack_from(self, buffer: memoryview, offset: int, position: int) -> tuple[int, int]:
        """Reads a header.

        Args:
            buffer: where the header is.
            offset: where it begins there.
            position: where it begins in the peer's stream, for the message of an error.

        Returns:
            Type and size in bytes of the message.

        Raises:
            ProtocolError: if it has sub-messages. No server sends them on the channels that we
                link, nor any client.
        """
        if self.mini_header:
            return _MINI.unpack_from(buffer, offset)
        _, message_type, size, sub_list = _FULL.unpack_from(buffer, offset)
        if sub_list:
            raise ProtocolError("data header", position + 14, "no sub-messages", f"{sub_list}")
        return message_type, size
