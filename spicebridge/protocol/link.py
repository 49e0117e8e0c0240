"""The link handshake in both roles: link message, link reply, login, result.

Facts are from spice-protocol (``spice/protocol.h``: SpiceLinkHeader, SpiceLinkMess,
SpiceLinkReply) and what libspice-server 0.15 does. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spicebridge.errors import (
    ChannelBusyError,
    ChannelNotFoundError,
    LinkRefusedError,
    LoginError,
    ProtocolError,
    SpicebridgeError,
)
from spicebridge.protocol.constants import (
    MAGIC,
    MAX_CAPS_WORDS,
    MAX_LINK_BODY,
    TICKET_PUBKEY_BYTES,
    VERSION_MAJOR,
    VERSION_MINOR,
    AuthMechanism,
    ChannelType,
    CommonCap,
    LinkErr,
    MainCap,
    SpicevmcCap,
    channel_type_name,
)
from spicebridge.protocol.dialogue import Dialogue
from spicebridge.protocol.login import ClientLogin, ServerLogin, choose_login
from spicebridge.protocol.security_layer import SecurityLayer

_HEADER = struct.Struct("<4sIII")  # magic, major, minor, size of what follows
_MESS = struct.Struct("<IBBIII")  # connection_id, type, id, common and channel caps, offset
_REPLY = struct.Struct(f"<I{TICKET_PUBKEY_BYTES}sIII")  # error, key, the same three
_U32 = struct.Struct("<I")

COMMON_CAPS = frozenset(
    {CommonCap.PROTOCOL_AUTH_SELECTION, CommonCap.AUTH_SPICE, CommonCap.MINI_HEADER}
)
"""Common capabilities that both roles announce. A client that knows SASL adds AUTH_SASL."""


MAIN_CAPS = frozenset(
    {MainCap.SEMI_SEAMLESS_MIGRATE, MainCap.AGENT_CONNECTED_TOKENS, MainCap.SEAMLESS_MIGRATE}
)
"""What a client announces on the main channel. libspice-server lets it take part in a seamless
migration only if it knows all three (spice_server_migrate_connect)."""


def channel_caps(channel_type: int) -> frozenset[int]:
    """The channel capabilities that both roles announce for a type: LZ4 on all spicevmc ones."""
    if channel_type < ChannelType.SMARTCARD:
        return frozenset()
    return frozenset({SpicevmcCap.DATA_COMPRESS_LZ4})


@dataclass(frozen=True)
class LinkRequest:
    """What a client asks for (SpiceLinkMess).

    Attributes:
        connection_id: 0 to open a session with the main channel, else the session's id.
        channel_type: one byte, see `ChannelType`; 128 and up are for users.
        channel_id: instance within the type, one byte.
        common_caps: bits set, see `CommonCap`.
        channel_caps: bits set, their meaning depends on the type.
    """

    connection_id: int
    channel_type: int
    channel_id: int
    common_caps: frozenset[int] = COMMON_CAPS
    channel_caps: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """The channel as users write it: ``port:0``."""
        return f"{channel_type_name(self.channel_type)}:{self.channel_id}"


@dataclass(frozen=True)
class Linked:
    """What both sides agreed on.

    Attributes:
        request: what the client asked for.
        mini_header: whether messages have the 6-byte header instead of the 18-byte one.
        common_caps: those of the peer.
        channel_caps: those of the peer.
        login: how the client logged in, for people: ``ticket``, ``SASL SCRAM-SHA-256``.
        layer: what all further bytes of the connection go through; None where they do not. It may
            have something to `take` already.
    """

    request: LinkRequest
    mini_header: bool
    common_caps: frozenset[int] = field(default=frozenset())
    channel_caps: frozenset[int] = field(default=frozenset())
    login: str = ""
    layer: SecurityLayer | None = None


def _caps_words(caps: Iterable[int]) -> list[int]:
    words: list[int] = []
    for cap in caps:
        words += [0] * (cap // 32 + 1 - len(words))
        words[cap // 32] |= 1 << cap % 32
    return words


def _caps_bits(words: Iterable[int]) -> frozenset[int]:
    return frozenset(
        32 * index + bit for index, word in enumerate(words) for bit in range(32) if word >> bit & 1
    )


def _with_header(body: bytes) -> bytes:
    return _HEADER.pack(MAGIC, VERSION_MAJOR, VERSION_MINOR, len(body)) + body


def _refuse(error: LinkErr) -> bytes:
    """A link reply that says no: whole, as libspice-server's is, with nothing but the error."""
    return _with_header(_REPLY.pack(error, b"", 0, 0, _REPLY.size))


