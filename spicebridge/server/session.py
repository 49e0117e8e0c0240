"""A client's session as the server has it: its main channel, and when its other channels end."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.errors import SpicebridgeError, one_error
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.events import AttachChannels, ChannelsList, MainInit, Ping, Pong
from spicebridge.protocol.messages import encode_channels_list, encode_main_init, encode_ping

log = logging.getLogger(__name__)

PING_EVERY: Final = 10.0
"""Seconds between two pings on the main channel."""

SESSION_GRACE: Final = 2.0
"""Seconds that the channels of a session have to end by themselves after its main channel."""

MAIN_MESSAGES: Final = 10_000
"""Messages a second that a main channel may bring, far more than any client sends: who sends more
has to wait for us, and not all the others."""

_MAX_SESSION_ID: Final = 2**32 - 1


class ServedSession:
    """One client's session.

    Args:
        main: its main channel.
        peer: who the client is, for the log.
        offered: what it gets as the list of channels.
        pong_time: seconds after which a client that owes a PONG is disconnected.

    Attributes:
        id: what the client's other channels are linked with.
    """

    def __init__(self, main: Channel, peer: str, offered: ChannelsList, pong_time: float) -> None:
        self.id = secrets.randbelow(_MAX_SESSION_ID) + 1
        self._main = main
        self._peer = peer
        self._offered = offered
        self._pong_time = pong_time
        self._pinged = 0  # the number of the last ping
        self._ponged = anyio.Event()
        self._channels: set[anyio.CancelScope] = set()

    async def run(self) -> None:
        """Answers the main channel until the client goes; then its other channels end, too.

        What it sent on them before still arrives, unless it has stopped answering at all.
        """
        try:
            await self._talk()
            with anyio.move_on_after(SESSION_GRACE):
                while self._channels:
                    await anyio.sleep(0.02)
        finally:
            for scope in self._channels:
                scope.cancel()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A block that is cancelled when the session has ended: for one of its channels."""
        with anyio.CancelScope() as scope:
            self._channels.add(scope)
            try:
                yield
            finally:
                self._channels.discard(scope)

    async def _talk(self) -> None:
        """Talks on the main channel; what goes wrong there is logged."""
        log.info("%s has opened a session", self._peer)
        try:
            with one_error():
                async with anyio.create_task_group() as tasks:
                    await self._main.send_message(
                        Msg.MAIN_INIT, encode_main_init(MainInit(self.id))
                    )
                    tasks.start_soon(self._ping)
                    await self._answer()
                    tasks.cancel_scope.cancel()
        except _SilentClientError:
            log.warning("%s does not answer pings: disconnected", self._peer)
            for scope in self._channels:
                scope.cancel()
        except SpicebridgeError as error:
            log.warning("%s: %s", self._peer, error)
        else:
            log.info("%s has ended its session", self._peer)

    async def _answer(self) -> None:
        while (items := await self._main.receive()) is not None:
            for item in items:
                if isinstance(item, AttachChannels):
                    await self._main.send_message(
                        Msg.MAIN_CHANNELS_LIST, encode_channels_list(self._offered)
                    )
                elif not isinstance(item, Pong):
                    log.debug("%s: main: %s", self._peer, item)
                elif item.id == self._pinged:
                    self._ponged.set()
            # one that has gone says no more than what has come, and is not to be here for long
            await anyio.sleep(0 if self._main.peer_ended() else len(items) / MAIN_MESSAGES)

    async def _ping(self) -> None:
        while True:
            self._pinged += 1
            self._ponged = anyio.Event()
            with anyio.move_on_after(self._pong_time):
                # a client that reads nothing does not even let us ask
                await self._main.send_message(Msg.PING, new_ping(self._pinged))
                await self._ponged.wait()
            if not self._ponged.is_set():
                raise _SilentClientError(f"no PONG within {self._pong_time:g} seconds")
            await anyio.sleep(PING_EVERY)


class _SilentClientError(ChannelClosedError):
    """The client owes a PONG for too long."""


def new_ping(number: int) -> bytes:
    """The payload of a PING that says when it was sent, in microseconds."""
    return encode_ping(Ping(number, int(anyio.current_time() * 1e6)))
