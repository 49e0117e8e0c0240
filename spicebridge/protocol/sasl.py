"""SASL logins (RFC 4422): what a client says once AUTH_SASL was chosen.

The wire, as in libspice-server 0.15 (``red-stream.cpp``: red_sasl_start_auth and what follows it)
and spice-gtk 0.42 (``spice-channel.c``: spice_channel_perform_auth_sasl); numbers are u32,
little-endian:

1. The server sends the length of its mechanism list and the list, ``,GSSAPI,SCRAM-SHA-256,``.
2. The client sends the length of a mechanism's name, the name, and its first data.
3. The server answers with data and a byte that tells whether it is done; until then the client
   sends data again.
4. The server sends a result: 0, or 1 with a length and a text. Now the security layer begins, if
   one was agreed on, and the link result is the first that goes through it. With a ticket there
   is only the link result.

Data is a length and as many bytes, of which the last means nothing: a NUL by intention, but
libspice-server sends whatever byte of its memory comes next. Length 0 is no data, which in SASL is
not the same as empty data, length 1. A server that cannot go on (a wrong password, no mechanism to
offer) closes the connection without a word: see `ClientSasl.hung_up`.
"""

from __future__ import annotations

import re
import struct

from spicebridge.errors import LoginError, ProtocolError
from spicebridge.protocol.constants import (
    MAX_SASL_DATA,
    MAX_SASL_MECHANISMS,
    MAX_SASL_REASON,
    AuthMechanism,
    LinkErr,
)
from spicebridge.protocol.dialogue import Dialogue
from spicebridge.protocol.login import LoggedIn
from spicebridge.protocol.sasl_choice import WITHOUT_TLS, Mechanism, begin, check_mechanism
from spicebridge.protocol.sasl_mechanisms import BadChallengeError, Credentials, MakeLayer, Talk

_U32 = struct.Struct("<I")
_NAME = re.compile(r"[A-Z0-9_-]{1,20}")  # RFC 4422, section 3.1


class ClientSasl:
    """Logs in with SASL, on one link.

    Args:
        username: for SCRAM and PLAIN; with GSSAPI, whose ticket to use; may be empty.
        password: for SCRAM and PLAIN; may be empty.
        mechanism: the only one to use; empty for the strongest that can be.
        confidential: whether nobody else reads the connection: it is in TLS, or a Unix socket.
        host: the server's name, of which Kerberos makes ``spice@host``.

    Raises:
        UsageError: `mechanism` is none that we know, or its module is not installed.
    """

    mechanism = AuthMechanism.SASL

    def __init__(
        self,
        username: str,
        password: str,
        *,
        mechanism: str = "",
        confidential: bool,
        host: str,
    ) -> None:
        self._forced = check_mechanism(mechanism) if mechanism else ""
        self._credentials = Credentials(
            username, password, confidential=confidential, host=host, forced=bool(mechanism)
        )
        self._begun = False
        self._chosen: Mechanism | None = None

    @property
    def blocking(self) -> bool:
        """From its beginning to its end: SCRAM's hashes take long, Kerberos fetches a ticket."""
        return self._begun

    def steps(self, pubkey: bytes, position: int) -> Dialogue[LoggedIn]:
        """The whole of SASL, its result included; see `ClientLogin`.

        Raises:
            ProtocolError: the server breaks the framing, or the rules of the mechanism.
            LoginError: no mechanism can be used, the server refused the login, or it did not
                prove who it is.
        """
        self._begun = True
        wire = _Reader(position)
        offered = yield from _read_mechanisms(wire)
        self._chosen, talk, first = begin(offered, self._credentials, self._forced)
        name = self._chosen.name
        yield _U32.pack(len(name)) + name.encode() + _data(first)
        make_layer = yield from _converse(name, talk, wire)
        yield from _read_result(name, wire)
        self._begun, self._chosen = False, None
        return LoggedIn(f"SASL {name}", make_layer(wire.position) if make_layer else None)

    def hung_up(self) -> LoginError | None:
        """What it means that the server has closed the connection; see `ClientLogin`."""
        if self._chosen:
            return LoginError(
                f"the server closed the connection in the login with SASL {self._chosen.name}",
                self._chosen.refused,
                by_password=self._chosen.by_password,
            )
        if self._begun:
            return LoginError(
                "the server closed the connection instead of naming its SASL mechanisms",
                # libspice-server 0.15 hands Cyrus SASL a Unix socket's address, which it refuses
                "check its SASL configuration, and that this is no Unix socket"
                if self._credentials.confidential
                else WITHOUT_TLS,
            )
        return None


