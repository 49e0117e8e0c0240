"""What either role says to a link that is refused, or is no link at all."""

from __future__ import annotations

import struct
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import (
    ChannelBusyError,
    ChannelNotFoundError,
    LinkRefusedError,
    LoginError,
    ProtocolError,
    SpicebridgeError,
)
from spicebridge.protocol.constants import MAX_CAPS_WORDS, MAX_LINK_BODY, LinkErr
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.link import Linked, link_client
from spicebridge.protocol.login import ClientTicket
from tests.protocol.test_link import LINK_MESS, LINK_REPLY, REQUEST
from tests.protocol.wire import PUBKEY, pieces, serve

HTTP: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"

REFUSALS: Final = [error for error in LinkErr if error != LinkErr.OK]
IN_REPLY: Final = {
    LinkErr.PERMISSION_DENIED: LoginError,
    LinkErr.CHANNEL_NOT_AVAILABLE: ChannelNotFoundError,
}
IN_RESULT: Final = {
    LinkErr.PERMISSION_DENIED: LoginError,
    LinkErr.CHANNEL_NOT_AVAILABLE: ChannelBusyError,
}


def client() -> Exchange[Linked]:
    exchange = Exchange(link_client(REQUEST, [ClientTicket()]))
    exchange.data_to_send()
    return exchange


def header(size: int, *, magic: bytes = b"REDQ", major: int = 2, minor: int = 2) -> bytes:
    return struct.pack("<4sIII", magic, major, minor, size)


# The client hears a refusal


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.name)
@pytest.mark.parametrize("body", [bytes(174), b""], ids=["whole reply", "error alone"])
def test_every_error_of_a_reply_has_its_exception(error: LinkErr, body: bytes) -> None:
    exchange = client()
    kind = IN_REPLY.get(error, LinkRefusedError)
    with pytest.raises(kind, match=f"the server answered {error} ") as caught:
        exchange.receive_data(header(4 + len(body)) + error.to_bytes(4, "little") + body)
    assert error.name.lower().replace("_", " ") in str(caught.value)


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.name)
def test_every_error_of_a_result_has_its_exception(error: LinkErr) -> None:
    exchange = client()
    exchange.receive_data(LINK_REPLY)
    kind = IN_RESULT.get(error, LinkRefusedError)
    with pytest.raises(kind, match=f"the server answered {error} "):
        exchange.receive_data(error.to_bytes(4, "little"))


def test_an_error_without_a_name_is_told_by_its_number() -> None:
    exchange = client()
    with pytest.raises(LinkRefusedError, match=r"linking port:3: the server answered 4711$"):
        exchange.receive_data(header(4) + (4711).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (LinkErr.NEED_SECURED, "TLS"),
        (LinkErr.NEED_UNSECURED, "plain"),
        (LinkErr.BAD_CONNECTION_ID, "session has ended"),
        (LinkErr.PERMISSION_DENIED, "--password-file"),
        (LinkErr.CHANNEL_NOT_AVAILABLE, "spicebridge list"),
    ],
)
def test_a_refusal_that_the_user_can_mend_says_how(error: LinkErr, hint: str) -> None:
    with pytest.raises(SpicebridgeError) as caught:
        client().receive_data(header(4) + error.to_bytes(4, "little"))
    assert hint in caught.value.hint


# The client hears something else


def reply(
    *, size: int = 186, common: int = 1, channel: int = 1, offset: int = 178, words: int = 2
) -> bytes:
    """A link reply with one thing wrong."""
    caps = struct.pack("<III", common, channel, offset) + bytes(4 * words)
    return header(size) + bytes(4) + PUBKEY + caps


