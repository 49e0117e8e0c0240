"""SOCKS5: what is asked, how each refusal reads, and answers cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import ConnectError, UsageError
from spicebridge.transport.address import TcpAddress
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.socks5 import ask_socks5
from tests.transport.fake_proxy import (
    ASK_LOGIN,
    CONNECTED,
    LOGGED_IN,
    NO_LOGIN,
    VM,
    SaidWire,
    cut,
    finish,
)

PROXY = ProxyAddress("socks5", "proxy.example", 1080)
WITH_LOGIN = ProxyAddress("socks5", "proxy.example", 1080, "jürgen", "hunter2")

GREETING = b"\5\1\0"
GREETING_WITH_LOGIN = b"\5\2\0\2"
LOGIN = b"\1\7j\xc3\xbcrgen\7hunter2"
ASK_VM = b"\5\1\0\3\x0avm.example\x17\x0c"


def written(answer: bytes, proxy: ProxyAddress = PROXY, destination: TcpAddress = VM) -> bytes:
    wire = SaidWire([answer])
    finish(ask_socks5(wire, proxy, destination))
    assert not wire.unread
    return wire.written


def refusal(answer: bytes, proxy: ProxyAddress = PROXY) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        finish(ask_socks5(SaidWire([answer]), proxy, VM))
    return caught.value


# What is asked


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("vm.example", b"\3\x0avm.example"),
        ("192.0.2.1", b"\1\xc0\0\2\1"),
        ("2001:db8::1", b"\4\x20\1\r\xb8" + bytes(11) + b"\1"),
        ("pve:1::a", b"\3\x08pve:1::a"),
    ],
)
def test_a_name_is_left_to_the_proxy_and_an_address_is_sent_as_one(
    host: str, address: bytes
) -> None:
    asked = written(NO_LOGIN + CONNECTED, destination=TcpAddress(host, 5900))
    assert asked == GREETING + b"\5\1\0" + address + b"\x17\x0c"


def test_a_login_is_offered_and_sent_when_it_is_asked_for() -> None:
    assert written(ASK_LOGIN + LOGGED_IN + CONNECTED, WITH_LOGIN) == (
        GREETING_WITH_LOGIN + LOGIN + ASK_VM
    )
    assert written(NO_LOGIN + CONNECTED, WITH_LOGIN) == GREETING_WITH_LOGIN + ASK_VM


def test_a_wrong_version_in_the_answer_to_the_login_is_borne() -> None:
    written(ASK_LOGIN + b"\5\0" + CONNECTED, WITH_LOGIN)


@pytest.mark.parametrize(
    ("proxy", "host"),
    [
        (PROXY, "x" * 256),
        (ProxyAddress("socks5", "p", 1, "u" * 256, "hunter2"), "vm"),
        (ProxyAddress("socks5", "p", 1, "me", "hunter2" * 40), "vm"),
    ],
)
def test_what_is_too_long_for_socks_is_not_sent(proxy: ProxyAddress, host: str) -> None:
    wire = SaidWire([])
    with pytest.raises(UsageError, match="more than 255 bytes") as caught:
        finish(ask_socks5(wire, proxy, TcpAddress(host, 1)))
    assert "hunter2" not in str(caught.value)
    assert not wire.written


# Refusals


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        (1, "general failure", "the proxy could not reach the server"),
        (2, "connection not allowed by its rules", "its rules do not allow this server"),
        (3, "network unreachable", "the proxy could not reach the server"),
        (4, "host unreachable", "the proxy could not reach the server"),
        (5, "connection refused", "the proxy could not reach the server"),
        (6, "TTL expired", "the proxy could not reach the server"),
        (7, "command not supported", "it makes no tunnels"),
        (8, "address type not supported", "write the server's name"),
        (99, "failure 99", "the proxy could not reach the server"),
    ],
)
def test_a_refusal_is_told_in_words(code: int, reason: str, hint: str) -> None:
    error = refusal(NO_LOGIN + bytes([5, code]))
    assert error.problem == (
        f"proxy socks5://proxy.example:1080 refused to connect to vm.example:5900: {reason}"
    )
    assert error.hint.startswith(hint)


def test_a_wrong_login_is_to_be_checked() -> None:
    error = refusal(ASK_LOGIN + b"\1\1", WITH_LOGIN)
    assert str(error) == (
        "proxy socks5://proxy.example:1080 refused the login; "
        "check the user name and the password in the proxy's URI"
    )


@pytest.mark.parametrize("answer", [b"\5\xff", ASK_LOGIN])
def test_a_proxy_that_wants_a_login_is_told_where_to_give_it(answer: bytes) -> None:
    error = refusal(answer)
    assert error.problem == "proxy socks5://proxy.example:1080 wants another login than we offer"
    assert error.hint == "give the login in the proxy's URI: socks5://USER:PASSWORD@HOST:PORT"


@pytest.mark.parametrize("answer", [b"\5\xff", b"\5\1"])
def test_a_proxy_that_takes_no_password_says_so(answer: bytes) -> None:
    assert refusal(answer, WITH_LOGIN).hint.startswith("it takes no user name and password")


@pytest.mark.parametrize(
    ("answer", "quoted", "hint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400 Bad Request", "it is an HTTP proxy"),
        (b"SSH-2.0-x\r\n", "SSH-2.0-x", "is that"),
        (b"\0\x5b" + bytes(2), r"\x00[\x00\x00", "is that"),  # SOCKS4
        (NO_LOGIN + b"\4\0", r"\x04\x00", "is that"),
        (NO_LOGIN + b"\5\0\0\2", r"\x00\x02", "is that"),  # an unknown type of address
    ],
)
def test_what_is_no_socks_is_quoted(answer: bytes, quoted: str, hint: str) -> None:
    error = refusal(answer)
    assert error.problem == (
        f"proxy socks5://proxy.example:1080 does not speak SOCKS5, but answered '{quoted}'"
    )
    assert error.hint.startswith(hint)


# Cut anywhere

cuts = st.lists(st.integers(0, 1000), max_size=8)
bound = st.one_of(
    st.binary(min_size=4, max_size=4).map(b"\1".__add__),
    st.binary(min_size=16, max_size=16).map(b"\4".__add__),
    st.binary(max_size=255).map(lambda name: bytes([3, len(name)]) + name),
)


@given(
    login=st.sampled_from([NO_LOGIN, ASK_LOGIN + LOGGED_IN]),
    bound=bound,
    port=st.binary(min_size=2, max_size=2),
    tail=st.binary(max_size=40),
    places=cuts,
)
def test_a_granted_tunnel_begins_right_behind_the_answer_however_it_is_cut(
    login: bytes, bound: bytes, port: bytes, tail: bytes, places: list[int]
) -> None:
    wire = SaidWire(cut(login + b"\5\0\0" + bound + port + tail, places))
    finish(ask_socks5(wire, WITH_LOGIN, VM))
    assert wire.unread == tail


@given(place=st.integers(0, len(ASK_LOGIN + LOGGED_IN + CONNECTED) - 1), places=cuts)
def test_an_answer_that_ends_early_is_the_callers_to_tell(place: int, places: list[int]) -> None:
    answer = (ASK_LOGIN + LOGGED_IN + CONNECTED)[:place]
    with pytest.raises(EOFError):
        finish(ask_socks5(SaidWire(cut(answer, places)), WITH_LOGIN, VM))


garbage = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(NO_LOGIN.__add__),
    st.binary(max_size=300).map((ASK_LOGIN + LOGGED_IN + b"\5\0").__add__),
)


@given(answer=garbage, places=cuts)
def test_garbage_ends_in_one_printable_line_and_never_a_traceback(
    answer: bytes, places: list[int]
) -> None:
    line = ""
    try:
        finish(ask_socks5(SaidWire(cut(answer, places)), WITH_LOGIN, VM))
    except ConnectError as error:
        line = str(error)
    except EOFError:
        line = "it has ended"
    assert line.isprintable()
    assert len(line) < 250
    assert "hunter2" not in line
    assert line or answer.startswith(b"\5")
