"""What is at a path where programs meet us: a socket, a FIFO or a link, ours or in our way."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import anyio

_LOCK_TIMEOUT: Final = 1.0
"""Seconds; who holds the lock properly needs none of them."""


class Entry:
    """What a path names at this moment; a symbolic link is not followed.

    It is held by a descriptor until it is closed, so that no other file gets its inode meanwhile:
    what somebody else puts into its place is told from it. As a context manager it closes itself.

    Args:
        path: where it is.

    Attributes:
        status: as lstat(2) has it.

    Raises:
        OSError: nothing is there, or we may not look.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.status = os.fstat(self._fd)

    @classmethod
    def made(cls, path: str, kind: int, perm: int) -> Self:
        """What we have just made, with all of the mode that was asked for.

        Whoever makes it asks the kernel for that mode, so that it never had a wider one; here it
        gets what the umask took. That belongs to the process, and so to all of its threads, and is
        better left alone.

        Args:
            path: where it is.
            kind: `stat.S_IFSOCK`, `stat.S_IFIFO` or `stat.S_IFLNK`.
            perm: its mode.

        Raises:
            OSError: somebody has put something else there, which is left as it is.
        """
        entry = cls(path)
        whole = stat.S_IMODE(entry.status.st_mode) == perm
        if stat.S_IFMT(entry.status.st_mode) != kind or not (whole or entry.ours):
            entry.close()
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if not whole:
            try:
                os.chmod(entry.name, perm)
            except OSError:
                entry.remove()
                raise
        return entry

    @property
    def ours(self) -> bool:
        """Whether it belongs to our user."""
        return self.status.st_uid == os.geteuid()

    @property
    def name(self) -> str:
        """A path that names this very entry, whatever is in its place now."""
        return f"/proc/self/fd/{self._fd}"

    def remove(self) -> None:
        """Removes it, if it is still in its place, and closes."""
        folder, name = os.path.split(self._path)
        try:
            parent = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # its folder has gone, too
            self.close()
            return
        try:
            if os.path.samestat(os.lstat(name, dir_fd=parent), self.status):
                os.unlink(name, dir_fd=parent)
        except OSError:  # somebody has tidied up, or the folder is no longer ours to write to
            pass
        finally:
            os.close(parent)
            self.close()

    def close(self) -> None:
        """Lets go of it; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@asynccontextmanager
async def folder_locked(path: str) -> AsyncIterator[None]:
    """Keeps others of us from the folder of a path for a moment, with flock(2).

    A socket that is bound and does not listen yet looks like one that was left behind: of two of us
    that start at once one would remove the other's. Where there can be no lock, or a stranger holds
    one, as everybody may in /tmp, it is done without.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # who binds there will be told why, or may only write there
        yield
        return
    try:
        with anyio.move_on_after(_LOCK_TIMEOUT):
            while not _lock(folder):
                await anyio.sleep(0.01)  # nothing tells when it is free
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> bool:
    """Whether it is locked now, or never can be."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not on this file system
        pass
    return True