def _encode_caps(*caps: Iterable[int]) -> tuple[list[int], bytes]:
    sets = [_caps_words(each) for each in caps]
    words = [word for each in sets for word in each]
    return [len(each) for each in sets], struct.pack(f"<{len(words)}I", *words)


def _decode_caps(
    name: str, body: bytes, fixed: int, common: int, channel: int, offset: int
) -> tuple[frozenset[int], frozenset[int]]:
    """Reads both capability sets at `offset` of `body`, whose first `fixed` bytes are taken."""
    for count, at in ((common, fixed - 12), (channel, fixed - 8)):
        if count > MAX_CAPS_WORDS:
            raise ProtocolError(
                name,
                _HEADER.size + at,
                f"at most {MAX_CAPS_WORDS} words of capabilities",
                f"{count}",
            )
    if offset < fixed or offset + 4 * (common + channel) > len(body):
        raise ProtocolError(
            name,
            _HEADER.size + fixed - 4,
            f"capabilities between byte {fixed} and {len(body)}",
            f"{4 * (common + channel)} bytes at {offset}",
        )
    words = struct.unpack_from(f"<{common + channel}I", body, offset)
    return _caps_bits(words[:common]), _caps_bits(words[common:])


def _read_header(name: str, minimum: int) -> Dialogue[int]:
    """Reads a link header; returns the size of the body."""
    header = yield _HEADER.size
    magic, major, minor, size = _HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(
            name, 0, f"{MAGIC!r}", f"{magic!r}", "check that the port is that of a SPICE server"
        )
    if major != VERSION_MAJOR:
        raise ProtocolError(name, 4, f"major version {VERSION_MAJOR}", f"{major}.{minor}")
    if not minimum <= size <= MAX_LINK_BODY:
        raise ProtocolError(name, 12, f"a size of {minimum} to {MAX_LINK_BODY}", f"{size}")
    return int(size)


# The client's side


def link_client(request: LinkRequest, logins: Sequence[ClientLogin]) -> Dialogue[Linked]:
    """Links a channel and logs in.

    Args:
        request: the channel wanted.
        logins: ways to log in, the most wanted first.

    Returns:
        What was agreed on. The next byte from the server is the first message.

    Raises:
        ProtocolError: the peer does not speak SPICE, or breaks it.
        LoginError: the server refused the login, or offers none of ours.
        ChannelNotFoundError, ChannelBusyError, LinkRefusedError: the server's other refusals.
    """
    if any(login.mechanism == AuthMechanism.SASL for login in logins):
        request = replace(request, common_caps=request.common_caps | {CommonCap.AUTH_SASL})
    counts, caps = _encode_caps(request.common_caps, request.channel_caps)
    yield _with_header(
        _MESS.pack(
            request.connection_id, request.channel_type, request.channel_id, *counts, _MESS.size
        )
        + caps
    )
    size = yield from _read_header("SpiceLinkReply", 4)
    body = yield size
    (error,) = _U32.unpack_from(body)
    if error != LinkErr.OK:  # the rest of a refusal means nothing
        raise _refusal(error, request, logged_in=False)
    if size < _REPLY.size:
        raise ProtocolError("SpiceLinkReply", 12, f"a size of at least {_REPLY.size}", f"{size}")
    _, pubkey, *caps_at = _REPLY.unpack_from(body)
    common, channel = _decode_caps("SpiceLinkReply", body, _REPLY.size, *caps_at)
    agreed = common & request.common_caps
    if CommonCap.PROTOCOL_AUTH_SELECTION in agreed:
        login = choose_login(logins, common)
        yield _U32.pack(login.mechanism)
    else:  # a server from before the selection takes a ticket
        login = choose_login(logins, {AuthMechanism.SPICE})
    logged_in = yield from login.steps(pubkey, _HEADER.size + size)
    result = yield from _read_result(logged_in.layer)
    if result != LinkErr.OK:
        raise _refusal(result, request, logged_in=True)
    return Linked(
        request,
        CommonCap.MINI_HEADER in agreed,
        common,
        channel,
        login=logged_in.name,
        layer=logged_in.layer,
    )


