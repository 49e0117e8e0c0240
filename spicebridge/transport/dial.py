"""Dials a target: from its address to a wire on which SPICE is spoken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from spicebridge.transport.address import ServerAddress, TcpAddress, UnixAddress, WebAddress
from spicebridge.transport.connect import connect
from spicebridge.transport.target import Target
from spicebridge.transport.wire import Wire

if TYPE_CHECKING:
    import ssl

    from spicebridge.transport.proxy_address import ProxyAddress


class Dialer:
    """Dials one target, as often as its channels need it.

    Args:
        target: the server.
        timeout: seconds that each step may take; None for `CONNECT_TIMEOUT`.
    """

    def __init__(self, target: Target, timeout: float | None = None) -> None:
        self.target = target
        self.timeout = timeout
        self._context: ssl.SSLContext | None = None

    async def dial(self, address: ServerAddress, *, secure: bool) -> Wire:
        """Connects to one of the target's addresses.

        Args:
            address: which.
            secure: whether it takes TLS.

        Raises:
            ConnectError: the server or the proxy cannot be reached, or falls silent.
            TlsError: the server does not speak TLS, or is not to be trusted.
            UsageError: what the target says of TLS or of the proxy cannot be used.

        When cancelled, nothing stays open.
        """
        context = await self._tls_context() if self.target.secure is not None else None
        wire = await self._reach(address)
        try:
            if secure and context is not None:
                wire = await self._start_tls(wire, context, address)
            if isinstance(address, WebAddress):
                wire = await self._open_websocket(wire, address)
        except BaseException:
            wire.close()
            raise
        return wire

    async def _reach(self, address: ServerAddress) -> Wire:
        if isinstance(address, UnixAddress):
            return await connect(address, self.timeout)
        tcp = TcpAddress(address.host, address.port)
        if self.target.proxy is None:
            return await connect(tcp, self.timeout)
        return await self._through(self.target.proxy, tcp)

    # Each imports what it needs: all of it would cost the start of every command some 100 ms

    async def _through(self, proxy: ProxyAddress, address: TcpAddress) -> Wire:
        from spicebridge.transport.proxy import connect_through
        from spicebridge.transport.trust import proxy_context

        context = None
        if proxy.scheme == "https":
            context = await anyio.to_thread.run_sync(proxy_context, self.target.trust)
        return await connect_through(proxy, address, self.timeout, context)

    async def _tls_context(self) -> ssl.SSLContext:
        """Made before the first connection, even if that needs none: what is wrong with it is
        refused before anybody is asked."""
        from spicebridge.transport.trust import tls_context

        if self._context is None:
            self._context = await anyio.to_thread.run_sync(tls_context, self.target.trust)
        return self._context

    async def _start_tls(self, wire: Wire, context: ssl.SSLContext, address: ServerAddress) -> Wire:
        from spicebridge.transport.start_tls import start_tls

        host = "localhost" if isinstance(address, UnixAddress) else address.host
        return await start_tls(wire, context, host, address, self.timeout, self.target.trust)

    async def _open_websocket(self, wire: Wire, address: WebAddress) -> Wire:
        from spicebridge.transport.websocket import open_websocket

        return await open_websocket(wire, address, self.timeout)
