"""Addresses as users write them, and as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import UsageError
from spicebridge.transport.address import TcpAddress, UnixAddress, WebAddress, parse_host_port
from tests.transport.attempt import attempt


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("localhost:0", TcpAddress("localhost", 0)),
        (":5900", TcpAddress("127.0.0.1", 5900)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("[::]:1", TcpAddress("::", 1)),
    ],
)
def test_host_and_port(text: str, address: TcpAddress) -> None:
    assert parse_host_port(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        "80",
        "host:65536",
        "host:-1",
        "host:+1",
        "host: 1",
        "host:1x",
        "host:٣",
        "::1:80",
        "[::1]",
        "[::1]:",
        "host:" + "9" * 5000,
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_host_and_port_says_so(text: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        parse_host_port(text)


@given(st.text(st.sampled_from("a1:[].% \0é"), max_size=12) | st.text(max_size=12))
def test_any_text_is_a_host_and_port_or_refused(text: str) -> None:
    address = attempt(parse_host_port, text)
    if isinstance(address, UsageError):
        assert address.hint
    else:
        assert text.endswith(str(address.port))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (TcpAddress("vm", 1), "vm:1"),
        (TcpAddress("::1", 1), "[::1]:1"),
        (TcpAddress("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
        (UnixAddress("/tmp/s"), "unix:/tmp/s"),
        (WebAddress("vm", 80, "/console"), "vm:80/console"),
        (WebAddress("::1", 80), "[::1]:80/"),
    ],
)
def test_addresses_are_shown_as_they_are_written(
    address: TcpAddress | UnixAddress | WebAddress, shown: str
) -> None:
    assert str(address) == shown
    if isinstance(address, TcpAddress):
        assert parse_host_port(shown) == address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (TcpAddress("pvespiceproxy:secret:100:node::secret", 61000), "pvespiceproxy:...:61000"),
        (WebAddress("vm", 80, "/console?token=secret"), "vm:80/console"),
    ],
)
def test_a_ticket_in_an_address_is_not_shown(address: TcpAddress | WebAddress, shown: str) -> None:
    assert str(address) == shown
