"""Files and folders as WsgiDAV sees them, and the errors of the system as WebDAV's (RFC 4918)."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Final
from xml.etree.ElementTree import Element

from wsgidav import util
from wsgidav.dav_error import DAVError
from wsgidav.dav_provider import DAVCollection, DAVNonCollection, DAVProvider

from spicebridge.endpoints.share_server.tree import Names, Tree, Upload, is_served, names_of

Environ = dict[str, Any]
StartResponse = Callable[..., object]
Handler = Callable[[Environ, StartResponse], Iterable[bytes]]

_STATUS: Final = {
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EROFS: 403,
    errno.ELOOP: 403,  # a symbolic link
    errno.ETXTBSY: 403,
    errno.ENOENT: 404,
    errno.EEXIST: 405,
    errno.ENOTDIR: 409,
    errno.EISDIR: 409,
    errno.ENOTEMPTY: 409,
    errno.ESTALE: 404,
    errno.ENAMETOOLONG: 414,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
    errno.EFBIG: 507,
}
_WIN32: Final = "{urn:schemas-microsoft-com:}Win32"  # [MS-WDVME] 2.2.10
_COPY_SIZE: Final = 1024 * 1024  # bytes


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the system become WebDAV's."""
    try:
        yield
    except OSError as error:
        status = _STATUS.get(error.errno or 0, 500)
        raise DAVError(status, error.strerror or str(error)) from error


class _Node:
    """What files and folders have in common.

    Attributes:
        names: where it is.
        status: what stat(2) said.
    """

    path: str
    environ: Environ
    provider: Provider
    names: Names
    status: os.stat_result

    def get_creation_date(self) -> float:
        return self.status.st_ctime

    def get_last_modified(self) -> float:
        return self.status.st_mtime

    def delete(self) -> None:
        with _told():
            self.provider.tree.remove(self.names)
        self.forget_locks()

    def forget_locks(self) -> None:
        """What has gone is no longer locked."""
        self.remove_all_locks(recursive=True)  # type: ignore[attr-defined]

    def support_recursive_move(self, dest_path: str) -> bool:
        """Whether one rename will do: not from one file system to another."""
        parent = self.provider.tree.status(names_of(dest_path)[:-1])
        return parent is not None and parent.st_dev == self.status.st_dev

    def move_recursive(self, dest_path: str) -> None:
        with _told():
            self.provider.tree.rename(self.names, names_of(dest_path))
        self.forget_locks()

    def get_property_value(self, name: str) -> object:
        value = super().get_property_value(name)  # type: ignore[misc]
        # the header's value, quotes and all (RFC 4918, 15.6); WsgiDAV forgets them
        return f'"{value}"' if name == "{DAV:}getetag" else value

    def set_property_value(
        self, name: str, value: Element | None, *, dry_run: bool = False
    ) -> object:
        """Win32's times and attributes: Windows sets them on all that it copies, and gives up the
        copy if it may not. Only when it was last modified is kept.
        """
        if not name.startswith(_WIN32):
            return super().set_property_value(name, value, dry_run=dry_run)  # type: ignore[misc]
        if name == _WIN32 + "LastModifiedTime" and value is not None:
            self.set_last_modified(self.path, value.text or "", dry_run=dry_run)
        return True

    def set_last_modified(self, _path: str, time: str, *, dry_run: bool) -> bool:
        seconds = util.parse_time_string(time or "")
        if seconds is None:
            raise DAVError(409, "it is no HTTP date")
        if not dry_run:
            with _told():
                self.provider.tree.set_modified(self.names, int(seconds))
        return True


class File(_Node, DAVNonCollection):
    """A regular file.

    Args:
        path: of its URL, decoded.
        environ: of the request.
        status: what stat(2) says; None for one that the request is about to make.
    """

    def __init__(self, path: str, environ: Environ, status: os.stat_result | None) -> None:
        super().__init__(path, environ)
        self.names = names_of(path)
        if status is not None:
            self.status = status
        self._upload: Upload | None = None

    def get_content_length(self) -> int:
        return self.status.st_size

    def get_etag(self) -> str:
        return f"{self.status.st_ino:x}-{self.status.st_mtime_ns:x}-{self.status.st_size:x}"

    def support_etag(self) -> bool:
        return True

    def support_ranges(self) -> bool:
        return True

    def get_content(self) -> io.FileIO:
        with _told():
            return self.provider.tree.open(self.names)

    def begin_write(self, *, content_type: str | None = None) -> _Sink:
        with _told():
            self._upload = self.provider.tree.upload(self.names)
        return _Sink(self._upload)

    def end_write(self, *, with_errors: bool) -> None:
        upload, self._upload = self._upload, None
        if upload is None:
            return
        if with_errors:
            upload.abort()
            return
        with _told():
            self.status = upload.commit()

    def handle_move(self, dest_path: str) -> bool:
        """Replaces a file by this one in one step: a program that saves by writing another file
        and renaming it is never left without either.
        """
        new = names_of(dest_path)
        tree = self.provider.tree
        old = tree.status(new)
        if old is None or not stat.S_ISREG(old.st_mode) or old.st_dev != self.status.st_dev:
            return False
        with _told():
            tree.rename(self.names, new)
        self.forget_locks()
        return True

    def copy_move_single(self, dest_path: str, *, is_move: bool) -> None:
        with _told(), self.provider.tree.open(self.names) as source:
            upload = self.provider.tree.upload(names_of(dest_path))
            try:
                left = os.fstat(source.fileno()).st_size
                while left:
                    data = source.read(min(left, _COPY_SIZE))
                    upload.write(data)
                    left -= len(data)
                if is_move:
                    upload.set_modified(self.status.st_mtime_ns)
                upload.commit()
            finally:
                upload.abort()


