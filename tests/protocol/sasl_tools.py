"""The server's side of SASL, put together by hand: so that it can lie."""

from __future__ import annotations

import struct
from typing import Final

from scramp import ScramMechanism

from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.login import LoggedIn
from spicebridge.protocol.sasl import ClientSasl

USER: Final = "alice"
PASSWORD: Final = "open, sesame"
POSITION: Final = 1000
"""Bytes that the server has sent before SASL begins."""

DONE: Final = b"\1"
MORE: Final = b"\0"
ACCEPTED: Final = bytes(4)


def login(
    username: str = USER,
    password: str = PASSWORD,
    *,
    mechanism: str = "",
    confidential: bool = True,
    host: str = "localhost",
) -> ClientSasl:
    """A client that knows the password and sits in TLS."""
    return ClientSasl(username, password, mechanism=mechanism, confidential=confidential, host=host)


def begun(client: ClientSasl, *offered: str) -> Exchange[LoggedIn]:
    """A login whose client has been told what is offered."""
    exchange = Exchange(client.steps(b"", POSITION))
    exchange.receive_data(listed(*offered))
    return exchange


def listed(*names: str) -> bytes:
    """The list of mechanisms, as libspice-server sends it."""
    return sized(f",{','.join(names)},".encode())


def sized(text: bytes) -> bytes:
    """A length and as many bytes."""
    return struct.pack("<I", len(text)) + text


def data(text: bytes | None) -> bytes:
    """Data with the byte behind it, which is no NUL, as libspice-server's often is none."""
    return bytes(4) if text is None else sized(text + b"?")


def said_first(exchange: Exchange[LoggedIn]) -> tuple[str, bytes | None]:
    """The mechanism that the client has chosen, and its first data."""
    said = exchange.data_to_send()
    (size,) = struct.unpack_from("<I", said)
    return said[4 : 4 + size].decode(), _said_data(said[4 + size :])


def said(exchange: Exchange[LoggedIn]) -> bytes | None:
    """The data that the client has sent since."""
    return _said_data(exchange.data_to_send())


def _said_data(message: bytes) -> bytes | None:
    (size,) = struct.unpack_from("<I", message)
    assert len(message) == 4 + size
    if not size:
        return None
    assert message.endswith(b"\0")
    return message[4:-1]


class ScramServer:
    """A SCRAM server.

    Args:
        name: of the mechanism.
        password: the one that it knows.
    """

    def __init__(self, name: str = "SCRAM-SHA-256", password: str = PASSWORD) -> None:
        mechanism = ScramMechanism(name)
        known = mechanism.make_auth_info(password)
        self._server = mechanism.make_server({USER: known}.get)

    def first(self, client_first: bytes | None) -> bytes:
        """The server-first-message."""
        self._server.set_client_first((client_first or b"").decode())
        text: str = self._server.get_server_first()
        return text.encode()

    def final(self, client_final: bytes | None) -> bytes:
        """The server-final-message, with the proof."""
        self._server.set_client_final((client_final or b"").decode())
        text: str = self._server.get_server_final()
        return text.encode()
