"""A SPICE endpoint: accepts links, lets clients log in, and hands their channels to who serves
them. This is what gives user-defined channels a server at all.

It does as libspice-server does where clients can tell: MAIN_INIT, the list of channels, pings on
the main channel, a PING at the start of every other one. It differs where it can say more: a type
that it does not offer and a channel that is in use are refused with CHANNEL_NOT_AVAILABLE instead
of silence, and several clients may be there at once, one for each channel.

What clients may cost is bounded: see `ServerLimits`, and for those that have not logged in `Lobby`
and `Guesses`.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread

from spicebridge.channel import Channel
from spicebridge.errors import ProtocolError, SpicebridgeError, TlsError, one_error
from spicebridge.protocol.constants import ChannelType, LinkErr, Msg
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.events import ChannelsList
from spicebridge.protocol.link import Linked, LinkRequest, link_server
from spicebridge.protocol.login import encode_password
from spicebridge.protocol.server_ticket import ServerTicket, new_ticket_key, ticket_pubkey
from spicebridge.server.guesses import Attempt, Guesses
from spicebridge.server.limits import DEFAULT_LIMITS, ServerLimits
from spicebridge.server.lobby import Lobby
from spicebridge.server.session import ServedSession, new_ping
from spicebridge.transport.listen import Listener, origin_of
from spicebridge.transport.steps import step
from spicebridge.transport.stream import Stream
from spicebridge.transport.tls import TlsWire, reason_of
from spicebridge.transport.wire import Wire

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """One channel on offer.

    Attributes:
        type: channel type.
        id: instance within the type.
        serve: called with the channel once a client has linked it, for as long as it is linked;
            the endpoint closes the channel afterwards.
    """

    type: int
    id: int
    serve: Callable[[Channel], Awaitable[None]]


class SpiceEndpoint:
    """Offers channels to SPICE clients.

    Args:
        offers: the channels; no type and id twice.
        password: the ticket; None to let everybody in.
        tls: our certificate and key, where clients are to speak TLS.
        limits: of what clients may cost.

    Raises:
        UsageError: the password is longer than SPICE takes.
    """

    def __init__(
        self,
        offers: Sequence[Offer],
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        limits: ServerLimits = DEFAULT_LIMITS,
    ) -> None:
        self._offers = {(offer.type, offer.id): offer for offer in offers}
        self._limits = limits
        self._lobby = Lobby(limits.logins)
        self._guesses = Guesses(limits.guess_time)
        self._password = password
        self._tls = tls
        if password is not None:
            encode_password(password)  # refused before anything is created
        self._sessions: dict[int, ServedSession] = {}
        self._linked: set[tuple[int, int]] = set()
        self._unlinked = anyio.Event()
        self._logins: list[ServerTicket] = []
        self._pubkey = b""

    async def serve(self, listener: Listener) -> None:
        """Accepts clients until cancelled. What goes wrong with one of them is logged.

        Args:
            listener: where clients come from; stays open.
        """
        key = await anyio.to_thread.run_sync(new_ticket_key)
        self._pubkey = ticket_pubkey(key)
        self._logins = [ServerTicket(key, self._password)]
        async with anyio.create_task_group() as tasks:
            while True:
                stream, peer = await listener.accept()
                tasks.start_soon(self._client, stream, peer)

    async def _client(self, stream: Stream, peer: str) -> None:
        wire = stream if self._tls is None else TlsWire(stream, self._tls, server=True)
        origin = origin_of(stream)
        linked: Linked | None = None
        try:
            with self._lobby.waiting(origin):
                linked = await self._log_in(wire, origin)
        except (SpicebridgeError, OSError) as error:
            log.warning("%s: %s", peer, error)
        finally:
            if linked is None:  # refused, in vain, or pushed out
                wire.close()
        if linked is None:
            return
        channel = Channel(wire, linked, server=True)
        key = linked.request.channel_type, linked.request.channel_id
        log.debug("%s has linked %s", peer, channel.name)
        try:
            with one_error():
                if linked.request.channel_type == ChannelType.MAIN:
                    await self._main(channel, peer)
                else:
                    await self._other(channel, self._offers[key])
        except SpicebridgeError as error:
            log.warning("%s: %s", peer, error)
        finally:
            self._linked.discard(key)  # first: a client that sees the end may link again at once
            self._unlinked.set()
            await channel.aclose()

    async def idle(self) -> None:
        """Waits until no client has a channel linked, main channels apart."""
        while self._linked:
            self._unlinked = anyio.Event()
            await self._unlinked.wait()

    # Linking

    async def _log_in(self, wire: Wire, origin: str) -> Linked:
        attempts = [Attempt(login) for login in self._logins]
        exchange = Exchange(link_server(self._pubkey, attempts, self._available, self._admit))
        admitted = False
        try:
            async with step("waiting for a client to log in", self._limits.login_time, hint=""):
                if isinstance(wire, TlsWire):
                    await self._start_tls(wire)
                while not exchange.done:
                    buffer = bytearray(exchange.needed)
                    count = await wire.read_into(memoryview(buffer))
                    if not count:
                        raise ProtocolError("SpiceLinkMess", 0, "a link", "a closed connection")
                    if any(attempt.begun for attempt in attempts):
                        await self._guesses.turn(origin)
                    try:
                        exchange.receive_data(bytes(buffer[:count]))
                    finally:  # a refusal, too
                        if any(attempt.wrong for attempt in attempts):
                            self._guesses.wrong(origin)
                            await self._guesses.turn(origin)
                        await wire.write_all([memoryview(exchange.data_to_send())])
            admitted = True
            return exchange.result
        finally:
            if exchange.done and not admitted:  # the client went while it was told so
                request = exchange.result.request
                self._linked.discard((request.channel_type, request.channel_id))

    async def _start_tls(self, wire: TlsWire) -> None:
        try:
            await wire.handshake()
        except ssl.SSLError as error:
            raise TlsError(
                f"the client's TLS: {reason_of(error)}", "does it speak TLS, and trust us?"
            ) from error

    def _available(self, request: LinkRequest) -> LinkErr:
        if request.channel_type == ChannelType.MAIN and request.channel_id == 0:
            return self._room()
        key = request.channel_type, request.channel_id
        return LinkErr.OK if key in self._offers else LinkErr.CHANNEL_NOT_AVAILABLE

    def _admit(self, request: LinkRequest) -> LinkErr:
        if request.channel_type == ChannelType.MAIN:
            return LinkErr.BAD_CONNECTION_ID if request.connection_id else self._room()
        if request.connection_id not in self._sessions:
            return LinkErr.BAD_CONNECTION_ID
        key = request.channel_type, request.channel_id
        if key in self._linked:
            return LinkErr.CHANNEL_NOT_AVAILABLE
        self._linked.add(key)
        return LinkErr.OK

    def _room(self) -> LinkErr:
        """Whether there is room for another session."""
        if len(self._sessions) < self._limits.sessions:
            return LinkErr.OK
        log.warning("%d sessions are open: no other is let in", len(self._sessions))
        return LinkErr.ERROR

    # Channels

    async def _main(self, channel: Channel, peer: str) -> None:
        offered = ChannelsList(tuple(self._offers))
        session = ServedSession(channel, peer, offered, self._limits.pong_time)
        self._sessions[session.id] = session
        try:
            await session.run()
        finally:
            del self._sessions[session.id]

    async def _other(self, channel: Channel, offer: Offer) -> None:
        session = self._sessions.get(channel.linked.request.connection_id)
        if session is None:  # it has ended meanwhile
            return
        with session.holding():
            # tells the client that it has the channel, which a link result of 0 does not
            await channel.send_message(Msg.PING, new_ping(1))
            await offer.serve(channel)