class _Sink:
    """Where WsgiDAV writes a body to."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload

    def writelines(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            with _told():
                self._upload.write(piece)

    def close(self) -> None:
        """Nothing yet: whether all went well, `File.end_write` is told."""


class Folder(_Node, DAVCollection):
    """A folder.

    Args:
        path: of its URL, decoded.
        environ: of the request.
        status: what stat(2) says.
    """

    def __init__(self, path: str, environ: Environ, status: os.stat_result) -> None:
        super().__init__(path, environ)
        self.names = names_of(path)
        self.status = status

    def get_used_bytes(self) -> int:
        space = self.provider.tree.space()
        return (space.f_blocks - space.f_bfree) * space.f_frsize

    def get_available_bytes(self) -> int:
        space = self.provider.tree.space()
        return space.f_bavail * space.f_frsize

    def get_member_names(self) -> list[str]:
        return [member.name for member in self.get_member_list()]

    def get_member_list(self) -> list[File | Folder]:
        with _told():
            return [
                _node(util.join_uri(self.path, name), self.environ, status)
                for name, status in self.provider.tree.entries(self.names)
            ]

    def get_descendants(self, *, depth: str = "infinity", **wanted: bool) -> list[File | Folder]:
        environ = self.environ
        if environ["REQUEST_METHOD"] == "COPY" and self.path == environ["PATH_INFO"]:
            depth = environ["HTTP_DEPTH"]  # WsgiDAV forgets it (RFC 4918, 9.8.3)
        found: list[File | Folder] = super().get_descendants(depth=depth, **wanted)
        return found

    def create_empty_resource(self, name: str) -> File:
        path = util.join_uri(self.path, name)
        if self.environ["REQUEST_METHOD"] == "PUT":  # then it is to appear when it is complete
            if "HTTP_IF_MATCH" in self.environ:
                raise DAVError(412, "there is nothing that could match")
            return File(path, self.environ, None)
        names = names_of(path)
        with _told():
            self.provider.tree.create(names)
            status = self.provider.tree.status(names)
        return File(path, self.environ, status)

    def create_collection(self, name: str) -> None:
        with _told():
            self.provider.tree.make_folder((*self.names, name))

    def support_recursive_delete(self) -> bool:
        return True

    def copy_move_single(self, dest_path: str, *, is_move: bool) -> None:
        names = names_of(dest_path)
        with _told():
            if self.provider.tree.status(names) is None:
                self.provider.tree.make_folder(names)

    def listing(self) -> bytes:
        """What is in it, for a browser."""
        members = sorted(self.get_member_list(), key=lambda member: member.name)
        lines = [
            f'<li><a href="{escape(member.get_href())}">{escape(member.name)}</a>'
            for member in members
        ]
        title = escape(self.path)
        return "\n".join(
            (f"<!DOCTYPE html><meta charset=utf-8><title>{title}</title>", "<ul>", *lines, "</ul>")
        ).encode()


def _node(path: str, environ: Environ, status: os.stat_result) -> File | Folder:
    if stat.S_ISDIR(status.st_mode):
        return Folder(path, environ, status)
    return File(path, environ, status)


class Provider(DAVProvider):
    """All that is below a folder.

    Args:
        tree: it.
        readonly: whether nothing may change.
    """

    def __init__(self, tree: Tree, *, readonly: bool) -> None:
        super().__init__()
        self.tree = tree
        self.verbose = 0  # it prints tracebacks to stdout otherwise
        self._readonly = readonly
        self.set_share_path("/")

    def is_readonly(self) -> bool:
        return self._readonly

    def get_resource_inst(self, path: str | None, environ: Environ) -> File | Folder | None:
        if path is None:  # the parent of the shared folder
            return None
        with _told():
            status = self.tree.status(names_of(path))
            if status is None:
                return None
            if not is_served(status):
                raise PermissionError(errno.EACCES, "only files and folders are served")
        return _node(path, environ, status)

    def custom_request_handler(
        self, environ: Environ, start_response: StartResponse, default_handler: Handler
    ) -> Iterable[bytes]:
        """GET of a folder, which RFC 4918 (9.4) leaves open, gives a listing."""
        if environ["REQUEST_METHOD"] in {"GET", "HEAD"}:
            folder = self.get_resource_inst(environ["PATH_INFO"], environ)
            if isinstance(folder, Folder):
                page = folder.listing()
                start_response(
                    "200 OK",
                    [
                        ("Content-Type", "text/html; charset=utf-8"),
                        ("Content-Length", str(len(page))),
                    ],
                )
                return [page]
        return default_handler(environ, start_response)
