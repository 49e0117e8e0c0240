"""URIs of SPICE servers: what remote-viewer takes is taken, and nothing else."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import UsageError
from spicebridge.transport.address import TcpAddress, UnixAddress, WebAddress
from spicebridge.transport.target import Target
from spicebridge.transport.uri import DEFAULT_URI, parse_uri
from tests.transport.attempt import attempt


def tcp(host: str, port: int | None, tls_port: int | None = None, username: str = "") -> Target:
    """A server on TCP."""
    return Target(
        TcpAddress(host, port) if port else None,
        TcpAddress(host, tls_port) if tls_port else None,
        username=username,
    )


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        (DEFAULT_URI, tcp("127.0.0.1", 5900)),
        ("spice://vm.example:5900", tcp("vm.example", 5900)),
        ("spice://VM.example:5900/", tcp("vm.example", 5900)),
        (" spice://vm:5900", tcp("vm", 5900)),
        ("SPICE://vm:1", tcp("vm", 1)),
        ("spice://vm:65535", tcp("vm", 65535)),
        ("spice://vm:005900", tcp("vm", 5900)),
        ("spice://v%6D:5900", tcp("vm", 5900)),
        ("spice://m%C3%BCller:5900", tcp("müller", 5900)),
        ("spice://vm?port=5900", tcp("vm", 5900)),
        ("spice://vm/?port=5900", tcp("vm", 5900)),
        ("spice://vm:?port=5900", tcp("vm", 5900)),
        ("spice://vm?port=%35900", tcp("vm", 5900)),
        ("spice://vm?tls-port=5901", tcp("vm", None, 5901)),
        ("spice://vm?port=5900&tls-port=5901", tcp("vm", 5900, 5901)),
        ("spice://vm?tls-port=5901;port=5900", tcp("vm", 5900, 5901)),
        ("spice://vm?port=5900&", tcp("vm", 5900)),
        ("spice://vm:5900?", tcp("vm", 5900)),
        ("spice+tls://vm:5901", tcp("vm", None, 5901)),
        ("Spice+TLS://vm:5901/", tcp("vm", None, 5901)),
        ("spice://me@vm:5900", tcp("vm", 5900, username="me")),
        ("spice+tls://me@vm:5901", tcp("vm", None, 5901, "me")),
        ("spice://me@EXAMPLE.ORG@vm:5900", tcp("vm", 5900, username="me@EXAMPLE.ORG")),
        ("spice://m%65%40a%3Ab@vm:5900", tcp("vm", 5900, username="me@a:b")),
    ],
)
def test_a_uri_names_a_tcp_port_or_two(uri: str, target: Target) -> None:
    assert parse_uri(uri) == target


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        # spice-gtk's tests/session.c, test_session_uri_ipv4_good and test_session_uri_ipv6_good
        ("spice://localhost?port=5900&tls-port=", tcp("localhost", 5900)),
        ("spice://user@localhost?tls-port=&port=5910", tcp("localhost", 5910, username="user")),
        ("spice://localhost?port=&tls-port=5930", tcp("localhost", None, 5930)),
        ("spice://localhost:42", tcp("localhost", 42)),
        ("spice://localhost:42?tls-port=5930", tcp("localhost", 42, 5930)),
        ("spice+tls://hostname:39", tcp("hostname", None, 39)),
        (
            "spice://[2010:836B:4179::836B:4179]?port=5900&tls-port=",
            tcp("2010:836b:4179::836b:4179", 5900),
        ),
        ("spice://user@[::192.9.5.5]?tls-port=&port=5910", tcp("::192.9.5.5", 5910, None, "user")),
        ("spice://[::1]:5900", tcp("::1", 5900)),
        ("spice://[fe80::1%25eth0]:5900", tcp("fe80::1%eth0", 5900)),
        ("spice://[fe80::1%eth0]:5900", tcp("fe80::1%eth0", 5900)),
    ],
)
def test_what_spice_gtk_takes_is_taken(uri: str, target: Target) -> None:
    assert parse_uri(uri) == target


def test_the_password_that_virsh_puts_behind_a_socket_is_taken() -> None:
    """As ``virsh domdisplay --include-password`` has it, whose escapes are ours."""
    target = parse_uri("spice+unix:///run/vm.sock?password=a%26b=c")
    assert target == Target(UnixAddress("/run/vm.sock"), password="a&b=c")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("spice+unix:///run/vm.sock", "/run/vm.sock"),
        ("spice+unix:/run/vm.sock", "/run/vm.sock"),
        ("spice+unix:///tmp/a%20b%2Cc", "/tmp/a b,c"),
        ("spice+unix:///tmp/a;b&c@d:e", "/tmp/a;b&c@d:e"),
        ("spice+unix:///tmp/100%", "/tmp/100%"),
        ("spice+unix:///tmp/%FF", "/tmp/\udcff"),
    ],
)
def test_a_uri_names_a_unix_socket(uri: str, path: str) -> None:
    assert parse_uri(uri) == Target(UnixAddress(path))


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("ws://vm", WebAddress("vm", 80)),
        ("ws://vm:5959/", WebAddress("vm", 5959)),
        ("wss://vm", WebAddress("vm", 443)),
        ("WSS://VM:/console", WebAddress("vm", 443, "/console")),
        ("wss://[::1]:8443/a/b", WebAddress("::1", 8443, "/a/b")),
        ("wss://vm/console?token=a%2Fb&x=1;y", WebAddress("vm", 443, "/console?token=a%2Fb&x=1;y")),
        ("ws://vm?token=a", WebAddress("vm", 80, "/?token=a")),
        ("ws://vm/a b/é", WebAddress("vm", 80, "/a%20b/%C3%A9")),
    ],
)
def test_a_uri_names_a_websocket(uri: str, address: WebAddress) -> None:
    secure = uri.lower().startswith("wss")
    assert parse_uri(uri) == (Target(secure=address) if secure else Target(address))


@pytest.mark.parametrize(
    "uri",
    [
        "spice://me@vm:5900?password=se%26%20cret",
        "spice://me:se%26%20cret@vm:5900",
        "spice://me@vm?password=se%26%20cret;port=5900",
    ],
)
def test_a_password_is_taken_and_warned_of(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    target = parse_uri(uri)
    assert (target.plain, target.username) == (TcpAddress("vm", 5900), "me")
    assert target.password == "se& cret"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "list of processes" in record.getMessage()
    assert "cret" not in record.getMessage()


def test_no_password_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_uri("spice://me:@vm:5900?password=").password == ""
    assert not caplog.records


REFUSED = {
    "": "is no SPICE URI",
    "vm:5900": "is no SPICE URI",
    "127.0.0.1:5900": "is no SPICE URI",
    "http://vm:5900": "is no SPICE URI",
    "scheme://host?port": "is no SPICE URI",
    "spice://": "names no host",
    "spice": "names no host",
    "spice:vm:5900": "names no host",
    "spice://:5900": "names no host",
    "spice://me@:5900": "names no host",
    "spice://?port=5900": "names no host",
    "spice+tls://:1": "names no host",
    "ws:///path": "names no host",
    "spice://vm": "names no port",
    "spice://vm:": "names no port",
    "spice://vm?port=&tls-port=": "names no port",
    "spice+tls://vm": "names no port",
    "spice://vm:0": "has a port of 0",
    "spice://vm?tls-port=0": "has a TLS port of 0",
    "spice://vm:65536": "has a port above 65535",
    "spice://vm:" + "9" * 5000: "has a port above 65535",
    "spice://vm?tls-port=65536": "has a TLS port above 65535",
    "wss://vm:65536/": "has a port above 65535",
    "spice://vm:x": "has a port that is no number",
    "spice://vm:-1": "has a port that is no number",
    "spice://vm:٣": "has a port that is no number",
    "spice://vm:5900 ": "has a port that is no number",
    "spice://vm?tls-port=x": "has a TLS port that is no number",
    "spice://[::1:5900": "has a '[' without its ']'",
    "spice://[ipv6-host:42": "has a '[' without its ']'",
    "spice://[::1]5900": "has more than a port behind its ']'",
    "spice://[vm]:5900": "has no IPv6 address in its brackets",
    "spice://[]:5900": "has no IPv6 address in its brackets",
    "spice://::1:5900": "has too many colons",
    "spice://vm]:5900": "has ']' in its host",
    "spice://a%2Fb:5900": "has '/' in its host",
    "spice://a b:5900": "has ' ' in its host",
    "spice://%FF:5900": "has escapes in its host that are no UTF-8",
    "spice://a%0Ab:5900": "has control characters in its host",
    "spice://[fe80::1%25%0A]:5900": "has control characters in its host",
    "spice://%FF@vm:5900": "has escapes in its user name that are no UTF-8",
    "spice://%0A@vm:5900": "has control characters in its user name",
    "spice://100%@vm:5900": "has a '%' in its user name that begins no escape",
    "spice://vm:5900?password=%x": "has a '%' in its password that begins no escape",
    "spice://vm:5900/path": "has a path",
    "spice://vm:5900#x": "has a '#'",
    "spice+unix:///a#b": "has a '#'",
    "spice://vm?port=1234&port=3456": "names its port twice",
    "spice://vm?tls-port=1234&port=3456&tls-port=5678": "names its tls-port twice",
    "spice://vm:5900?tls-port=1234&port=3456": "names its port twice, behind the host",
    "spice://vm:1?password=a&password=b": "names its password twice",
    "spice://me:a@vm:1?password=b": "has two passwords",
    "spice://vm:5900?unknown=value": "has an unknown key behind '?'",
    "spice://vm:5900?prot=1": "has an unknown key behind '?'",
    "spice://vm:5900?tlsport=": "has an unknown key behind '?'",
    "spice://vm:5900?PORT=1": "has an unknown key behind '?'",
    "spice://vm??": "has a part without '=' behind '?'",
    "spice://vm?port": "has a part without '=' behind '?'",
    "spice://vm?&port=1": "has a part without '=' behind '?'",
    "spice://vm?port=1&&tls-port=2": "has a part without '=' behind '?'",
    "spice+tls://vm:1?port=5900": "has port= behind '?'",
    "spice+tls://vm?tls-port=1234": "has tls-port= behind '?'",
    "spice+unix://": "names no absolute path",
    "spice+unix:relative": "names no absolute path",
    "spice+unix://host/path": "names no absolute path",
    "spice+unix:///a?b": "has a '?' behind its path",
    "ws://me@vm": "has a user name",
    "spice+unix:///tmp/a%00b": "is no SPICE URI: it has control characters",
    "spice://v%00m:5900": "is no SPICE URI: it has control characters",
    "spice://vm\n:5900": "is no SPICE URI: it has control characters",
    "spice://\udcff:5900": "is no SPICE URI: it has control characters",
}


@pytest.mark.parametrize(("uri", "complaint"), REFUSED.items(), ids=lambda text: repr(text)[:40])
def test_a_uri_that_cannot_be_taken_says_why_and_how_to_write_it(uri: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(uri)
    assert complaint in caught.value.problem
    assert caught.value.hint
    assert str(caught.value).isprintable()


def test_an_unknown_key_is_told_the_nearest_known_one() -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri("spice://vm?tlsport=5901")
    assert caught.value.hint == "did you mean tls-port?"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("spice://me:secret@vm", "'spice://vm' names no port"),
        ("spice://me:secret@vm:x", "'spice://vm:x' has"),
        ("spice://vm:1?passwd=secret", "'spice://vm:1...' has"),
        ("spice://vm:1&password=secret", "'spice://vm:1...' has"),
        ("spice://me:sec/secret@vm:1", "'spice://vm:1' has"),
        ("spice://me:sec?secret@vm:1", "'spice://...' has"),
        ("spice://secret#secret@vm:1", "'spice://...' has"),
        ("me:secret@vm:1", "'vm:1' is no SPICE URI"),
        ("http://me:secret@vm", "'http://vm' is no SPICE URI"),
        ("spice://vm:1?password=a&secret", "'spice://vm:1...' has a part without '='"),
        ("spice://vm:1?password=a&secretport=", "'spice://vm:1...' has an unknown key behind"),
        ("spice://vm:1?c2VjcmV0secret=", "'spice://vm:1...' has an unknown key behind"),
        ("spice://vm:1?password=secret%FF", "'spice://vm:1...' has escapes in its password"),
    ],
)
def test_no_secret_of_a_uri_is_repeated(uri: str, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(uri)
    assert caught.value.problem.startswith(shown)
    assert "secret" not in str(caught.value)


WORDS = "spice +tls +unix ws :// ::1 vm 5900 0 port tls-port password %41 %FF %00"
PIECES = st.sampled_from([*WORDS.split(), *":/@?&;=#[]% é"])
URIS = st.builds("".join, st.lists(PIECES, max_size=14)) | st.builds(
    "{}://{}".format,
    st.sampled_from(["spice", "spice+tls", "spice+unix", "ws", "wss"]),
    st.builds("".join, st.lists(PIECES, max_size=10)) | st.text(max_size=20),
)


@given(URIS)
def test_any_text_names_a_server_or_is_refused(uri: str) -> None:
    target = attempt(parse_uri, uri)
    if isinstance(target, UsageError):
        assert str(target).isprintable()
    else:
        assert target.plain or target.secure


@given(
    st.builds("".join, st.lists(PIECES, max_size=8)),
    st.builds("".join, st.lists(PIECES, max_size=8)),
    st.sampled_from(["spice://me:{}SECRET{}@vm:x", "spice://vm:x?password={}SECRET{}"]),
)
def test_a_password_is_not_repeated_whatever_is_in_it(
    before: str, after: str, template: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(template.format(before, after))
    assert "SECRET" not in str(caught.value)


LABELS = st.from_regex(re.compile("[a-z0-9][a-z0-9.-]{0,9}", re.ASCII), fullmatch=True)
PORTS = st.integers(1, 65535)


@given(LABELS, PORTS | st.none(), PORTS | st.none(), st.sampled_from("&;"))
def test_every_host_and_ports_can_be_written(
    host: str, port: int | None, tls_port: int | None, separator: str
) -> None:
    uri = f"spice://{host}?port={port or ''}{separator}tls-port={tls_port or ''}"
    if port or tls_port:
        assert parse_uri(uri) == tcp(host, port, tls_port)
    else:
        with pytest.raises(UsageError, match="names no port"):
            parse_uri(uri)