class _Reader:
    """Reads from the server, and knows where it is.

    Attributes:
        position: bytes that the server has sent before what is read next.
    """

    def __init__(self, position: int) -> None:
        self.position = position

    def take(self, count: int) -> Dialogue[bytes]:
        if not count:
            return b""
        data = yield count
        self.position += count
        return data

    def take_sized(self, name: str, most: int) -> Dialogue[bytes]:
        """Reads a length, which is `most` at most, and as many bytes."""
        (size,) = _U32.unpack((yield from self.take(_U32.size)))
        if size > most:
            raise ProtocolError(
                name, self.position - _U32.size, f"a length of at most {most}", f"{size}"
            )
        return (yield from self.take(size))


def _read_mechanisms(wire: _Reader) -> Dialogue[list[str]]:
    """Reads the names of the mechanisms that the server offers."""
    listed = yield from wire.take_sized("SASL mechanism list", MAX_SASL_MECHANISMS)
    start = wire.position - len(listed)
    names: list[str] = []
    # Latin-1 takes any byte, so that one that is no letter fails where it is
    for name in listed.decode("latin-1").split(","):
        if name and not _NAME.fullmatch(name):
            raise ProtocolError(
                "SASL mechanism list", start, "names of mechanisms and commas", repr(name[:40])
            )
        names += [name] if name else []
        start += len(name) + 1
    return names


def _data(data: bytes | None) -> bytes:
    """Data as it goes over the wire: None is not the same as empty."""
    return _U32.pack(0) if data is None else _U32.pack(len(data) + 1) + data + b"\0"


def _converse(name: str, talk: Talk, wire: _Reader) -> Dialogue[MakeLayer | None]:
    """Lets the mechanism and the server talk until both are done."""
    while True:
        start = wire.position
        challenge, over = yield from _read_challenge(wire)
        try:
            response = talk.send(challenge)
        except StopIteration as stop:
            make_layer: MakeLayer | None = stop.value
            break
        except BadChallengeError as error:
            raise ProtocolError(f"SASL {name}", start, error.expected, error.got) from error
        if over:
            raise LoginError(
                f"the server ended the login with SASL {name} before it had proved who it is",
                "it may not be the server that it seems to be: check the address",
            )
        yield _data(response)
    if not over:  # we are content; it may wait for one empty answer
        yield _data(None)
        start = wire.position
        challenge, over = yield from _read_challenge(wire)
        if challenge or not over:
            raise ProtocolError(f"SASL {name}", start, "the end of the login", "more of it")
    return make_layer


def _read_challenge(wire: _Reader) -> Dialogue[tuple[bytes | None, bool]]:
    """Reads the server's data, and whether it is done."""
    sized = yield from wire.take_sized("SASL data", MAX_SASL_DATA)
    (over,) = yield from wire.take(1)
    if over > 1:
        raise ProtocolError("SASL data", wire.position - 1, "0 or 1 for done", f"{over}")
    return sized[:-1] if sized else None, bool(over)


def _read_result(name: str, wire: _Reader) -> Dialogue[None]:
    """Reads SASL's own result."""
    (result,) = _U32.unpack((yield from wire.take(_U32.size)))
    if result == LinkErr.OK:
        return
    reason = yield from wire.take_sized("SASL result", MAX_SASL_REASON)
    told = reason.rstrip(b"\0").decode("ascii", "backslashreplace")
    raise LoginError(
        f"the server refused the login with SASL {name}: {told!r}",
        "check its log; without TLS it takes only mechanisms that encrypt",
    )
