"""Addresses as users write them."""

from __future__ import annotations

import pytest

from spicebridge.errors import UsageError
from spicebridge.transport.address import (
    DEFAULT_URI,
    TcpAddress,
    UnixAddress,
    parse_host_port,
    parse_uri,
)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("spice://127.0.0.1:5900", TcpAddress("127.0.0.1", 5900)),
        ("spice://vm.example:5900", TcpAddress("vm.example", 5900)),
        ("spice://VM.example:5900/", TcpAddress("vm.example", 5900)),
        ("SPICE://vm:1", TcpAddress("vm", 1)),
        ("spice://vm:65535", TcpAddress("vm", 65535)),
        ("spice://[::1]:5900", TcpAddress("::1", 5900)),
        ("spice://[fe80::1%25eth0]:5900", TcpAddress("fe80::1%eth0", 5900)),
        ("spice+unix:///run/vm.sock", UnixAddress("/run/vm.sock")),
        ("spice+unix:/run/vm.sock", UnixAddress("/run/vm.sock")),
        ("spice+unix:///tmp/a%20b%2Cc", UnixAddress("/tmp/a b,c")),
        (DEFAULT_URI, TcpAddress("127.0.0.1", 5900)),
    ],
)
def test_a_uri_names_an_address(uri: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_uri(uri) == address


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("", "is no SPICE URI"),
        ("vm:5900", "is no SPICE URI"),
        ("127.0.0.1:5900", "is no SPICE URI"),
        ("http://vm:5900", "is no SPICE URI"),
        ("spice://", "names no host"),
        ("spice://:5900", "names no host"),
        ("spice://vm", "names no port"),
        ("spice://vm:", "names no port"),
        ("spice://vm:0", "names no port"),
        ("spice://vm:65536", "is no SPICE URI"),
        ("spice://vm:x", "is no SPICE URI"),
        ("spice://vm:-1", "is no SPICE URI"),
        ("spice://[::1:5900", "is no SPICE URI"),
        ("spice://::1:5900", "is no SPICE URI"),
        ("spice://me@vm:5900", "more than a host and a port"),
        ("spice://me:secret@vm:5900", "more than a host and a port"),
        ("spice://vm:5900/path", "more than a host and a port"),
        ("spice://vm:5900?password=secret", "'?' and '#' are not understood"),
        ("spice://vm:5900#x", "'?' and '#' are not understood"),
        ("spice+unix://", "names no absolute path"),
        ("spice+unix:relative", "names no absolute path"),
        ("spice+unix://host/path", "names no absolute path"),
        ("spice+unix:///tmp/a%00b", "is no SPICE URI"),
        ("spice://v%00m:5900", "is no SPICE URI"),
    ],
)
def test_a_uri_that_cannot_be_taken_says_why_and_how_to_write_it(uri: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(uri)
    assert complaint in caught.value.problem
    assert "write spice" in caught.value.hint


@pytest.mark.parametrize("uri", ["spice://me:secret@vm:5900", "spice://vm:5900?password=secret"])
def test_no_secret_of_a_uri_is_repeated(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(uri)
    assert "secret" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (TcpAddress("vm", 1), "vm:1"),
        (TcpAddress("::1", 1), "[::1]:1"),
        (UnixAddress("/tmp/s"), "unix:/tmp/s"),
    ],
)
def test_addresses_are_shown_as_they_are_written(
    address: TcpAddress | UnixAddress, shown: str
) -> None:
    assert str(address) == shown
    if isinstance(address, TcpAddress):
        assert parse_host_port(shown) == address
