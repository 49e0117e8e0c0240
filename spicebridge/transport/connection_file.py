"""Connection files (``.vv``), as Proxmox VE, oVirt and others hand them out for remote-viewer.

remote-viewer(1) says under CONNECTION FILE what is in them, and virt-viewer's fill_session
(virt-viewer-session-spice.c) what comes of it. Here as there:

- ``host`` is taken as it is: that of Proxmox VE is a ticket for its proxy, with colons in it.
- ``secure-channels`` without a ``tls-port`` cannot work, nor with ``unix-path``.
- A file is deleted, if it says so, once it was read, whether or not the server can be reached.

Unlike there, a ``unix-path`` does not win over a ``host`` and a ``port``: both are refused.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spicebridge.errors import UsageError
from spicebridge.protocol.constants import channel_types
from spicebridge.transport.address import TcpAddress, UnixAddress
from spicebridge.transport.connection_values import ConnectionValues
from spicebridge.transport.keyfile import read_group
from spicebridge.transport.proxy_address import ProxyAddress, parse_proxy
from spicebridge.transport.subject import parse_subject
from spicebridge.transport.target import Target, Trust

MAX_SIZE: Final = 1024 * 1024
"""Bytes of a connection file. One with a chain of certificates has fewer than 10,000."""

_GROUP: Final = "virt-viewer"

_SEE: Final = "see CONNECTION FILE in remote-viewer(1)"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionFile:
    """What a connection file says.

    Attributes:
        target: the server.
        delete: whether the file is to be deleted once it is read, as its ticket works once.
    """

    target: Target
    delete: bool = False


def read_connection_file(path: str) -> ConnectionFile:
    """Reads a connection file, and warns if it lets others see a password.

    Args:
        path: the file, or ``-`` for standard input.

    Raises:
        UsageError: it cannot be read or understood.
    """
    name = "standard input" if path == "-" else repr(path)
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            data = file.read(MAX_SIZE + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}", "check the connection file") from error
    if len(data) > MAX_SIZE:
        raise UsageError(f"{name}: it is too large for a connection file", _SEE)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: it is no connection file, but binary", _SEE) from error
    connection = parse_connection_file(text, name)
    shared = stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO)
    if connection.target.password and shared and path != "-":
        log.warning("%s has a password, and is open to other users: chmod 600 keeps it safe", name)
    return connection


def delete_connection_file(path: str) -> None:
    """Deletes a connection file that asks for it; where that fails, it is only warned of."""
    try:
        Path(path).unlink()
    except OSError as error:
        log.warning("%r asks to be deleted, which fails: %s", path, error.strerror)


def parse_connection_file(text: str, name: str) -> ConnectionFile:
    """Reads the text of a connection file.

    Keys that are not known are warned of.

    Args:
        text: the text.
        name: of the file, for messages.

    Raises:
        UsageError: it is no connection file, or not for SPICE, or says what cannot be.
    """
    try:
        if "\0" in text:
            raise UsageError("it is no connection file, but binary")
        values = ConnectionValues(read_group(text, _GROUP), name)
        return ConnectionFile(_target(values), bool(values.number("delete-this-file")))
    except UsageError as error:
        raise UsageError(f"{name}: {error.problem}", error.hint or _SEE) from error


def _target(values: ConnectionValues) -> Target:
    kind = values.text("type")
    if not kind:
        raise UsageError("it does not say of what type it is", "write type=spice")
    if kind.lower() != "spice":
        raise UsageError(f"its type is {kind!r}, not spice", "open it with remote-viewer")
    plain, secure = _addresses(values)
    secure_channels = _secure_channels(values)
    if secure_channels and secure is None:
        raise UsageError("its secure-channels need TLS, and it has no tls-port")
    return Target(
        plain,
        secure,
        secure_channels,
        Trust(
            ca=values.text("ca"),
            host_subject=_host_subject(values),
            ciphers=values.text("tls-ciphers"),
        ),
        _proxy(values),
        values.text("username"),
        values.text("password"),
    )


def _addresses(
    values: ConnectionValues,
) -> tuple[TcpAddress | UnixAddress | None, TcpAddress | None]:
    host, path = values.text("host"), values.text("unix-path")
    port, tls_port = values.port("port"), values.port("tls-port")
    if path:
        if host or port or tls_port:
            raise UsageError("it has a unix-path and a host or port", "keep one")
        if not path.startswith("/"):
            raise UsageError(f"{values.where('unix-path')}: unix-path is not absolute")
        return UnixAddress(path), None
    if not host:
        raise UsageError("it names no host", "write host=HOST, or unix-path=PATH")
    if not port and not tls_port:
        raise UsageError("it names no port", "write port=PORT or tls-port=PORT")
    if not host.isprintable() or " " in host:  # it goes into the request to a proxy
        raise UsageError(f"{values.where('host')}: host has spaces or control characters")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return (
        TcpAddress(host, port) if port else None,
        TcpAddress(host, tls_port) if tls_port else None,
    )


def _secure_channels(values: ConnectionValues) -> frozenset[int]:
    types: set[int] = set()
    for item in values.items("secure-channels"):
        try:
            types |= channel_types(item)
        except ValueError:
            log.warning("%s: secure-channels names %r, which is no channel", values.name, item)
    return frozenset(types)


def _host_subject(values: ConnectionValues) -> str:
    if text := values.text("host-subject"):
        try:
            parse_subject(text)
        except UsageError as error:
            error.at(values.where("host-subject"))
            raise
    return text


def _proxy(values: ConnectionValues) -> ProxyAddress | None:
    if not (text := values.text("proxy")):
        return None
    try:
        return parse_proxy(text)
    except UsageError as error:
        error.at(values.where("proxy"))
        raise
