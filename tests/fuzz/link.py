"""Links and logins: what servers say to clients, clients to servers, and both to each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final
from unittest import mock

import scramp.core
from cryptography.hazmat.primitives.asymmetric import rsa

from spicebridge.errors import ProtocolError, SpicebridgeError
from spicebridge.protocol.constants import MAX_CAPS_WORDS, LinkErr
from spicebridge.protocol.dialogue import Dialogue, Exchange
from spicebridge.protocol.link import Linked, LinkRequest, link_client, link_server
from spicebridge.protocol.login import ClientLogin, ClientTicket
from spicebridge.protocol.sasl import ClientSasl
from spicebridge.protocol.security_layer import BadTokenError, FrameLayer, SecurityLayer
from spicebridge.protocol.server_ticket import ServerTicket, ticket_pubkey
from tests.fuzz.kerberos import fake_gssapi
from tests.fuzz.script import Parser, Script, cut, told

USER: Final = "alice"
PASSWORD: Final = "open, sesame"
NONCE: Final = "0123456789abcdef"
"""That of every SCRAM client here: an answer that was recorded fits."""

_P: Final = int(
    "e17776998cca748a265bf95cf217efdbe41aa82fa5d605f6eab2b650518817f1"
    "f9ab3e21a25bd54788eaebb3ec36ade75c39352994c44a042bd96114936fe84d",
    16,
)
_Q: Final = int(
    "c9839ae26a858430501c39eca7030a0deea5862ad1c4667f5c9662b8c57beeab"
    "4e5370f4ceda6f84c84e62c9cfd1bed7e2a7d14af6b7755c5d3e145a7d6777f5",
    16,
)
_E: Final = 65537


def _key() -> rsa.RSAPrivateKey:
    d = pow(_E, -1, (_P - 1) * (_Q - 1))
    parts = (rsa.rsa_crt_dmp1(d, _P), rsa.rsa_crt_dmq1(d, _Q), rsa.rsa_crt_iqmp(_P, _Q))
    return rsa.RSAPrivateNumbers(_P, _Q, d, *parts, rsa.RSAPublicNumbers(_E, _P * _Q)).private_key()


KEY: Final = _key()
"""The server's, always the same: a ticket that was recorded fits."""
PUBKEY: Final = ticket_pubkey(KEY)

TYPES: Final = (1, 10, 9, 11, 128, 255, 2, 0)
_VERDICTS: Final = (*LinkErr,)
_MECHANISMS: Final = ("", "", "GSSAPI", "SCRAM-SHA-256", "PLAIN", "EXTERNAL")
_MAX_TOKEN: Final = 3000
_MAX_CAP: Final = 32 * MAX_CAPS_WORDS


def request(channel_type: int) -> LinkRequest:
    """What the client asks for."""
    return LinkRequest(0 if channel_type == 1 else 7, channel_type, 0)


def client(script: Script) -> Dialogue[Linked]:
    """A client with logins of the script's choice: two bytes."""
    channel = request(script.choice(TYPES))
    ticket, sasl, named, confidential = script.flags(4)
    logins: list[ClientLogin] = []
    if sasl:
        logins.append(
            ClientSasl(
                USER if named else "",
                PASSWORD if named else "",
                mechanism=script.choice(_MECHANISMS),
                confidential=confidential,
                host="vm.example",
            )
        )
    if ticket or not sasl:
        logins.append(ClientTicket(PASSWORD))
    return link_client(channel, logins)


def server(script: Script) -> Dialogue[Linked]:
    """A server with verdicts of the script's choice: three bytes."""
    password = script.choice((PASSWORD, None))
    available, admit = script.choice(_VERDICTS), script.choice(_VERDICTS)
    ticket = ServerTicket(KEY, password)
    return link_server(PUBKEY, [ticket], lambda _: available, lambda _: admit)


@contextmanager
def recorded() -> Iterator[None]:
    """Chance and Kerberos are as they were when seeds were made."""
    with (
        mock.patch.object(scramp.core, "token_hex", return_value=NONCE),
        mock.patch.dict(sys.modules, gssapi=fake_gssapi()),
    ):
        yield


# What is heard


