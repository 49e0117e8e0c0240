"""Linking and logging in: both roles against each other, and byte for byte as in PEERS.md."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import LinkRefusedError, LoginError
from spicebridge.protocol.constants import CommonCap, LinkErr, SpicevmcCap
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.link import COMMON_CAPS, LinkRequest, channel_caps, link_client
from spicebridge.protocol.login import ClientTicket
from tests.protocol.wire import KEY, MAIN, PORT, PUBKEY, pieces, play, serve

REQUEST: Final = LinkRequest(0x01020304, PORT, 3, channel_caps=channel_caps(PORT))

LINK_MESS: Final = bytes.fromhex(
    "52454451 02000000 02000000 1a000000"  # REDQ, major 2, minor 2, 26 bytes follow
    "04030201 0a 03"  # connection_id, type port, id 3
    "01000000 01000000 12000000"  # a word of common caps, a word of channel caps, at 18
    "0b000000 01000000"  # auth-selection, auth-spice, mini-header; LZ4
)
LINK_REPLY: Final = (
    bytes.fromhex("52454451 02000000 02000000 ba000000 00000000")  # 186 bytes follow, no error
    + PUBKEY
    + bytes.fromhex("01000000 01000000 b2000000 0b000000 01000000")  # the same caps, at 178
)


def client(password: str = "", request: LinkRequest = REQUEST) -> Exchange[object]:
    return Exchange(link_client(request, [ClientTicket(password)]))


# Byte for byte


def test_a_link_message_is_what_peers_md_says() -> None:
    assert client().data_to_send() == LINK_MESS


def test_a_link_message_without_channel_caps_has_no_word_of_them() -> None:
    said = client(request=LinkRequest(0, MAIN, 0)).data_to_send()
    assert said == bytes.fromhex(
        "52454451 02000000 02000000 16000000 00000000 01 00 01000000 00000000 12000000 0b000000"
    )


def test_a_link_reply_is_what_peers_md_says() -> None:
    server = Exchange(serve())
    server.receive_data(LINK_MESS)
    assert server.data_to_send() == LINK_REPLY


def test_after_the_reply_go_the_mechanism_and_the_ticket_and_the_result_comes_back() -> None:
    ours, server = client("secret"), Exchange(serve("secret"))
    server.receive_data(ours.data_to_send())
    ours.receive_data(server.data_to_send())
    login = ours.data_to_send()
    assert login[:4] == bytes.fromhex("01000000")
    assert len(login) == 4 + 128
    server.receive_data(login)
    result = server.data_to_send()
    assert result == bytes(4)
    ours.receive_data(result)
    assert ours.done


# Both roles against each other


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.sets(st.integers(0, 1023)),
    st.sets(st.integers(0, 200)),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=60),
    st.integers(1, 400),
)
def test_both_roles_agree_whatever_is_asked_for_and_however_the_bytes_are_cut(
    connection_id: int,
    channel_type: int,
    channel_id: int,
    common: set[int],
    channel: set[int],
    password: str,
    piece: int,
) -> None:
    request = LinkRequest(
        connection_id,
        channel_type,
        channel_id,
        common_caps=frozenset(common | {CommonCap.AUTH_SPICE}),
        channel_caps=frozenset(channel),
    )
    ours = Exchange(link_client(request, [ClientTicket(password)]))
    theirs = Exchange(serve(password))
    play(ours, theirs, piece)
    assert theirs.result.request == request
    assert theirs.result.common_caps == request.common_caps
    assert theirs.result.channel_caps == request.channel_caps
    assert ours.result.request == request
    assert ours.result.common_caps == COMMON_CAPS
    assert ours.result.channel_caps == channel_caps(channel_type)
    assert ours.result.mini_header == theirs.result.mini_header
    assert ours.result.mini_header == (CommonCap.MINI_HEADER in common)
    assert (ours.needed, theirs.needed) == (0, 0)


@given(st.sets(st.integers(1, len(LINK_REPLY) - 1)))
def test_a_reply_cut_anywhere_gives_the_same_login(cuts: set[int]) -> None:
    exchange = client("secret")
    exchange.data_to_send()
    for piece in pieces(LINK_REPLY, cuts):
        assert not exchange.data_to_send(), "it answered before it had heard all"
        exchange.receive_data(piece)
    assert len(exchange.data_to_send()) == 4 + 128
    exchange.receive_data(bytes(4))
    assert exchange.done


def test_the_driver_never_needs_to_read_beyond_the_result() -> None:
    """So that the first message stays in the kernel until the channel reads it."""
    exchange, wire = client(), LINK_REPLY + bytes(4) + b"first message"
    while not exchange.done:
        count = exchange.needed
        exchange.receive_data(wire[:count])
        wire = wire[count:]
    assert wire == b"first message"


@pytest.mark.parametrize("missing", list(COMMON_CAPS), ids=lambda cap: cap.name)
def test_without_a_common_cap_both_roles_still_agree(missing: CommonCap) -> None:
    """AUTH_SPICE missing as well: without a choice there is only the ticket."""
    request = LinkRequest(0, MAIN, 0, common_caps=COMMON_CAPS - {missing})
    ours = Exchange(link_client(request, [ClientTicket("secret")]))
    theirs = Exchange(serve("secret"))
    play(ours, theirs)
    assert ours.result.mini_header is theirs.result.mini_header
    assert ours.result.mini_header is (missing != CommonCap.MINI_HEADER)


def test_a_server_without_auth_selection_gets_the_ticket_and_no_mechanism() -> None:
    exchange = client("secret")
    exchange.data_to_send()
    exchange.receive_data(reply(common=frozenset({CommonCap.MINI_HEADER})))
    assert len(exchange.data_to_send()) == 128
    exchange.receive_data(bytes(4))
    assert exchange.done


def test_a_server_with_only_sasl_is_told_as_such() -> None:
    exchange = client()
    with pytest.raises(LoginError, match="no login with a ticket, only with SASL"):
        exchange.receive_data(
            reply(
                common=frozenset({CommonCap.PROTOCOL_AUTH_SELECTION, CommonCap.AUTH_SASL}),
            )
        )


def reply(common: frozenset[int], body: bytes = PUBKEY) -> bytes:
    """A link reply of a server with these common caps, put together by hand."""
    word = sum(1 << cap for cap in common)
    return (
        bytes.fromhex("52454451 02000000 02000000 b6000000 00000000")
        + body
        + bytes.fromhex("01000000 00000000 b2000000")
        + word.to_bytes(4, "little")
    )


def test_caps_lie_where_the_offset_says_not_where_they_are_expected() -> None:
    body = (
        bytes(4)
        + PUBKEY
        + bytes.fromhex("01000000 01000000 b6000000")
        + b"gap!"
        + bytes.fromhex("0a000000 01000000")
    )
    header = bytes.fromhex("52454451 02000000 02000000") + len(body).to_bytes(4, "little")
    exchange = Exchange(link_client(REQUEST, [ClientTicket()]))
    exchange.receive_data(header + body)
    exchange.receive_data(bytes(4))
    assert exchange.result.common_caps == {CommonCap.AUTH_SPICE, CommonCap.MINI_HEADER}
    assert exchange.result.channel_caps == {SpicevmcCap.DATA_COMPRESS_LZ4}


# Who is let in


def test_a_wrong_password_ends_both_roles_with_a_login_error() -> None:
    ours, theirs = client("wrong"), Exchange(serve("right"))
    theirs.receive_data(ours.data_to_send())
    ours.receive_data(theirs.data_to_send())
    with pytest.raises(LoginError, match="password"):
        theirs.receive_data(ours.data_to_send())
    result = theirs.data_to_send()
    assert result == LinkErr.PERMISSION_DENIED.to_bytes(4, "little")
    with pytest.raises(LoginError, match=r"7 \(permission denied\)"):
        ours.receive_data(result)


def test_a_mechanism_that_the_server_does_not_have_is_refused() -> None:
    theirs = Exchange(serve("right"))
    theirs.receive_data(LINK_MESS)
    theirs.data_to_send()
    with pytest.raises(LoginError, match="mechanism 2"):
        theirs.receive_data(CommonCap.AUTH_SASL.to_bytes(4, "little"))
    assert theirs.data_to_send() == LinkErr.INVALID_DATA.to_bytes(4, "little")


def test_the_server_asks_for_admission_only_after_the_login() -> None:
    asked: list[str] = []

    def available(request: LinkRequest) -> LinkErr:
        asked.append(f"available {request.name}")
        return LinkErr.OK

    def admit(request: LinkRequest) -> LinkErr:
        asked.append(f"admit {request.name}")
        return LinkErr.OK

    ours, theirs = client("pw"), Exchange(serve("pw", available=available, admit=admit))
    theirs.receive_data(ours.data_to_send())
    assert asked == ["available port:3"]
    play(ours, theirs)
    assert asked == ["available port:3", "admit port:3"]


def test_a_wrong_password_is_never_admitted() -> None:
    def admit(request: LinkRequest) -> LinkErr:
        raise AssertionError(request)

    theirs = Exchange(serve("right", admit=admit))
    with pytest.raises(LoginError):
        play(client("wrong"), theirs)


def test_a_refused_admission_is_the_result_of_the_link() -> None:
    theirs = Exchange(serve(admit=lambda _: LinkErr.BAD_CONNECTION_ID))
    ours = client()
    theirs.receive_data(ours.data_to_send())
    ours.receive_data(theirs.data_to_send())
    with pytest.raises(LinkRefusedError, match="port:3 refused: bad_connection_id"):
        theirs.receive_data(ours.data_to_send())
    assert theirs.data_to_send() == LinkErr.BAD_CONNECTION_ID.to_bytes(4, "little")


def test_the_private_key_never_shows_on_the_wire() -> None:
    assert KEY.private_numbers().p.to_bytes(64, "big") not in LINK_REPLY
