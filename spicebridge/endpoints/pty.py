"""``pty[=LINK]``: a pseudo-terminal; who opens its other side is the application.

The kernel tells a master that nobody has the other side open (POLLHUP) but not when that changes,
so we look now and then, as QEMU's pty does.
"""

from __future__ import annotations

import os
import select
import stat
import tty

import anyio

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.endpoints.pty_break import PtyBreak
from spicebridge.errors import EndpointError
from spicebridge.transport.entry import Entry
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
        self._made: Entry | None = None
        self._master = -1
        self._path = ""
        self._released = anyio.Event()
        self._released.set()

    async def open(self) -> None:
        """Creates the terminal and the link to it."""
        try:
            self._master, slave = os.openpty()
        except OSError as error:
            raise EndpointError(
                f"{self._asked_name}: cannot create a terminal: {error.strerror}"
            ) from error
        try:
            tty.setraw(slave)
            os.fchmod(slave, 0o600)  # the group tty may write to others (write(1))
            self._path = os.ttyname(slave)
        finally:
            os.close(slave)
        os.set_blocking(self._master, False)
        self.name = f"{self._asked_name} ({self._path})"
        if self._link:
            try:
                self._make_link()
            except OSError as error:
                self.close()
                raise EndpointError(
                    f"{self._asked_name}: cannot create the link: {error.strerror}",
                    "choose a path that is free, in a folder that you may write to",
                ) from error

    def _make_link(self) -> None:
        self._remove_old_link()
        os.symlink(self._path, self._link)
        self._made = Entry.made(self._link, stat.S_IFLNK, 0o777)  # all links have it

    def _remove_old_link(self) -> None:
        """Removes a link of ours that one left behind who could not tidy up.

        It leads nowhere, or to our own terminal: the lowest number that is free is often the same.
        """
        try:
            found = Entry(self._link)
        except OSError:  # nothing there; what else is wrong, making the link will tell
            return
        with found:
            if not stat.S_ISLNK(found.status.st_mode) or not found.ours:
                return
            target = os.readlink(self._link)
            folder = os.path.dirname(self._path)
            gone = os.path.dirname(target) == folder and not os.path.lexists(target)
            if gone or target == self._path:
                found.remove()

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
        return Application(stream, self._path, send_break=PtyBreak(stream, self._path).send)

    def _release(self, master: int) -> None:
        os.close(master)
        self._released.set()

    def close(self) -> None:
        """Gives the terminal back and removes the link."""
        if self._made is not None:
            self._made.remove()
            self._made = None
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
