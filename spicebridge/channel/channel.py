"""A linked channel as a byte stream with port events: a `Conversation` on a `Wire`, either role.

Closing has two rules of its own. Closing a socket with unread input makes the kernel reset the
connection, and the peer then loses what was on its way to it: so a channel ends its sending side,
reads to end of file, and only then closes. And libspice-server 0.15 crashes when a client has gone
before the guest took what it sent (RedCharDeviceSpiceVmc::on_free_self_token uses the client that
is no more), or the guest reads end of file before the rest, and nothing in the protocol tells what
was taken: so a client stays linked until a guest of its pace has taken all (`Untaken`), and the
channel has been silent for a moment.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel

from spicebridge.channel.flow import data_size
from spicebridge.channel.moving import Moving
from spicebridge.errors import SpicebridgeError

CLOSE_TIMEOUT = 2.0
"""Seconds that a peer has to end its side once we have ended ours."""

SETTLE_TIME = 0.5
"""Seconds of silence after our last DATA before a client leaves a channel."""

SETTLE_LIMIT = 2.0
"""Seconds that a client stays for this silence at most, on a channel that is never silent."""


class Channel(Moving):
    """A linked channel. One task may receive while another one sends.

    Args:
        wire: the connection, right behind the link result; the channel owns it from now on.
        linked: what was agreed on.
        server: whether we are the server.

    Attributes:
        linked: what was agreed on.
        dropped: bytes of DATA that came while we were closing it.
        port: name and state of the port as the server told them at the start, where it did.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def closed(self) -> bool:
        """Whether we have closed it."""
        return self._closed

    def abort(self) -> None:
        """Closes at once; what is on its way in either direction may be lost."""
        self._closed = True
        self._wire.close()

    def hang_up(self) -> None:
        """Has the peer's side end behind what has arrived by now, as that has died silently."""
        self._wire.hang_up()

    async def settle(self) -> None:
        """Waits, as a client, until the guest may be supposed to have taken our last DATA.

        Another task receives meanwhile. Bounded by `SETTLE_LIMIT`, behind a move, if there is one,
        and behind the time that the guest takes. One that has closed its port takes nothing,
        however long one waits.
        """
        while self._move is not None:  # the other server waits for the state of what it has linked
            await self._move.change()
        if self._server or (self.port is not None and not self.port.opened):
            return
        untaken = self._untaken
        with anyio.move_on_after(max(0.0, untaken.taken - time.monotonic()) + SETTLE_LIMIT):
            while (left := max(untaken.taken, untaken.active + SETTLE_TIME) - time.monotonic()) > 0:
                await anyio.sleep(left)

    async def aclose(self) -> None:
        """Settles, ends our side, reads the peer's to its end, and closes.

        What the peer still sends is dropped; who wants it calls `settle`, `end` and `receive`
        before. Bounded by `SETTLE_LIMIT` and `CLOSE_TIMEOUT`. When cancelled, it hurries: no more
        than `SETTLE_TIME` for each of the two.
        """
        try:
            await self._close(CLOSE_TIMEOUT)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(2 * SETTLE_TIME, shield=True):
                await self._close(SETTLE_TIME)
            raise
        finally:
            self.abort()

    async def _close(self, patience: float) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_settled, tasks.cancel_scope, patience)
            try:
                # reading comes before `settle` looks, as what has not been read is no silence
                while (items := await self._receive()) is not None:
                    self.dropped += sum(map(data_size, items))
                    await anyio.lowlevel.checkpoint()
            except (SpicebridgeError, anyio.ClosedResourceError):
                pass  # it is gone, which is what we want
            tasks.cancel_scope.cancel()

    async def _end_settled(self, reading: anyio.CancelScope, patience: float) -> None:
        await self.settle()
        self.end()
        await anyio.sleep(patience)
        reading.cancel()
