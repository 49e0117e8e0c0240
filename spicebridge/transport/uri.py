"""URIs of SPICE servers: one line that says where a server is and how to get in.

They are those of remote-viewer and spice-client-glib (spice-gtk's spice-session.c,
spice_parse_uri), and WebSockets besides, as the proxies of spice-html5 have them (RFC 6455,
section 3):

| URI | what it names |
|---|---|
| ``spice://host:5900`` | a TCP port |
| ``spice://host?port=5900&tls-port=5901`` | a TCP port, and one with TLS; either may be left out |
| ``spice+tls://host:5901`` | a TCP port with TLS |
| ``spice+unix:///path`` | a Unix socket |
| ``ws://host/path``, ``wss://host/path`` | a WebSocket, without or with TLS |

Here a ``user:password@`` has a password; spice-gtk takes all of it as the user's name. What
spice-gtk ignores with a warning is refused here: a path behind ``spice://``, a port in the query of
``spice+tls://``. Percent-escapes are decoded in the path of a Unix socket too.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import quote, unquote

from spicebridge.errors import UsageError
from spicebridge.transport.address import TcpAddress, UnixAddress, WebAddress
from spicebridge.transport.authority import (
    parse_port,
    split_authority,
    unescape,
    without_secrets,
)
from spicebridge.transport.target import Target

DEFAULT_URI = "spice://127.0.0.1:5900"
"""QEMU's first SPICE port by habit."""

_KEYS = ("port", "tls-port", "password")
_WEB_PORTS = {"ws": 80, "wss": 443}
_WRITE_PORT = "write spice://HOST:PORT"
_WRITE_PATH = "write spice+unix:///PATH"
_EXAMPLE = f"{_WRITE_PORT}, spice+tls://HOST:PORT or spice+unix:///PATH"

log = logging.getLogger(__name__)


def parse_uri(uri: str) -> Target:
    """Reads the URI of a SPICE server.

    A password in it is taken and warned of: the list of processes shows it to everybody.

    Raises:
        UsageError: saying what is wrong with it, without its secrets.
    """
    try:
        target = _parse(uri.lstrip(" "))
    except UsageError as error:
        problem = f"{without_secrets(uri)!r} {error.problem}"
        raise UsageError(problem, error.hint or _EXAMPLE) from error
    if target.password:
        log.warning(
            "the URI has a password, which the list of processes shows to other users;"
            " --password-file keeps it from them"
        )
    return target


def _parse(uri: str) -> Target:
    if "\0" in unquote(uri) or not uri.isprintable():
        raise UsageError("is no SPICE URI: it has control characters")
    uri, hash_mark, _ = uri.partition("#")
    rest, _, query = uri.partition("?")
    scheme, _, rest = rest.partition(":")
    scheme = scheme.lower()
    authority, path = "", rest
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        path = slash + path
    if scheme not in {"spice", "spice+tls", "spice+unix", *_WEB_PORTS}:
        raise UsageError("is no SPICE URI")
    if hash_mark:
        raise UsageError("has a '#', which means nothing here", "write %23 if it is part of a name")
    if scheme == "spice+unix":
        return _unix(authority, path, query)
    if scheme in _WEB_PORTS:
        return _web(scheme, authority, path, query)
    return _tcp(scheme, authority, path, query)


def _unix(authority: str, path: str, query: str) -> Target:
    if authority or not path.startswith("/"):
        raise UsageError("names no absolute path", _WRITE_PATH)
    key, _, password = query.partition("=")  # virsh domdisplay --include-password writes one
    if query and (key != "password" or "&" in password):
        raise UsageError("has a '?' behind its path", f"{_WRITE_PATH}, and %3F for a '?' in it")
    return Target(
        plain=UnixAddress(unquote(path, errors="surrogateescape")),
        password=unescape(password, key),
    )


def _web(scheme: str, authority: str, path: str, query: str) -> Target:
    write = f"write {scheme}://HOST:PORT/PATH"
    if "@" in authority:
        raise UsageError("has a user name, which a WebSocket's URI cannot have", write)
    place = split_authority(authority)
    if not place.host:
        raise UsageError("names no host", write)
    port = parse_port(place.port) if place.port else _WEB_PORTS[scheme]
    whole = f"{path or '/'}?{query}" if query else path or "/"
    address = WebAddress(place.host, port, quote(whole, safe="/%:?@!$&'()*+,;=[]~"))
    return Target(plain=address) if scheme == "ws" else Target(secure=address)


def _tcp(scheme: str, authority: str, path: str, query: str) -> Target:
    place = split_authority(authority)
    values = _values(query)
    if not place.host:
        raise UsageError("names no host")
    if path not in {"", "/"}:
        raise UsageError("has a path", _WRITE_PORT)
    if scheme == "spice+tls":
        for key in ("port", "tls-port"):
            if key in values:
                raise UsageError(f"has {key}= behind '?'", "write spice+tls://HOST:PORT")
        port, tls_port = "", place.port or ""
    else:
        if place.port and "port" in values:
            raise UsageError("names its port twice, behind the host and as port=", "keep one")
        port = place.port or values.get("port", "")
        tls_port = values.get("tls-port", "")
    if not port and not tls_port:
        raise UsageError("names no port", f"{_WRITE_PORT} or spice+tls://HOST:PORT")
    if place.password and "password" in values:
        raise UsageError("has two passwords", "keep one, or better none: use --password-file")
    return Target(
        plain=TcpAddress(place.host, parse_port(port)) if port else None,
        secure=TcpAddress(place.host, parse_port(tls_port, "TLS port")) if tls_port else None,
        username=place.username,
        password=place.password or values.get("password", ""),
    )


def _values(query: str) -> dict[str, str]:
    """Reads ``key=value``, separated by ``&`` or ``;``; an empty value is as none."""
    values: dict[str, str] = {}
    parts = re.split("[&;]", query)
    if not parts[-1]:  # nothing at all, or one separator at the end
        del parts[-1]
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:  # not repeated: it may be the end of a password that has a '&'
            raise UsageError("has a part without '=' behind '?'", "write ?port=PORT&tls-port=PORT")
        if key not in _KEYS:
            raise _unknown(key)
        if not value:
            continue
        if key in values:
            raise UsageError(f"names its {key} twice", "keep one")
        values[key] = unescape(value, key)
    return values


def _unknown(key: str) -> UsageError:
    """The refusal of a key, which is not repeated: it may be the end of a password with a ``&``."""
    from difflib import get_close_matches  # here, as no URI that can be read needs it

    near = get_close_matches(key, _KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
    return UsageError("has an unknown key behind '?'", hint)
