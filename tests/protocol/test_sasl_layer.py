"""The security layer: frames cut anywhere, bounds that hold, and a link result that is inside."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import ChannelBusyError, ProtocolError
from spicebridge.protocol.constants import AuthMechanism, CommonCap, LinkErr
from spicebridge.protocol.dialogue import Dialogue, Exchange
from spicebridge.protocol.link import COMMON_CAPS, Linked, LinkRequest, link_client
from spicebridge.protocol.login import ClientLogin, ClientTicket, LoggedIn
from spicebridge.protocol.security_layer import BadTokenError, FrameLayer, SecurityLayer
from tests.protocol.sasl_tools import login
from tests.protocol.test_link import reply
from tests.protocol.wire import PORT, pieces

MARK = b"token:"
MAX_PLAIN = 10
MAX_TOKEN = 40


def wrap(plain: bytes) -> bytes:
    return MARK + plain[::-1]


def unwrap(token: bytes) -> bytes:
    if not token.startswith(MARK):
        raise BadTokenError("a forged one")
    return token.removeprefix(MARK)[::-1]


def new_layer(position: int = 0) -> FrameLayer:
    return FrameLayer(wrap, unwrap, max_plain=MAX_PLAIN, max_token=MAX_TOKEN, position=position)


def taken(layer: SecurityLayer, count: int) -> bytes:
    """Up to `count` bytes of what a layer has."""
    buffer = bytearray(count)
    return bytes(buffer[: layer.take(memoryview(buffer)) or 0])


# Frames


def test_a_frame_is_a_length_with_its_high_byte_first_and_a_token() -> None:
    assert new_layer().encode(b"abc") == bytes.fromhex("00000009") + b"token:cba"


def test_what_the_peer_cannot_take_at_once_goes_in_several_frames() -> None:
    encoded = new_layer().encode(memoryview(b"0123456789abc"))
    assert encoded == b"\0\0\0\x10token:9876543210\0\0\0\x09token:cba"


def test_nothing_makes_no_frame() -> None:
    assert new_layer().encode(b"") == b""


@given(st.lists(st.binary(max_size=50)), st.sets(st.integers(1, 300)), st.integers(1, 60))
def test_what_one_side_encodes_the_other_takes_however_it_is_cut(
    said: list[bytes], cuts: set[int], count: int
) -> None:
    ours, theirs = new_layer(), new_layer()
    wire = b"".join(ours.encode(each) for each in said)
    heard = b""
    for piece in pieces(wire, cuts):
        theirs.feed(piece)
        while got := taken(theirs, count):
            heard += got
    assert heard == b"".join(said)
    assert theirs.needed == 4


@given(st.binary(min_size=1, max_size=50))
def test_who_feeds_only_what_is_needed_stops_at_the_end_of_a_frame(said: bytes) -> None:
    layer, wire, heard = new_layer(), new_layer().encode(said) + b"behind", b""
    while len(heard) < len(said):
        count = layer.needed
        layer.feed(wire[:count])
        wire = wire[count:]
        heard += taken(layer, 100)
    assert heard == said
    assert wire == b"behind"


def test_nothing_to_take_is_none_and_not_the_end() -> None:
    layer = new_layer()
    assert layer.take(memoryview(bytearray(9))) is None
    layer.feed(new_layer().encode(b"a"))
    assert layer.take(memoryview(bytearray(9))) == 1
    assert layer.take(memoryview(bytearray(9))) is None


def test_a_frame_that_is_too_long_is_refused_by_its_length_alone() -> None:
    layer = new_layer(position=1000)
    layer.feed(new_layer().encode(b"abc"))
    with pytest.raises(ProtocolError) as caught:
        layer.feed(struct.pack(">I", MAX_TOKEN + 1))
    assert (caught.value.message, caught.value.offset) == ("SASL frame", 1013)
    assert caught.value.got == "41"


@pytest.mark.parametrize("token", [b"", b"forged"])
def test_a_token_that_is_not_the_peers_is_refused_at_its_place(token: bytes) -> None:
    layer = new_layer(position=1000)
    with pytest.raises(ProtocolError) as caught:
        layer.feed(struct.pack(">I", len(token)) + token)
    assert (caught.value.offset, caught.value.got) == (1004, "a forged one")


# In a link


class Layered:
    """A login that leaves a layer behind."""

    mechanism = AuthMechanism.SASL
    blocking = False

    def __init__(self) -> None:
        self.position = 0

    def steps(self, pubkey: bytes, position: int) -> Dialogue[LoggedIn]:
        self.position = position
        yield b"let me in"
        return LoggedIn("layered", new_layer(position))

    def hung_up(self) -> None:
        return None


REQUEST = LinkRequest(7, PORT, 0)
REPLY = reply(frozenset({CommonCap.PROTOCOL_AUTH_SELECTION, CommonCap.AUTH_SASL}))


def linked(frames: bytes) -> tuple[Exchange[Linked], bytes]:
    """A link that has got the reply and these frames, as far as it wanted them; and the rest."""
    exchange = Exchange(link_client(REQUEST, [ClientTicket(), Layered()]))
    wire = REPLY + frames
    while wire and exchange.needed:
        count = exchange.needed
        exchange.receive_data(wire[:count])
        wire = wire[count:]
    return exchange, wire


def test_the_link_result_is_the_first_that_goes_through_the_layer() -> None:
    exchange, rest = linked(new_layer().encode(bytes(4)) + b"next frame")
    assert exchange.result.login == "layered"
    assert exchange.result.layer is not None
    assert rest == b"next frame"


@given(st.integers(1, 3))
def test_a_link_result_may_come_in_several_frames(cut: int) -> None:
    frames = new_layer().encode(bytes(cut)) + new_layer().encode(bytes(4 - cut))
    exchange, rest = linked(frames)
    assert exchange.done
    assert not rest


def test_what_follows_the_link_result_in_its_frame_waits_in_the_layer() -> None:
    exchange, _ = linked(new_layer().encode(bytes(4) + b"more"))
    assert exchange.result.layer is not None
    assert taken(exchange.result.layer, 9) == b"more"


def test_a_refusal_may_come_through_the_layer() -> None:
    result = LinkErr.CHANNEL_NOT_AVAILABLE.to_bytes(4, "little")
    with pytest.raises(ChannelBusyError):
        linked(new_layer().encode(result))


def test_the_login_is_told_how_much_the_server_has_sent() -> None:
    layered = Layered()
    Exchange(link_client(REQUEST, [layered])).receive_data(REPLY)
    assert layered.position == len(REPLY)


# What a client announces


def announced(*logins: ClientLogin) -> int:
    """The word of common capabilities in a link message."""
    said = Exchange(link_client(REQUEST, logins)).data_to_send()
    return int.from_bytes(said[34:38], "little")


def test_a_client_announces_sasl_only_if_it_could_use_it() -> None:
    ticket_only = sum(1 << cap for cap in COMMON_CAPS)
    with_sasl = ticket_only | 1 << CommonCap.AUTH_SASL
    assert announced(ClientTicket()) == ticket_only
    assert announced(ClientTicket(), login()) == with_sasl
    assert announced(login()) == with_sasl


def test_the_request_that_was_agreed_on_tells_what_was_announced() -> None:
    exchange, _ = linked(new_layer().encode(bytes(4)))
    assert CommonCap.AUTH_SASL in exchange.result.request.common_caps


def test_a_server_that_offers_the_ticket_gets_it_from_a_client_that_knows_sasl() -> None:
    exchange = Exchange(link_client(REQUEST, [login(), ClientTicket()]))
    exchange.data_to_send()
    exchange.receive_data(reply(COMMON_CAPS))
    assert exchange.data_to_send()[:4] == AuthMechanism.SPICE.to_bytes(4, "little")
    exchange.receive_data(bytes(4))
    assert exchange.result.login == "ticket"
