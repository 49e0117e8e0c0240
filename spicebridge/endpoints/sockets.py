"""``unixsocket=`` and ``tcp=``: an application at a socket, ours or its own."""

from __future__ import annotations

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.errors import ConnectError, EndpointError
from spicebridge.transport.address import Address, UnixAddress
from spicebridge.transport.connect import connect
from spicebridge.transport.listen import Listener, listen

TCP_LINGER = 0.5
"""Seconds. A TCP peer that has closed looks like one that has only ended its sending; socat waits
as long by default (its option -t)."""


def linger_at(address: Address, asked: float | None) -> float | None:
    """A Unix socket tells exactly when its peer has gone; TCP needs a time."""
    if asked is None and not isinstance(address, UnixAddress):
        return TCP_LINGER
    return asked


class ListenerEndpoint(Endpoint):
    """A socket where applications connect, whoever has made it.

    Args:
        name: as in the specification.
        linger: see `Application`.
    """

    waits = True
    repeats = True

    def __init__(self, name: str, linger: float | None) -> None:
        self.name = name
        self._linger = linger
        self._listener: Listener | None = None

    async def accept(self) -> Application:
        """The next connection."""
        if self._listener is None:
            raise EndpointError(f"{self.name} is not open")
        stream, name = await self._listener.accept()
        return Application(stream, name, linger=self._linger)

    def close(self) -> None:
        """Stops listening and removes the socket's file, if it was made here."""
        if self._listener is not None:
            self._listener.close()


class ListeningEndpoint(ListenerEndpoint):
    """``mode=listen``: applications connect to us.

    Args:
        name: as in the specification.
        address: where to listen.
        perm: mode of a Unix socket.
        linger: see `Application`.
    """

    def __init__(
        self, name: str, address: Address, *, perm: int = 0o600, linger: float | None = None
    ) -> None:
        super().__init__(name, linger_at(address, linger))
        self._address = address
        self._perm = perm

    async def open(self) -> None:
        """Listens."""
        self._listener = await listen(self._address, self._perm)
        if self._listener.address != self._address:  # port 0 was asked for
            self.name = f"tcp={self._listener.address}"


class ConnectingEndpoint(Endpoint):
    """``mode=connect``: we connect to an application that listens.

    Args:
        name: as in the specification.
        address: where it listens.
        linger: see `Application`.
    """

    waits = False
    repeats = True

    def __init__(self, name: str, address: Address, *, linger: float | None = None) -> None:
        self.name = name
        self._address = address
        self._linger = linger_at(address, linger)

    async def accept(self) -> Application:
        """Connects."""
        try:
            stream = await connect(self._address)
        except ConnectError as error:
            raise EndpointError(
                f"{self.name}: {error.problem}", "start the application that listens there first"
            ) from error
        return Application(stream, str(self._address), linger=self._linger)
