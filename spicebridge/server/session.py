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

PONG_TIMEOUT: Final = 30.0
"""Seconds after which a client that owes a PONG is disconnected, as by libspice-server."""

SESSION_GRACE: Final = 2.0
"""Seconds that the channels of a session have to end by themselves after its main channel."""

_MAX_SESSION_ID: Final = 2**32 - 1


class ServedSession:
    """One client's session.

    Args:
        main: its main channel.
        peer: who the client is, for the log.
        offered: what it gets as the list of channels.

    Attributes:
        id: what the client's other channels are linked with.
    """

    def __init__(self, main: Channel, peer: str, offered: ChannelsList) -> None:
        self.id = secrets.randbelow(_MAX_SESSION_ID) + 1
        self._main = main
        self._peer = peer
        self._offered = offered
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
                elif isinstance(item, Pong):
                    self._ponged.set()
                else:
                    log.debug("%s: main: %s", self._peer, item)

    async def _ping(self) -> None:
        number = 0
        while True:
            number += 1
            self._ponged = anyio.Event()
            await self._main.send_message(Msg.PING, new_ping(number))
            with anyio.move_on_after(PONG_TIMEOUT):
                await self._ponged.wait()
            if not self._ponged.is_set():
                raise _SilentClientError(f"no PONG within {PONG_TIMEOUT:g} seconds")
            await anyio.sleep(PING_EVERY)


class _SilentClientError(ChannelClosedError):
    """The client owes a PONG for too long."""


def new_ping(number: int) -> bytes:
    """The payload of a PING that says when it was sent, in microseconds."""
    return encode_ping(Ping(number, int(anyio.current_time() * 1e6)))
