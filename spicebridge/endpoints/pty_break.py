"""A break at a pseudo-terminal.

A serial line has a condition for it, which its driver tells the line discipline; the master of a
pseudo-terminal has only bytes. So we do what the line discipline would have done
(n_tty_receive_break and isig in the kernel's drivers/tty/n_tty.c), by the settings that the
application has made.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import termios
from typing import Final

from spicebridge.transport.stream import Stream

_TIOCSIG: Final = 0x40045436
"""``_IOW('T', 0x36, int)`` of asm-generic/ioctls.h: a master signals the foreground processes."""


class PtyBreak:
    """Gives the application at a pseudo-terminal breaks.

    Args:
        stream: to and from its master.
        path: of the terminal.
    """

    def __init__(self, stream: Stream, path: str) -> None:
        self._stream = stream
        self._path = path

    async def send(self) -> None:
        """Gives it one, behind all that was written before.

        With IGNBRK nothing happens. With BRKINT what waits to be read on either side is dropped,
        unless NOFLSH is set, and the foreground processes get SIGINT. Else it reads a NUL: also
        with PARMRK, whose mark for a break (``\\377 \\0 \\0``) cannot come from a master, as its
        ``\\377`` would be doubled as one of the data.

        When cancelled, the NUL may or may not have been written.

        Raises:
            OSError: the terminal has gone.
        """
        try:
            if self._needs_no_byte():
                return
        except (termios.error, ValueError) as error:  # the stream was closed
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from error
        await self._stream.write_all([memoryview(b"\0")])

    def _needs_no_byte(self) -> bool:
        """Does what there is to do at once, and returns True, unless a NUL is to be read."""
        iflag, _, _, lflag, *_ = termios.tcgetattr(self._stream.writer)  # those of the slave
        if iflag & termios.IGNBRK:
            return True
        if not iflag & termios.BRKINT:
            return False
        if not lflag & termios.NOFLSH:
            self._flush()
        fcntl.ioctl(self._stream.writer, _TIOCSIG, signal.SIGINT)
        return True

    def _flush(self) -> None:
        """Drops what both sides have not read yet; a master can do so for its own side alone."""
        slave = os.open(self._path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            termios.tcflush(slave, termios.TCIOFLUSH)
        finally:
            os.close(slave)
