"""``pty[=LINK]``: a pseudo-terminal; who opens its other side is the application.

The kernel tells a master that nobody has the other side open (POLLHUP) but not when that changes,
so we look now and then, as QEMU's pty does.
"""

from __future__ import annotations

import os
import select
import tty

import anyio

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.errors import EndpointError
from spicebridge.transport.stream import Stream

_LOOK_EVERY = 0.1  # seconds; QEMU's pty looks every second


class PtyEndpoint(Endpoint):
    """A pseudo-terminal in raw mode.

    Args:
        link: where to put a symbolic link to the terminal; empty for none.
    """

    waits = True
    repeats = True

    def __init__(self, link: str = "") -> None:
        self._asked_name = f"pty={link}" if link else "pty"
        self.name = self._asked_name
        self._link = link
        self._master = -1
        self._path = ""
        self._released = anyio.Event()
        self._released.set()

    async def open(self) -> None:
        """Creates the terminal and the link to it."""
        self._master, slave = os.openpty()
        try:
            tty.setraw(slave)
            self._path = os.ttyname(slave)
        finally:
            os.close(slave)
        os.set_blocking(self._master, False)
        self.name = f"{self._asked_name} ({self._path})"
        if self._link:
            try:
                self._make_link()
            except OSError as error:
                os.close(self._master)
                self._master = -1
                raise EndpointError(
                    f"{self._asked_name}: cannot create the link: {error.strerror}",
                    "choose a path that is free, in a folder that you may write to",
                ) from error

    def _make_link(self) -> None:
        if os.path.islink(self._link) and not os.path.exists(self._link):
            os.unlink(self._link)  # left by one that could not tidy up
        os.symlink(self._path, self._link)

    async def accept(self) -> Application:
        """Waits until somebody has the terminal open, once the last one has been let go."""
        await self._released.wait()
        poll = select.poll()
        poll.register(self._master, 0)
        while any(event & select.POLLHUP for _, event in poll.poll(0)):
            await anyio.sleep(_LOOK_EVERY)
        self._released = anyio.Event()
        master = os.dup(self._master)
        stream = Stream(master, master, end=lambda: None, close=lambda: self._release(master))
        return Application(stream, self._path)

    def _release(self, master: int) -> None:
        os.close(master)
        self._released.set()

    def close(self) -> None:
        """Gives the terminal back and removes the link."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
            if self._link and os.path.islink(self._link) and os.readlink(self._link) == self._path:
                os.unlink(self._link)