@dataclass
class Heard:
    """What came of a link on one side.

    Attributes:
        linked: what was agreed on, without its layer; None if nothing was.
        refused: the error in words.
        said: bytes that we have said. Tickets differ each time, but not in their size.
        rest: bytes that the link has left unread, or that its security layer has made of them.
    """

    linked: Linked | None = None
    refused: str = ""
    said: int = 0
    rest: bytes = b""


def _hear(dialogue: Dialogue[Linked], pieces: Iterable[bytes]) -> Heard:
    exchange = Exchange(dialogue)
    heard = Heard()
    rest = bytearray()
    try:
        for piece in pieces:
            at = 0
            while exchange.needed and at < len(piece):  # no driver reads more than is needed
                part = piece[at : at + exchange.needed]
                at += len(part)
                exchange.receive_data(part)
                heard.said += len(exchange.data_to_send())
            rest += piece[at:]
        if exchange.done:
            layer = exchange.result.layer
            heard.linked = replace(exchange.result, layer=None)
            heard.rest = _unwrapped(layer, [bytes(rest)]) if layer else bytes(rest)
    except SpicebridgeError as error:
        heard.said += len(exchange.data_to_send())
        heard.refused = f"{type(error).__name__}: {told(error)}"
    return heard


def _unwrapped(layer: SecurityLayer, pieces: Iterable[bytes]) -> bytes:
    plain = bytearray()
    buffer = memoryview(bytearray(1000))
    for piece in pieces:
        assert layer.needed
        layer.feed(piece)
        while (count := layer.take(buffer)) is not None:
            assert count
            plain += buffer[:count]
    return bytes(plain)


def _links(make: Callable[[Script], Dialogue[Linked]], script: Script) -> bool:
    choices, cuts, stream = script.take(3), script.number(), script.rest()
    with recorded():
        whole = _hear(make(Script(choices)), [stream])
        in_pieces = _hear(make(Script(choices)), cut(stream, cuts))
    assert in_pieces == whole
    return whole.linked is not None and not whole.rest


def link_to_server(script: Script) -> bool:
    """A client hears a server."""
    return _links(client, script)


def link_from_client(script: Script) -> bool:
    """A server hears a client."""
    return _links(server, script)


def link_both(script: Script) -> bool:
    """A client and a server of ours link, whatever is asked for, and agree on what it was."""
    asked = LinkRequest(
        script.number(4),
        script.number(),
        script.number(),
        frozenset(cap % _MAX_CAP for cap in script.take(4)),
        frozenset(8 * cap % _MAX_CAP for cap in script.take(4)),
    )
    password = script.rest().decode("latin-1")
    ours = Exchange(link_client(asked, [ClientTicket(password)]))
    theirs = Exchange(link_server(PUBKEY, [ServerTicket(KEY, password)], _take, _take))
    while not (ours.done and theirs.done):
        said = ours.data_to_send()
        theirs.receive_data(said)
        answer = theirs.data_to_send()
        ours.receive_data(answer)
        assert said or answer
    assert theirs.result.request == ours.result.request == asked
    assert theirs.result.mini_header == ours.result.mini_header
    return True


def _take(_: LinkRequest) -> LinkErr:
    return LinkErr.OK


def frames(script: Script) -> bool:
    """A security layer hears what another one has wrapped, and then anything."""
    cuts, size = script.number(), script.number(2)
    plain = script.take(size)
    wrapped = _layer().encode(plain)
    assert _unwrapped(_layer(), cut(wrapped, cuts)) == plain
    stream = script.rest()
    whole = _frames([stream])
    assert _frames(cut(stream, cuts)) == whole
    return not whole[1]


def _frames(pieces: Iterable[bytes]) -> tuple[bytes, str]:
    try:
        return _unwrapped(_layer(), pieces), ""
    except ProtocolError as error:  # how much was given before depends on the pieces
        return b"", told(error)


def _layer() -> FrameLayer:
    return FrameLayer(_shift, _unshift, max_plain=7, max_token=_MAX_TOKEN, position=100)


def _shift(plain: bytes) -> bytes:
    return plain[::-1] + b"."


def _unshift(token: bytes) -> bytes:
    if not token.endswith(b"."):
        raise BadTokenError("a token without its dot")
    return token[-2::-1]


PARSERS: Final[Sequence[Parser]] = (link_to_server, link_from_client, link_both, frames)
