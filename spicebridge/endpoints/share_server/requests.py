"""The WSGI application: prepares a request for WsgiDAV, and tells every error as one answer."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from wsgidav import request_server, util
from wsgidav.dav_error import DAVError, get_http_status_string

from spicebridge.endpoints.share_server.locks import lock_manager
from spicebridge.endpoints.share_server.resources import Environ, Provider, StartResponse
from spicebridge.endpoints.share_server.tree import Tree, names_of

BLOCK_SIZE: Final = 64 * 1024
"""Bytes that are read from a file, or from a body, at once."""

MAX_XML: Final = 64 * 1024
"""Bytes of the body of any request but PUT; those of real clients have a few hundred."""

_WRITING: Final = frozenset(
    ("PUT", "DELETE", "MOVE", "COPY", "MKCOL", "PROPPATCH", "LOCK", "UNLOCK", "POST")
)
_ONE_RANGE: Final = re.compile(r"\s*bytes\s*=\s*(?:(\d+)\s*-\s*(\d*)|-\s*0*[1-9]\d*)\s*", re.ASCII)
_CONFIG: Final = {
    "block_size": BLOCK_SIZE,
    "add_header_MS_Author_Via": True,
    "mutable_live_props": ["{DAV:}getlastmodified"],
    "hotfixes": {},
}


def _split_destination(uri: str, *, allow_fragments: bool) -> tuple[str, str, str, str, str, str]:
    parts = urlsplit(uri, allow_fragments=allow_fragments)
    return parts.scheme, parts.netloc, unquote(parts.path, errors="strict"), "", "", ""


# WsgiDAV decodes a Destination before it takes it apart, so that a MOVE to "why?.txt" would go to
# "why": it has to be the other way round (RFC 3986, 2.4).
request_server.unquote = str
request_server.urlparse = _split_destination

ElementTree.register_namespace("D", "DAV:")  # the prefix that every client has met


def report(line: str) -> None:
    """One line for the log."""
    try:
        print(f"spicebridge: share: {line}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # nobody reads it any more
        pass


class Application:
    """Serves what is below a folder.

    Args:
        root: path of the folder.
        readonly: whether nothing may change.
    """

    def __init__(self, root: str, *, readonly: bool) -> None:
        self._readonly = readonly
        self._provider = Provider(Tree(root), readonly=readonly)
        self._provider.set_lock_manager(lock_manager())
        self._methods = request_server.RequestServer(self._provider)
        self._methods.allow_propfind_infinite = False  # RFC 4918, 9.1 allows that

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        """Answers a request (PEP 3333)."""
        method = environ["REQUEST_METHOD"]
        body = environ["wsgi.input"]
        answer: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            answer[:] = status, headers

        pieces: Iterator[bytes] = iter(())
        problem: object = None
        try:
            self._prepare(environ)
            pieces = self._methods(environ, start)
            first = next(pieces, b"")  # with it, all has happened that can go wrong
        except DAVError as error:
            problem = error.get_user_info()
            first = self._refuse(start, DAVError(400) if body.broken else error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the server lives on
            problem = repr(error)
            theirs = body.broken or isinstance(error, UnicodeError)
            first = self._refuse(start, DAVError(400 if theirs else 500))
        status, headers = answer
        if status.startswith("500"):
            report(f"{method} {environ['PATH_INFO']!a}: {problem or status!s:.300}")
        start_response(status, headers)
        if method != "HEAD" and not status.startswith(("204", "304")):
            yield first
            first = b""  # a client that stalls later is not to hold it
            yield from pieces

    def _prepare(self, environ: Environ) -> None:
        """Makes of a request what WsgiDAV expects.

        Raises:
            DAVError: it is refused without looking further.
        """
        method = environ["REQUEST_METHOD"]
        if self._readonly and method in _WRITING:
            raise DAVError(403, "the folder is shared read-only")
        path = environ["PATH_INFO"].encode("latin-1").decode()  # PEP 3333: bytes as Latin-1
        slash = "/" if path.endswith("/") else ""
        try:
            names = names_of("" if environ["REQUEST_URI"] == "*" else path)
        except OSError as error:
            raise DAVError(403, error.strerror) from error
        environ["PATH_INFO"] = "/" + "/".join(names) + (slash if names else "")
        if method != "PUT":
            self._take_body(environ)
        asked = _ONE_RANGE.fullmatch(environ.get("HTTP_RANGE", ""))
        if asked is None or (asked[2] and int(asked[1]) > int(asked[2])):
            # no range, several, or nonsense: all may be ignored (RFC 9110, 14.2)
            environ.pop("HTTP_RANGE", None)
        environ.setdefault("HTTP_HOST", "")
        environ["wsgidav.app"] = self
        environ["wsgidav.auth.user_name"] = ""
        environ["wsgidav.config"] = _CONFIG
        environ["wsgidav.provider"] = self._provider
        environ["wsgidav.verbose"] = 0

    def _take_body(self, environ: Environ) -> None:
        """Reads it, so that WsgiDAV gets one of known size even if it came in chunks."""
        body = environ["wsgi.input"]
        data = body.read(MAX_XML + 1)
        if len(data) > MAX_XML:
            raise DAVError(413, f"the body has more than {MAX_XML} bytes")
        stream = io.BytesIO(data)
        environ["wsgi.input"] = stream
        environ["CONTENT_LENGTH"] = str(len(data))

    def _refuse(self, start: StartResponse, error: DAVError) -> bytes:
        status = get_http_status_string(error)
        headers = list(error.add_headers or ())
        if error.value == 304:
            start(status, headers)
            return b""
        if error.err_condition:  # RFC 4918, 16
            kind, page = "application/xml; charset=utf-8", error.err_condition.as_string()
        else:
            kind, page = "text/plain; charset=utf-8", error.context_info or status
        data: bytes = util.to_bytes(page)
        length = ("Content-Length", str(len(data)))
        start(status, [("Content-Type", kind), length, *headers])
        return data

    def resolve_provider(self, _path: str) -> tuple[str, Provider]:
        """WsgiDAV asks for the share that a Destination is in; there is one."""
        return "/", self._provider