@pytest.mark.parametrize(
    ("said", "offset", "expected", "got"),
    [
        (HTTP, 0, "b'REDQ'", "b'HTTP'"),
        (header(186, major=1), 4, "major version 2", "1.2"),
        (header(186, major=3, minor=0), 4, "major version 2", "3.0"),
        (header(3), 12, "a size of 4 to 4096", "3"),
        (header(MAX_LINK_BODY + 1), 12, "a size of 4 to 4096", "4097"),
        (header(2**32 - 1), 12, "a size of 4 to 4096", "4294967295"),
        (header(177) + bytes(177), 12, "a size of at least 178", "177"),
        (reply(common=33), 182, "at most 32 words of capabilities", "33"),
        (reply(common=2**32 - 1), 182, "at most 32 words of capabilities", "4294967295"),
        (reply(offset=177), 190, "capabilities between byte 178 and 186", "8 bytes at 177"),
        (reply(offset=179), 190, "capabilities between byte 178 and 186", "8 bytes at 179"),
        (reply(offset=2**32 - 1), 190, "capabilities between byte 178 and 186", "8 bytes at"),
        (reply(channel=2), 190, "capabilities between byte 178 and 186", "12 bytes at 178"),
    ],
    ids=lambda value: value[:4].decode("latin1") if isinstance(value, bytes) else None,
)
def test_a_broken_reply_is_told_with_its_place(
    said: bytes, offset: int, expected: str, got: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        client().receive_data(said)
    error = caught.value
    assert (error.message, error.offset, error.expected) == ("SpiceLinkReply", offset, expected)
    assert error.got.startswith(got)


def test_too_many_words_of_channel_caps_are_told_at_their_own_place() -> None:
    with pytest.raises(ProtocolError, match="at most 32 words") as caught:
        client().receive_data(reply(channel=33))
    assert caught.value.offset == 16 + 4 + 162 + 4


def test_what_is_no_spice_server_gets_a_hint_to_check_the_port() -> None:
    with pytest.raises(ProtocolError) as caught:
        client().receive_data(HTTP)
    assert "check that the port is that of a SPICE server" in str(caught.value)


def test_any_minor_version_will_do() -> None:
    exchange = client()
    exchange.receive_data(LINK_REPLY[:8] + bytes((99, 0, 0, 0)) + LINK_REPLY[12:] + bytes(4))
    assert exchange.done


def test_a_reply_of_exactly_the_limits_is_taken() -> None:
    words = 2 * MAX_CAPS_WORDS
    counts = struct.pack("<III", MAX_CAPS_WORDS, MAX_CAPS_WORDS, MAX_LINK_BODY - 4 * words)
    caps = struct.pack("<I", 0b1010) + bytes(4 * (words - 1))
    body = (bytes(4) + PUBKEY + counts).ljust(MAX_LINK_BODY - len(caps), b"\xff") + caps
    exchange = client()
    exchange.receive_data(header(MAX_LINK_BODY) + body + bytes(4))
    assert exchange.result.mini_header


@given(st.binary(max_size=300), st.booleans(), st.sets(st.integers(1, 300)))
def test_random_bytes_from_a_server_only_raise_errors_of_ours(
    noise: bytes, spice: bool, cuts: set[int]
) -> None:
    exchange = client()
    try:
        for piece in pieces((header(178) if spice else b"") + noise, cuts):
            exchange.receive_data(piece)
    except SpicebridgeError:
        pass


# The server hears something else


def mess(
    *, size: int = 26, common: int = 1, channel: int = 1, offset: int = 18, words: int = 2
) -> bytes:
    """A link message with one thing wrong."""
    return (
        header(size) + struct.pack("<IBBIII", 1, 10, 0, common, channel, offset) + bytes(4 * words)
    )


@pytest.mark.parametrize(
    ("said", "answer", "offset", "expected", "got"),
    [
        (b"GET / HTTP/1.1\r\n", LinkErr.INVALID_MAGIC, 0, "b'REDQ'", "b'GET '"),
        (header(26, major=1), LinkErr.VERSION_MISMATCH, 4, "major version 2", "1.2"),
        (header(17), LinkErr.INVALID_DATA, 12, "a size of 18 to 4096", "17"),
        (header(4097), LinkErr.INVALID_DATA, 12, "a size of 18 to 4096", "4097"),
        (mess(common=33), LinkErr.INVALID_DATA, 22, "at most 32 words of capabilities", "33"),
        (
            mess(offset=17),
            LinkErr.INVALID_DATA,
            30,
            "capabilities between byte 18 and 26",
            "8 bytes at 17",
        ),
        (
            mess(common=2),
            LinkErr.INVALID_DATA,
            30,
            "capabilities between byte 18 and 26",
            "12 bytes at 18",
        ),
    ],
    ids=["http", "major", "short", "long", "words", "offset", "beyond"],
)
def test_a_broken_link_is_told_with_its_place_and_answered(
    said: bytes, answer: LinkErr, offset: int, expected: str, got: str
) -> None:
    server = Exchange(serve())
    with pytest.raises(ProtocolError) as caught:
        server.receive_data(said)
    error = caught.value
    assert (error.message, error.offset) == ("SpiceLinkMess", offset)
    assert (error.expected, error.got) == (expected, got)
    refusal = server.data_to_send()
    assert refusal == header(178) + answer.to_bytes(4, "little") + bytes(170) + b"\xb2\0\0\0"


@pytest.mark.parametrize("said", [mess(common=0, channel=0, size=18, words=0), LINK_MESS])
def test_a_link_of_exactly_the_smallest_size_is_taken(said: bytes) -> None:
    server = Exchange(serve())
    server.receive_data(said)
    assert server.data_to_send() == LINK_REPLY


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.name)
def test_a_channel_that_is_not_available_is_refused_in_the_reply(error: LinkErr) -> None:
    server = Exchange(serve(available=lambda _: error))
    with pytest.raises(LinkRefusedError, match=f"port:3 refused: {error.name.lower()}"):
        server.receive_data(LINK_MESS)
    with pytest.raises(IN_REPLY.get(error, LinkRefusedError)):
        client().receive_data(server.data_to_send())


@given(st.binary(max_size=300), st.booleans(), st.sets(st.integers(1, 300)))
def test_random_bytes_from_a_client_only_raise_errors_of_ours(
    noise: bytes, spice: bool, cuts: set[int]
) -> None:
    server = Exchange(serve("secret"))
    try:
        for piece in pieces((LINK_MESS if spice else b"") + noise, cuts):
            server.receive_data(piece)
    except SpicebridgeError:
        pass
