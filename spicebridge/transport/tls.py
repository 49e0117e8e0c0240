"""TLS on another wire, through `ssl`'s memory buffers: the data path below it stays what it is.

Compared with `ssl.SSLSocket` the kernel is asked once for many records instead of twice for each,
and TLS may run inside TLS, as through a proxy that speaks it.
"""

from __future__ import annotations

import errno
import ssl
from typing import Final, cast

from spicebridge.transport.layer import Layer
from spicebridge.transport.wire import Wire

_HANDSHAKE: Final = 16 * 1024
"""Bytes that are read at a time before both sides have agreed."""


class TlsWire(Layer):
    """TLS, once `handshake` is done.

    Args:
        inner: the wire below.
        context: what is trusted, or who we are.
        host: the name to ask the server for, which its certificate must have where `context` says
            so; None to ask for none.
        server: whether we are the server.
    """

    def __init__(
        self,
        inner: Wire,
        context: ssl.SSLContext,
        host: str | None = None,
        *,
        server: bool = False,
    ) -> None:
        super().__init__(inner)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server, server_hostname=host
        )
        self._early = bytearray()  # taken from OpenSSL before it was told that we end

    async def handshake(self) -> None:
        """Agrees on keys and checks the peer's certificate.

        Raises:
            ssl.SSLError: the peer does not speak TLS, or either side refuses the other.
            OSError: the connection broke.
        """
        buffer = memoryview(bytearray(_HANDSHAKE))
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_outgoing()
            except ssl.SSLError:
                self._say(self._outgoing.read())  # why, as an alert
                raise
            else:
                await self._send_outgoing()
                return
            if count := await self._inner.read_into(buffer):
                self._feed(buffer[:count])
            else:
                self._incoming.write_eof()

    async def _send_outgoing(self) -> None:
        await self._inner.write_all([memoryview(self._outgoing.read())])

    def _feed(self, data: memoryview) -> None:
        self._incoming.write(data)

    def _take(self, buffer: memoryview) -> int | None:
        if self._early:
            count = min(len(buffer), len(self._early))
            buffer[:count] = self._early[:count]
            del self._early[:count]
            return count
        count = 0
        ended = False
        try:
            while count < len(buffer) and not ended:
                read = self._read(buffer[count:])
                count += read
                ended = not read
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the same end, when we have ended, too
            ended = True
        except ssl.SSLError as error:
            if not count:  # what came before it counts; the error will be there next time
                raise OSError(errno.EPROTO, f"TLS: {reason_of(error)}") from error
        self._say(self._outgoing.read())  # e.g. the answer to a change of keys
        return count or (0 if ended else None)

    def _read(self, buffer: memoryview) -> int:
        # typeshed knows only the call without a buffer, which returns bytes
        return cast("int", self.tls.read(len(buffer), cast("bytearray", buffer)))

    def _turn(self, buffer: memoryview) -> bytes:
        done = 0
        while done < len(buffer):
            done += self.tls.write(buffer[done:])
        return self._outgoing.read()

    def _last_word(self) -> bytes:
        """The alert close_notify (RFC 8446, 6.1); what the peer sends may still be read."""
        # SSL_shutdown fails over application data that it finds before the peer's close_notify
        if decrypted := self.tls.pending():
            rest = memoryview(bytearray(decrypted))
            self._early += rest[: self._read(rest)]
        unread = self._incoming.read()
        try:
            self.tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLError):
            pass
        self._incoming.write(unread)
        return self._outgoing.read()


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason in words: ``certificate verify failed``."""
    return (error.reason or str(error)).lower().replace("_", " ")
