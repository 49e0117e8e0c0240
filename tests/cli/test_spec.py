"""The grammar of ``--custom-channel``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spicebridge import (
    BridgeSpec,
    ChannelType,
    ChannelWanted,
    ConnectingEndpoint,
    Endpoint,
    InheritedEndpoint,
    ListeningEndpoint,
    PipeEndpoint,
    ProcessEndpoint,
    PtyEndpoint,
    ShareEndpoint,
    StdioEndpoint,
    TcpAddress,
    UsageError,
)
from spicebridge.cli.spec import BARE, CHOICES, ENDS, KEYS, parse_custom_channel

KINDS: dict[str, tuple[str, type[Endpoint]]] = {
    "unixsocket": ("unixsocket=/tmp/s", ListeningEndpoint),
    "unixsocket-connect": ("unixsocket=/tmp/s,mode=connect", ConnectingEndpoint),
    "tcp": ("tcp=localhost:5000", ListeningEndpoint),
    "tcp-connect": ("tcp=localhost:5000,mode=connect", ConnectingEndpoint),
    "pipe": ("pipe=/tmp/p", PipeEndpoint),
    "stdio": ("stdio", StdioEndpoint),
    "exec": ("exec=sh -c 'cat'", ProcessEndpoint),
    "pty": ("pty", PtyEndpoint),
    "pty-link": ("pty=/tmp/tty", PtyEndpoint),
    "fd": ("fd=5", InheritedEndpoint),
    "share": ("share=/srv", ShareEndpoint),
}


@pytest.mark.parametrize(("end", "kind"), KINDS.values(), ids=[*KINDS])
def test_each_key_of_a_local_end_makes_its_endpoint(end: str, kind: type[Endpoint]) -> None:
    assert type(parse_custom_channel(f"{end},channelid=128").endpoint) is kind


def test_every_local_end_has_a_case_here() -> None:
    assert {name.partition("-")[0] for name in KINDS} == set(ENDS)


CHANNELS = {
    "channelid=128": (ChannelWanted(128), "channelid=128"),
    "channelid=255": (ChannelWanted(255), "channelid=255"),
    "channelid=128,instance=0": (ChannelWanted(128, 0), "channelid=128,instance=0"),
    "channelid=128,instance=255": (ChannelWanted(128, 255), "channelid=128,instance=255"),
    "channelid=usbredir": (ChannelWanted(ChannelType.USBREDIR), "channelid=usbredir"),
    "channelid=smartcard": (ChannelWanted(ChannelType.SMARTCARD), "channelid=smartcard"),
    "channelid=port,instance=2": (ChannelWanted(10, 2), "channelid=port,instance=2"),
    "channelid=webdav,demux=off": (ChannelWanted(ChannelType.WEBDAV), "channelid=webdav"),
    "port=org.qemu.*": (ChannelWanted(10, port="org.qemu.*"), "port=org.qemu.*"),
    "channelid=port,port=a": (ChannelWanted(10, port="a"), "port=a"),
    "port=a,,b=c": (ChannelWanted(10, port="a,b=c"), "port=a,b=c"),
    "channelid=128,demux=off": (ChannelWanted(128), "channelid=128"),
}


@pytest.mark.parametrize(("text", "channel"), CHANNELS.items())
def test_which_channel_is_meant(text: str, channel: tuple[ChannelWanted, str]) -> None:
    spec = parse_custom_channel(f"stdio,{text}")
    assert (spec.channel, spec.name) == channel


def test_what_is_not_said_has_the_documented_default() -> None:
    spec = parse_custom_channel("unixsocket=/tmp/s,port=p")
    assert (spec.attach, spec.on_close) == ("demand", "eof")


def test_what_is_said_is_taken() -> None:
    spec = parse_custom_channel("attach=always,on-close=keep,port=p,unixsocket=/tmp/s")
    assert (spec.attach, spec.on_close) == ("always", "keep")


@pytest.mark.parametrize(
    "spec", ["tcp=:5000", "tcp=127.0.0.1:5000", "tcp=127.0.0.1:5000,mode=listen"]
)
def test_a_tcp_port_without_a_host_is_on_the_loopback(spec: str) -> None:
    endpoint = parse_custom_channel(f"{spec},port=p").endpoint
    assert isinstance(endpoint, ListeningEndpoint)
    assert endpoint._address == TcpAddress("127.0.0.1", 5000)


def test_nothing_is_opened_when_a_specification_is_read(short_tmp: Path) -> None:
    for end in ("unixsocket", "pipe", "pty"):
        parse_custom_channel(f"{end}={short_tmp}/x,port=p")
    assert not list(short_tmp.iterdir())


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"fd"}))  # one letter is near to nothing
def test_every_key_misspelt_is_named(key: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown key .* did you mean {key}\?"):
        parse_custom_channel(f"{key[:-1]}=x,{key}=y")


@pytest.mark.parametrize("key", sorted(set(KEYS) - BARE))
def test_every_key_but_the_bare_ones_needs_a_value(key: str) -> None:
    for text in (key, f"{key}="):
        with pytest.raises(UsageError, match=f"{key}= has no value"):
            parse_custom_channel(text)


@pytest.mark.parametrize("key", KEYS)
def test_no_key_may_stand_twice(key: str) -> None:
    one = key if key in BARE else f"{key}=1"
    with pytest.raises(UsageError, match=f"{key}= is given twice"):
        parse_custom_channel(f"{one},{one}")


@pytest.mark.parametrize("key", sorted(set(CHOICES) - {"channelid"}))
def test_a_choice_takes_its_values_and_no_other(key: str) -> None:
    end = "share=/srv" if key == "readonly" else "unixsocket=/tmp/s"
    for value in CHOICES[key]:
        parse_custom_channel(f"{end},port=p,{key}={value}")
    for value in ("other", CHOICES[key][0].upper(), CHOICES[key][0] + " "):
        with pytest.raises(UsageError, match=f"{key}={value} is not known"):
            parse_custom_channel(f"{end},port=p,{key}={value}")


def _escape(value: str) -> str:
    return value.replace(",", ",,")


values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(value=values, after=st.booleans())
@example(value=",", after=True)
@example(value=",,", after=True)
@example(value="a,b", after=False)
@example(value="=", after=False)
@example(value="x,channelid=129", after=True)
def test_a_doubled_comma_is_a_comma_of_the_value(value: str, after: bool) -> None:
    parts = [f"port={_escape(value)}", "stdio"]
    spec = parse_custom_channel(",".join(parts if after else reversed(parts)))
    assert spec.channel.port == value


@given(st.integers())
def test_only_the_types_of_users_have_numbers(number: int) -> None:
    try:
        spec = parse_custom_channel(f"stdio,channelid={number}")
    except UsageError:
        assert not 128 <= number <= 255
    else:
        assert spec.channel.type == number


@given(st.integers(-1, 0o7777))
def test_a_mode_is_octal(perm: int) -> None:
    try:
        parse_custom_channel(f"unixsocket=/tmp/s,port=p,perm={perm:o}")
    except UsageError:
        assert not 0 <= perm <= 0o777
    else:
        assert 0 <= perm <= 0o777


parts = st.one_of(
    st.sampled_from(sorted(KEYS)),
    st.builds(
        "{}={}".format,
        st.sampled_from(sorted(KEYS)),
        st.one_of(
            st.sampled_from([word for words in CHOICES.values() for word in words]),
            st.integers(-5, 300).map(str),
            st.floats().map(str),
            st.text(max_size=8),
        ),
    ),
    st.text(max_size=12),
)


@given(st.one_of(st.text(), st.lists(parts, max_size=6).map(",".join)), st.booleans())
def test_any_text_is_a_specification_or_a_usage_error(text: str, serving: bool) -> None:
    try:
        spec = parse_custom_channel(text, serving=serving)
    except UsageError:
        return
    assert isinstance(spec, BridgeSpec)
