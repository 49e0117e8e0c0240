"""A folder and what is below it; nothing else can be reached.

Every way down is walked name by name, each opened relative to the one before and none through a
symbolic link (openat(2), O_NOFOLLOW): there is no moment between looking and opening in which
somebody, be it the guest with a MOVE, could put a link in the way. Only regular files and folders
are served; to open a FIFO or a device can block, or do things.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

Names = tuple[str, ...]
"""A way down from the folder; the empty one is the folder itself."""

_SEARCH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_TMPFILE: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_UPLOAD_PREFIX: Final = ".spicebridge-upload-"


def names_of(path: str) -> Names:
    """The names in the path of a URL, which has been decoded.

    Raises:
        PermissionError: it could lead elsewhere, or no file can have such a name.
    """
    names = tuple(name for name in path.split("/") if name not in {"", "."})
    if any(name == ".." or "\0" in name or name.startswith(_UPLOAD_PREFIX) for name in names):
        raise PermissionError(errno.EACCES, "no such path is served")
    return names


def is_served(status: os.stat_result) -> bool:
    """Whether it is a regular file or a folder."""
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


class Tree:
    """What is below a folder. All of its methods raise `OSError` as the system calls do.

    Args:
        root: path of the folder; it is looked up each time, so that it may go and come back.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    @contextmanager
    def _folder(self, names: Names) -> Iterator[int]:
        """A descriptor of a folder, to reach what is in it."""
        fd = os.open(self._root, _SEARCH)
        try:
            for name in names:
                inner = os.open(name, _SEARCH, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def status(self, names: Names) -> os.stat_result | None:
        """What stat(2) says; None if there is nothing."""
        try:
            if not names:
                with self._folder(names) as folder:
                    return os.fstat(folder)
            with self._folder(names[:-1]) as folder:
                return os.stat(names[-1], dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def entries(self, names: Names) -> Iterator[tuple[str, os.stat_result]]:
        """Names in a folder, with their status: those that are served."""
        with self._folder(names) as folder:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            with os.scandir(fd) as found:
                for entry in found:
                    # XML cannot carry control characters, nor names that are not UTF-8
                    if entry.name.startswith(_UPLOAD_PREFIX) or not _is_text(entry.name):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # it has gone meanwhile
                        continue
                    if is_served(status):
                        yield entry.name, status
        finally:
            os.close(fd)

    def open(self, names: Names) -> io.FileIO:
        """A regular file, to read."""
        with self._folder(names[:-1]) as folder:
            # O_NONBLOCK: if it has become a FIFO meanwhile, opening it does not wait for a writer
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(names[-1], flags, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise PermissionError(errno.EACCES, "it is no regular file")
        return _WholeFile(fd, "rb")

    def create(self, names: Names) -> None:
        """An empty file where nothing was."""
        with self._folder(names[:-1]) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(names[-1], flags, 0o666, dir_fd=folder))

    def upload(self, names: Names) -> Upload:
        """A file that takes the name, whatever file had it, once it is complete."""
        with self._folder(names[:-1]) as folder:
            return Upload(os.dup(folder), names[-1])

    def make_folder(self, names: Names) -> None:
        """A new folder."""
        with self._folder(names[:-1]) as folder:
            os.mkdir(names[-1], dir_fd=folder)

    def remove(self, names: Names) -> None:
        """Removes a file, or a folder with all that is in it; links in it go, not their targets."""
        if not names:
            raise PermissionError(errno.EACCES, "the shared folder itself stays")
        with self._folder(names[:-1]) as folder:
            status = os.stat(names[-1], dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(names[-1], dir_fd=folder)
            else:
                os.unlink(names[-1], dir_fd=folder)

    def rename(self, old: Names, new: Names) -> None:
        """Gives a file or folder another name, replacing the file or empty folder that had it."""
        if not old or not new:
            raise PermissionError(errno.EACCES, "the shared folder itself stays")
        with self._folder(old[:-1]) as source, self._folder(new[:-1]) as target:
            os.rename(old[-1], new[-1], src_dir_fd=source, dst_dir_fd=target)

    def set_modified(self, names: Names, seconds: int) -> None:
        """Sets when it was last modified, in seconds since the epoch."""
        with self._folder(names[:-1]) as folder:
            name = names[-1] if names else "."
            read = os.stat(name, dir_fd=folder, follow_symlinks=False).st_atime_ns
            times = (read, seconds * 1_000_000_000)
            os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)

    def space(self) -> os.statvfs_result:
        """How full the file system of the folder is."""
        with self._folder(()) as folder:
            return os.statvfs(folder)


def _is_text(name: str) -> bool:
    """Whether a URL and XML 1.0 can carry it (https://www.w3.org/TR/xml/#charsets)."""
    return not any(
        char < " " or "\ud800" <= char <= "\udfff" or char in "\ufffe\uffff" for char in name
    )


class _WholeFile(io.FileIO):
    """A file whose size has been announced: its end is an error, not a shorter answer."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        if size and not data:
            raise OSError(errno.EIO, "the file has become shorter while it was read")
        return data


class Upload:
    """A file on its way: nobody sees any of it before `commit`, and without that nothing is left.

    Args:
        folder: descriptor of the folder that it is for; the upload owns it.
        name: its name there.
    """

    def __init__(self, folder: int, name: str) -> None:
        self._folder = folder
        self._name = name
        self._temporary = _UPLOAD_PREFIX + secrets.token_hex(8)
        self._linked = False
        self._fd = -1
        try:
            self._old = self._replaced()
            self._fd = self._create()
            self._keep_owner_and_mode()
        except BaseException:
            self.abort()
            raise

    def _replaced(self) -> os.stat_result | None:
        try:
            old = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        # a new file could take the name of a read-only one: the folder's mode allows that
        writable = os.access(self._name, os.W_OK, dir_fd=self._folder, effective_ids=True)
        if not stat.S_ISREG(old.st_mode) or not writable:
            raise PermissionError(errno.EACCES, "it may not be written")
        return old

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o666, dir_fd=self._folder)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        # a file system without nameless files (NFS, FUSE)
        flags |= os.O_CREAT | os.O_EXCL
        fd = os.open(self._temporary, flags, 0o666, dir_fd=self._folder)
        self._linked = True
        return fd

    def _keep_owner_and_mode(self) -> None:
        if self._old is None:
            return
        new = os.fstat(self._fd)
        if (new.st_uid, new.st_gid) != (self._old.st_uid, self._old.st_gid):
            try:
                os.fchown(self._fd, self._old.st_uid, self._old.st_gid)
            except PermissionError:  # then it is ours from now on
                pass
        os.fchmod(self._fd, stat.S_IMODE(self._old.st_mode))

    def write(self, data: bytes) -> None:
        """Adds bytes."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def set_modified(self, nanoseconds: int) -> None:
        """Sets when it was last modified, in nanoseconds since the epoch."""
        os.utime(self._fd, ns=(nanoseconds, nanoseconds))

    def commit(self) -> os.stat_result:
        """Makes it visible under its name, in one step; returns its status."""
        try:
            if not self._linked:
                # linkat(2) cannot replace, rename(2) can
                os.link(f"/proc/self/fd/{self._fd}", self._temporary, dst_dir_fd=self._folder)
                self._linked = True
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._linked = False
            return os.fstat(self._fd)
        finally:
            self.abort()

    def abort(self) -> None:
        """Forgets it; may be called twice."""
        if self._linked:
            self._linked = False
            try:
                os.unlink(self._temporary, dir_fd=self._folder)
            except OSError:  # its folder has gone: so has it
                pass
        fds, self._fd, self._folder = (self._fd, self._folder), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
