"""What stands behind the ``//`` of a URI, ``user:password@host:port``, and what of it is repeated.

The words are those of RFC 3986, section 3.2. `UsageError`'s problem begins with a verb here, such
as "names no host"; whoever reads the whole URI puts it before, as `without_secrets` has it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from spicebridge.errors import UsageError
from spicebridge.transport.address import MAX_PORT

_SCHEME = re.compile(r"(spice(\+tls|\+unix)?|wss?|https?|socks5h?)://", re.IGNORECASE)
_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")
_NO_ESCAPE = re.compile("%(?![0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True)
class Authority:
    """The parts of an authority, their percent-escapes decoded.

    Attributes:
        host: in lower case, IPv6 without brackets; empty for none.
        port: what stands behind the host's colon, see `parse_port`; None without a colon.
        username: before the ``@``; empty for none.
        password: likewise.
    """

    host: str
    port: str | None
    username: str = ""
    password: str = field(default="", repr=False)


def split_authority(text: str) -> Authority:
    """Takes an authority apart.

    The last ``@`` counts, as a name such as ``user@REALM`` may have one, and a host never does.

    Raises:
        UsageError: there is more in it, or less, than it may have.
    """
    login, _, place = text.rpartition("@")
    username, _, password = login.partition(":")
    if place.startswith("["):
        address, bracket, rest = place[1:].partition("]")
        if not bracket:
            raise UsageError("has a '[' without its ']'")
        if rest and not rest.startswith(":"):
            raise UsageError("has more than a port behind its ']'")
        host = _ipv6(address)
        colon, port = rest[:1], rest[1:]
    else:
        name, colon, port = place.partition(":")
        if ":" in port:
            raise UsageError("has too many colons", "write an IPv6 address as [ADDRESS]:PORT")
        host = _name(name)
    return Authority(
        host,
        port if colon else None,
        unescape(username, "user name"),
        unescape(password, "password"),
    )


def _ipv6(text: str) -> str:
    host, _, zone = unquote(text).partition("%")
    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise UsageError(
            "has no IPv6 address in its brackets", "write other hosts without them"
        ) from error
    host = host.lower()
    return f"{host}%{_printable(zone, 'host')}" if zone else host


def _name(text: str) -> str:
    try:
        host = unquote(text, errors="strict").lower()
    except UnicodeDecodeError as error:
        raise UsageError("has escapes in its host that are no UTF-8") from error
    if wrong := re.search(r"[\s\[\]/?#@]", _printable(host, "host")):
        raise UsageError(f"has {wrong[0]!r} in its host")
    return host


def parse_port(text: str, name: str = "port") -> int:
    """Reads a port, 1 to 65535.

    Args:
        text: its digits.
        name: what it is called where the user wrote it.

    Raises:
        UsageError: it is no such number.
    """
    if not re.fullmatch("[0-9]+", text):
        raise UsageError(f"has a {name} that is no number")
    digits = text.lstrip("0")
    if not digits:
        raise UsageError(f"has a {name} of 0, which nobody can connect to")
    if len(digits) > len(str(MAX_PORT)) or int(digits) > MAX_PORT:
        raise UsageError(f"has a {name} above {MAX_PORT}")
    return int(digits)


def unescape(text: str, name: str) -> str:
    """Decodes the percent-escapes of a user name, a password or a value.

    Args:
        text: the escaped text.
        name: what it is; the text itself may be a secret, and is not repeated.

    Raises:
        UsageError: it has a ``%`` that begins no escape, or bytes that are no text.
    """
    if _NO_ESCAPE.search(text):
        raise UsageError(f"has a '%' in its {name} that begins no escape", "write %25 for a '%'")
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        problem = f"has escapes in its {name} that are no UTF-8"
        raise UsageError(problem) from None  # the cause has the text
    return _printable(plain, name)


def _printable(text: str, name: str) -> str:
    if _CONTROL.search(text):
        raise UsageError(f"has control characters in its {name}")
    return text


def without_secrets(uri: str) -> str:
    """What of a URI may be repeated: not what stands before an ``@`` or behind a ``?``.

    It is used on what could not be read. So ``&``, ``;`` and ``#`` may be meant as ``?``, an ``@``
    behind any of them may end a password, and only a known scheme is no part of one.
    """
    scheme = match[0] if (match := _SCHEME.match(uri)) else ""
    rest = uri[len(scheme) :]
    head = re.split("[?&;#]", rest, maxsplit=1)[0]
    if "@" in rest[len(head) :]:
        return f"{scheme}..."
    place = head.rpartition("@")[2]
    return f"{scheme}{place}..." if len(head) < len(rest) else f"{scheme}{place}"