def _read_result(layer: SecurityLayer | None) -> Dialogue[int]:
    """Reads the link result, which is the first that goes through a security layer."""
    if layer is None:
        return int(_U32.unpack((yield _U32.size))[0])
    result = bytearray()
    while len(result) < _U32.size:
        piece = bytearray(_U32.size - len(result))
        if count := layer.take(memoryview(piece)):
            result += piece[:count]
        else:
            layer.feed((yield layer.needed))
    return int(_U32.unpack(result)[0])


def _refusal(error: int, request: LinkRequest, *, logged_in: bool) -> SpicebridgeError:
    """The exception for the error of a link reply, or for the result after the login."""
    try:
        answer = f"the server answered {error} ({LinkErr(error).name.lower().replace('_', ' ')})"
    except ValueError:
        answer = f"the server answered {error}"
    if error == LinkErr.PERMISSION_DENIED:
        return LoginError(answer, "check the password (--password-file)", by_password=True)
    if error == LinkErr.CHANNEL_NOT_AVAILABLE and logged_in:
        return ChannelBusyError(f"{request.name} is in use: {answer}", "close the other client")
    if error == LinkErr.CHANNEL_NOT_AVAILABLE:
        return ChannelNotFoundError(
            f"{request.name} is not offered: {answer}", "see spicebridge list"
        )
    hints: Mapping[int, str] = {
        LinkErr.NEED_SECURED: "it is only for TLS: name the TLS port, spice://HOST?tls-port=PORT",
        LinkErr.NEED_UNSECURED: "this channel is only for plain connections",
        LinkErr.BAD_CONNECTION_ID: "the session has ended; connect again",
    }
    return LinkRefusedError(f"linking {request.name}: {answer}", hints.get(error, ""), error)


# The server's side


def link_server(
    pubkey: bytes,
    logins: Sequence[ServerLogin],
    available: Callable[[LinkRequest], LinkErr],
    admit: Callable[[LinkRequest], LinkErr],
) -> Dialogue[Linked]:
    """Answers a client's link and lets it log in.

    Args:
        pubkey: the 162 bytes of DER for the reply, see `login.ticket_pubkey`.
        logins: ways to log in that are offered.
        available: asked before the login whether the channel is offered; not OK refuses.
        admit: asked after the login whether the client may have it; not OK refuses.

    Returns:
        What was agreed on.

    Raises:
        ProtocolError: the client does not speak SPICE, or breaks it.
        LoginError: the client's login was refused.
        LinkRefusedError: `available` or `admit` refused. The client has its answer in each case.
    """
    try:
        size = yield from _read_header("SpiceLinkMess", _MESS.size)
    except ProtocolError as error:
        refusals = {0: LinkErr.INVALID_MAGIC, 4: LinkErr.VERSION_MISMATCH}
        yield _refuse(refusals.get(error.offset, LinkErr.INVALID_DATA))
        raise
    body = yield size
    connection_id, channel_type, channel_id, *caps_at = _MESS.unpack_from(body)
    try:
        common, channel = _decode_caps("SpiceLinkMess", body, _MESS.size, *caps_at)
    except ProtocolError:
        yield _refuse(LinkErr.INVALID_DATA)
        raise
    request = LinkRequest(connection_id, channel_type, channel_id, common, channel)
    if (verdict := available(request)) != LinkErr.OK:
        yield _refuse(verdict)
        raise LinkRefusedError(f"{request.name} refused: {verdict.name.lower()}")

    counts, caps = _encode_caps(COMMON_CAPS, channel_caps(channel_type))
    yield _with_header(_REPLY.pack(LinkErr.OK, pubkey, *counts, _REPLY.size) + caps)
    agreed = common & COMMON_CAPS
    login = logins[0]
    if CommonCap.PROTOCOL_AUTH_SELECTION in agreed:
        (mechanism,) = _U32.unpack((yield _U32.size))
        try:
            login = next(each for each in logins if each.mechanism == mechanism)
        except StopIteration:
            yield _U32.pack(LinkErr.INVALID_DATA)
            raise LoginError(f"the client asked for login mechanism {mechanism}") from None
    if not (yield from login.steps()):
        yield _U32.pack(LinkErr.PERMISSION_DENIED)
        raise LoginError("the client's password is wrong")
    verdict = admit(request)
    yield _U32.pack(verdict)
    if verdict != LinkErr.OK:
        raise LinkRefusedError(f"{request.name} refused: {verdict.name.lower()}")
    return Linked(request, CommonCap.MINI_HEADER in agreed, common, channel)
