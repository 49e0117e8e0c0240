"""The way from a bridge to its channel, while sessions with the server come and go."""

from __future__ import annotations

import anyio

from spicebridge.channel import Channel
from spicebridge.client.session import ChannelInfo, Session
from spicebridge.errors import SessionLostError, SpicebridgeError


class Line:
    """One bridge's way to its channel. The supervisor connects it to sessions, one after another.

    Args:
        comes_back: whether there is another session when one was lost.

    Attributes:
        comes_back: the same.
        session: the one that there is; None while the server is away.
        closed: whether no other will come.
    """

    def __init__(self, *, comes_back: bool = False) -> None:
        self.comes_back = comes_back
        self.session: Session | None = None
        self._channel: ChannelInfo | None = None
        self.closed = False
        self._changed = anyio.Event()

    def connect(self, session: Session, channel: ChannelInfo) -> None:
        """From now on the channel is linked in this session."""
        self.session, self._channel = session, channel
        self._note_change()

    def disconnect(self) -> None:
        """The server is away; another session may come."""
        self.session = None
        self._note_change()

    def close(self) -> None:
        """There will be no other session than the one that there is."""
        self.closed = True
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    @property
    def up(self) -> bool:
        """Whether it is worth a try to `open`: the server is there."""
        return self.session is not None and not self.session.lost.is_set()

    async def changed(self) -> None:
        """Waits until the server comes or goes."""
        await self._changed.wait()

    async def open(self) -> Channel:
        """Links the channel, waiting for the server while that is away.

        Raises:
            SessionLostError: it will not come back.
            SpicebridgeError: see `Session.open_channel`; the server is there.
        """
        while True:
            session = self.session
            if session is not None and self._channel is not None and not session.lost.is_set():
                try:
                    return await session.open_channel(self._channel)
                except SpicebridgeError:
                    if not session.lost.is_set():
                        raise
            if self.closed:
                raise SessionLostError("there is no session any more")
            if self.session is session:
                await self._changed.wait()
