"""On a wire, the security layer that a SASL login has left behind (RFC 4422, 3.7)."""

from __future__ import annotations

import errno

from spicebridge.errors import ProtocolError, SessionLostError
from spicebridge.protocol.security_layer import SecurityLayer
from spicebridge.transport.layer import Layer
from spicebridge.transport.wire import Wire


class SaslWire(Layer):
    """Everything in frames of a `SecurityLayer`.

    Args:
        inner: the wire below, right behind the login.
        security: what was agreed on.
    """

    def __init__(self, inner: Wire, security: SecurityLayer) -> None:
        super().__init__(inner)
        self._security = security

    def _feed(self, data: memoryview) -> None:
        try:
            self._security.feed(data)
        except ProtocolError as error:
            raise OSError(errno.EPROTO, str(error)) from error

    def _take(self, buffer: memoryview) -> int | None:
        return self._security.take(buffer)

    def _turn(self, buffer: memoryview) -> bytes:
        try:
            return self._security.encode(buffer)
        except SessionLostError as error:
            raise OSError(errno.EPROTO, str(error)) from error

    def _last_word(self) -> bytes:
        return b""
