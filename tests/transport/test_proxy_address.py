"""Proxies as users write them: as spice-gtk takes them, and SOCKS5."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import UsageError
from spicebridge.transport.proxy_address import ProxyAddress, parse_proxy
from tests.transport.attempt import attempt


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        # spice-gtk's tests/uri.c, test_spice_uri_ipv4_good and test_spice_uri_ipv6_good
        ("http://127.0.0.1/", ProxyAddress("http", "127.0.0.1", 3128)),
        ("https://127.0.0.1", ProxyAddress("https", "127.0.0.1", 3129)),
        ("127.0.0.1", ProxyAddress("http", "127.0.0.1", 3128)),
        ("http://user:password@host:80", ProxyAddress("http", "host", 80, "user", "password")),
        ("https://host:42", ProxyAddress("https", "host", 42)),
        (
            "http://user@[1080:0:0:0:8:800:200C:4171]:100",
            ProxyAddress("http", "1080:0:0:0:8:800:200c:4171", 100, "user"),
        ),
        ("https://[1080::8:800:200C:417A]", ProxyAddress("https", "1080::8:800:200c:417a", 3129)),
        ("[3ffe:2a00:100:7031::1]", ProxyAddress("http", "3ffe:2a00:100:7031::1", 3128)),
        # and ours
        ("proxy:8080", ProxyAddress("http", "proxy", 8080)),
        ("HTTP://Proxy//", ProxyAddress("http", "proxy", 3128)),
        ("socks5://proxy", ProxyAddress("socks5", "proxy", 1080)),
        ("socks5h://proxy:9050", ProxyAddress("socks5", "proxy", 9050)),
        ("http://u%40x:p%3A%2F@proxy", ProxyAddress("http", "proxy", 3128, "u@x", "p:/")),
        ("u:p/?#:x@proxy/", ProxyAddress("http", "proxy", 3128, "u", "p/?#:x")),
    ],
)
def test_a_proxy(text: str, proxy: ProxyAddress) -> None:
    assert parse_proxy(text) == proxy


REFUSED = {
    # spice-gtk's tests/uri.c, test_spice_uri_ipv4_bad and test_spice_uri_ipv6_bad
    "http://:80": "names no host",
    "http://": "names no host",
    "http://127.0.0.1:port": "has a port that is no number",
    "http://127.0.0.1:": "names no port behind its last ':'",
    "http://127.0.0.1:-80": "has a port that is no number",
    "http://127.0.0.1:4294967396": "has a port above 65535",
    "http://127.0.0.1:12345678901234": "has a port above 65535",
    "scheme://192.168.1.1:3128": "is of no kind that we know",
    "http://[]:80": "has no IPv6 address in its brackets",
    "http://[::1": "has a '[' without its ']'",
    "http://[::1]1234": "has more than a port behind its ']'",
    "http://[::1]foo/": "has more than a port behind its ']'",
    "http://[::127.0.0.1]:": "names no port behind its last ':'",
    # and ours
    "": "names no host",
    "socks4://proxy": "is of no kind that we know",
    "http://proxy:0": "has a port of 0",
    "http://proxy:80/path": "has more than a host and a port",
    "http://proxy?x": "has more than a host and a port",
    "http://::1:80": "has too many colons",
    "http://proxy\n": "has control characters",
    "http://pro%0Axy": "has control characters in its host",
    "http://u:%0A@proxy": "has control characters in its password",
    "http://u:100%@proxy": "has a '%' in its password that begins no escape",
    "http://%FF@proxy": "has escapes in its user name that are no UTF-8",
}


@pytest.mark.parametrize(("text", "complaint"), REFUSED.items(), ids=repr)
def test_what_is_no_proxy_says_why_and_how_to_write_it(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_proxy(text)
    assert complaint in caught.value.problem
    assert caught.value.hint
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@proxy:x", "proxy 'http://proxy:x' has"),
        ("me:secret@proxy:x", "proxy 'proxy:x' has"),
        ("ftp://me:secret@proxy", "proxy 'proxy' is of no kind"),
        ("http://me:sec?secret@proxy:x", "proxy 'http://...' has"),
        ("http://me:secret%@proxy", "proxy 'http://proxy' has a '%' in its password"),
    ],
)
def test_no_password_is_repeated(text: str, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_proxy(text)
    assert caught.value.problem.startswith(shown)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        (ProxyAddress("http", "proxy", 3128, "me", "secret"), "http://proxy:3128"),
        (ProxyAddress("socks5", "::1", 1080), "socks5://[::1]:1080"),
    ],
)
def test_a_proxy_is_shown_without_its_login(proxy: ProxyAddress, shown: str) -> None:
    assert str(proxy) == shown
    assert "secret" not in repr(proxy)


@given(
    st.text(st.sampled_from("http:/socks5@[]%4é\0 ?#."), max_size=20)
    | st.builds("http://{}".format, st.text(max_size=20))
)
def test_any_text_is_a_proxy_or_refused(text: str) -> None:
    proxy = attempt(parse_proxy, text)
    if isinstance(proxy, UsageError):
        assert str(proxy).isprintable()
    else:
        assert proxy.host
        assert 1 <= proxy.port <= 65535


@given(
    st.sampled_from(["http", "https", "socks5"]),
    st.sampled_from(["proxy", "10.0.0.1", "::1"]),
    st.integers(1, 65535),
    *[st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)] * 2,
)
def test_every_proxy_can_be_written(
    scheme: str, host: str, port: int, username: str, password: str
) -> None:
    proxy = ProxyAddress(scheme, host, port, username, password)
    login = f"{quote(username, safe='')}:{quote(password, safe='')}"
    assert parse_proxy(str(proxy).replace("//", f"//{login}@")) == proxy
