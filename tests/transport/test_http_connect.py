"""HTTP CONNECT: what is asked, how each refusal reads, and answers cut anywhere."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spicebridge.errors import ConnectError
from spicebridge.transport.address import TcpAddress
from spicebridge.transport.http_connect import ask_http
from spicebridge.transport.proxy_address import ProxyAddress
from tests.transport.fake_proxy import OK, VM, SaidWire, cut, finish

PROXY = ProxyAddress("http", "proxy.example", 3128)
WITH_LOGIN = ProxyAddress("http", "proxy.example", 3128, "me", "hunter2")
TOKEN = base64.b64encode(b"me:hunter2")
TICKET = "pvespiceproxy:5f3a0000:100:node:5900::" + 40 * "a"


def asked(
    destination: TcpAddress = VM, proxy: ProxyAddress = PROXY
) -> tuple[bytes, dict[bytes, bytes]]:
    """The first line that a proxy gets, and the headers."""
    wire = SaidWire([OK])
    finish(ask_http(wire, proxy, destination))
    head, _, rest = wire.written.partition(b"\r\n\r\n")
    assert not rest
    first, *lines = head.split(b"\r\n")
    return first, dict(line.split(b": ", 1) for line in lines)


def refusal(
    answer: bytes, proxy: ProxyAddress = PROXY, destination: TcpAddress = VM
) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        finish(ask_http(SaidWire([answer]), proxy, destination))
    return caught.value


# What is asked


@pytest.mark.parametrize(
    ("host", "authority"),
    [
        ("vm.example", b"vm.example:5900"),
        ("192.0.2.1", b"192.0.2.1:5900"),
        ("2001:db8::1", b"[2001:db8::1]:5900"),
        (TICKET, TICKET.encode() + b":5900"),  # as Proxmox' spiceproxy wants its tickets
    ],
)
def test_the_server_is_named_in_the_first_line_and_as_host(host: str, authority: bytes) -> None:
    first, headers = asked(TcpAddress(host, 5900))
    assert first == b"CONNECT " + authority + b" HTTP/1.1"
    assert headers == {b"Host": authority, b"User-Agent": b"spicebridge"}


def test_a_login_is_sent_in_utf_8() -> None:
    _, headers = asked(proxy=ProxyAddress("http", "p", 1, "jürgen", "gehe:im"))
    assert headers[b"Proxy-Authorization"] == b"Basic " + base64.b64encode(
        "jürgen:gehe:im".encode()
    )


# Refusals


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (b"403 Forbidden", "its rules do not allow this server or this port"),
        (b"405 Method Not Allowed", "is that an HTTP proxy? it does not take CONNECT"),
        (b"500 Unable to connect", "the proxy could not reach the server"),
        (b"502 Bad Gateway", "the proxy could not reach the server"),
        (b"503 Service Unavailable", "the proxy could not reach the server"),
        (b"504 Gateway Timeout", "the proxy could not reach the server"),
        (b"302 Found", ""),
    ],
)
def test_a_refusal_is_quoted_with_what_to_do(status: bytes, hint: str) -> None:
    error = refusal(b"HTTP/1.0 " + status + b"\r\nContent-Length: 9\r\n\r\n<h1>Ouch!")
    assert error.problem == (
        "proxy http://proxy.example:3128 refused CONNECT to vm.example:5900: " + status.decode()
    )
    assert error.hint.startswith(hint)
    assert bool(error.hint) == bool(hint)


def test_a_proxy_that_wants_a_login_is_told_where_to_give_it() -> None:
    error = refusal(
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n\r\n"
    )
    assert str(error) == (
        "proxy http://proxy.example:3128 refused CONNECT to vm.example:5900: 407 Proxy "
        "Authentication Required; give the login in the proxy's URI: "
        "http://USER:PASSWORD@HOST:PORT"
    )


@pytest.mark.parametrize("code", [b"401", b"407"])  # Tinyproxy has 401 for a wrong password
def test_a_wrong_login_is_to_be_checked(code: bytes) -> None:
    error = refusal(b"HTTP/1.1 " + code + b" No\r\n\r\n", WITH_LOGIN)
    assert error.hint == "check the user name and the password in the proxy's URI"


def test_a_login_that_is_not_basic_is_named() -> None:
    error = refusal(
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM x=y\r\n"
        b"Proxy-Authenticate:\r\n\r\n"
    )
    assert error.hint.startswith("it takes logins by Negotiate, NTLM, of which spicebridge knows")


def test_a_ticket_of_proxmox_that_is_too_old_has_to_be_renewed() -> None:
    error = refusal(b"HTTP/1.1 401 invalid ticket\r\n\r\n", destination=TcpAddress(TICKET, 5900))
    assert "401 invalid ticket" in error.problem
    assert error.hint == "a connection file of Proxmox VE is good for 40 seconds: get a new one"


def test_a_reason_is_printable_and_short() -> None:
    error = refusal(b"HTTP/1.1 403 \xe2\x80\xae\x1b[31m\xff " + b"x" * 1000 + b"\r\n\r\n")
    assert r"403 \u202e\x1b[31m\xff xxx" in error.problem
    assert error.problem.endswith("x…")
    assert len(error.problem) < 200


# Answers that are none


@pytest.mark.parametrize(
    ("answer", "quoted"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "answered CONNECT with 'SSH-2.0-OpenSSH_9.2'"),
        (b"\x15\x03\x01\0\2\2\x46", r"answered CONNECT with '\x15\x03\x01\x00\x02\x02F'"),
        (b"\r\n\r\n", "answered CONNECT with ''"),
        (b"HTTP/1.1 no\r\n\r\n", "answered CONNECT in broken HTTP, from 'HTTP/1.1 no' on"),
        (OK[:-2] + b"a b\r\n\r\n", "in broken HTTP, from 'HTTP/1.1 200 Connection established' on"),
        (b"HTTP/1.1 401 invalid", "closed the connection after 'HTTP/1.1 401 invalid'"),
        (OK[:-1], "closed the connection after 'HTTP/1.1 200 Connection established'"),
        (b"HTTP/1.1 200 " + bytes(1 << 15), "answered CONNECT with more than 16 KiB of head"),
        (b"HTTP/1.1 100 Go on\r\n\r\n" * 4000, "answered CONNECT with more than 16 KiB of head"),
    ],
)
def test_what_is_no_answer_is_quoted(answer: bytes, quoted: str) -> None:
    error = refusal(answer)
    assert error.problem.startswith("proxy http://proxy.example:3128 ")
    assert error.problem.endswith(quoted)
    assert error.hint == "is that an HTTP proxy, and does it want TLS (https://)?"


def test_a_proxy_that_has_tls_is_not_asked_whether_it_wants_it() -> None:
    proxy = ProxyAddress("https", "proxy.example", 3129)
    assert refusal(b"SSH-2.0-x\r\n", proxy).hint == "is that an HTTP proxy?"


def test_a_socks_proxy_is_known_by_its_answer() -> None:
    assert refusal(b"\5\xff").hint == "it is a SOCKS5 proxy: write socks5://"


def test_a_provisional_answer_is_passed_over() -> None:
    wire = SaidWire([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello"])
    finish(ask_http(wire, PROXY, VM))
    assert wire.unread == b"hello"


def test_a_proxy_that_says_nothing_at_all_is_the_callers_to_tell() -> None:
    with pytest.raises(EOFError):
        finish(ask_http(SaidWire([]), PROXY, VM))


def test_a_connection_that_breaks_behind_what_is_no_answer_still_has_it_quoted() -> None:
    class Breaking(SaidWire):
        def read_nowait(self, buffer: memoryview) -> int | None:
            if not self._pieces:
                raise ConnectionResetError
            return super().read_nowait(buffer)

    with pytest.raises(ConnectError, match="answered CONNECT with '!'"):
        finish(ask_http(Breaking([b"!"]), PROXY, VM))
    with pytest.raises(ConnectError, match="closed the connection after 'HT'"):
        finish(ask_http(Breaking([b"HT"]), PROXY, VM))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 not Basic " + TOKEN + b"\r\n\r\n",
        b"HTTP/1.1 407 not " + TOKEN + b"\r\nbroken\r\n\r\n",
        b"HTTP/1.1 407 not " + TOKEN,
        b"Proxy-Authorization: Basic " + TOKEN,
        b"\r\nProxy-Authorization: Basic " + TOKEN,
    ],
)
def test_a_login_is_not_repeated_though_the_proxy_does(answer: bytes) -> None:
    error = refusal(answer, WITH_LOGIN)
    assert "***" in str(error)
    assert TOKEN.decode() not in str(error)


def test_an_echo_is_quoted_without_the_login() -> None:
    class Echo(SaidWire):
        def write_nowait(self, buffers: object) -> int:
            count = super().write_nowait(buffers)  # type: ignore[arg-type]
            self._pieces.append(self.written)
            return count

    with pytest.raises(ConnectError) as caught:
        finish(ask_http(Echo([]), WITH_LOGIN, VM))
    assert "answered CONNECT with 'CONNECT vm.example:5900 HTTP/1.1'" in str(caught.value)


# Cut anywhere

cuts = st.lists(st.integers(0, 1000), max_size=8)
headers = st.lists(
    st.tuples(st.from_regex("[A-Za-z-]{1,12}", fullmatch=True), st.text("abc 1é", max_size=20)),
    max_size=5,
).map(lambda pairs: "".join(f"X-{name}: {value.strip()}\r\n" for name, value in pairs).encode())


@given(
    status=st.integers(200, 299),
    reason=st.sampled_from([b"", b" ", b" OK", b" Connection established"]),
    headers=headers,
    tail=st.binary(max_size=40),
    places=cuts,
)
@example(200, b" OK", b"Content-Length: 5\r\n", b"hello", [])
@example(200, b" OK", b"Transfer-Encoding: chunked\r\nConnection: close\r\n", b"hello", [])
def test_a_granted_tunnel_begins_right_behind_the_head_however_it_is_cut(
    status: int, reason: bytes, headers: bytes, tail: bytes, places: list[int]
) -> None:
    head = b"HTTP/1.1 %d%s\r\n%s\r\n" % (status, reason, headers)
    wire = SaidWire(cut(head + tail, places))
    finish(ask_http(wire, PROXY, VM))
    assert wire.unread == tail


garbage = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(b"HTTP/1.1 ".__add__),
    st.binary(max_size=300).map(b"HTTP/1.1 407 ".__add__),
    st.binary(max_size=300).map(OK[:-2].__add__),
)


@settings(max_examples=300)
@given(answer=garbage, places=cuts)
def test_garbage_ends_in_one_printable_line_and_never_a_traceback(
    answer: bytes, places: list[int]
) -> None:
    line = ""
    try:
        finish(ask_http(SaidWire(cut(answer, places)), WITH_LOGIN, VM))
    except ConnectError as error:
        line = str(error)
    except EOFError:
        line = "nothing"
    assert line.isprintable()
    assert len(line) < 350
    assert "hunter2" not in line
    assert line or answer.startswith(b"HTTP/1.1 2")
    assert (line == "nothing") == (answer == b"")
