"""The grammar of ``--custom-channel`` where a channel carries many streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge import (
    ConnectingEndpoint,
    Endpoint,
    Limits,
    ListeningEndpoint,
    ProcessEndpoint,
    ShareEndpoint,
    UsageError,
)
from spicebridge.cli.spec import parse_custom_channel, share_channel

DEFAULTS = Limits(buffer=1024 * 1024, stall=30.0, max_streams=1024)

# On or off


@pytest.mark.parametrize(
    ("text", "demux"),
    {
        "channelid=webdav": True,
        "channelid=webdav,instance=1": True,
        "channelid=webdav,demux=on": True,
        "channelid=webdav,demux=off": False,
        "channelid=128": False,
        "channelid=128,demux=on": True,
        "channelid=port": False,
        "port=p": False,
        "port=p,demux=on": True,
        "channelid=usbredir": False,
        "channelid=smartcard,demux=on": True,
    }.items(),
)
def test_webdav_alone_is_taken_apart_unless_it_is_asked_for(text: str, demux: bool) -> None:
    for serving in (False, True):
        spec = parse_custom_channel(f"unixsocket=/tmp/s,{text}", serving=serving)
        assert spec.demux == (DEFAULTS if demux else None)


@pytest.mark.parametrize("channel", ["channelid=webdav", "channelid=128", "port=p"])
def test_share_takes_every_channel_apart(channel: str) -> None:
    assert parse_custom_channel(f"share=/srv,{channel}").demux == DEFAULTS


@pytest.mark.parametrize(
    ("text", "kind"),
    {
        "unixsocket=/tmp/s": ConnectingEndpoint,
        "unixsocket=/tmp/s,mode=connect": ConnectingEndpoint,
        "unixsocket=/tmp/s,mode=listen": ListeningEndpoint,
        "tcp=localhost:80": ConnectingEndpoint,
        "tcp=localhost:80,mode=connect": ConnectingEndpoint,
        "tcp=localhost:80,mode=listen": ListeningEndpoint,
        "exec=cat": ProcessEndpoint,
        "share=/srv": ShareEndpoint,
    }.items(),
)
def test_a_stream_connects_unless_mode_listen_is_asked_for(text: str, kind: type[Endpoint]) -> None:
    for channel in ("channelid=webdav", "channelid=128,demux=on"):
        assert type(parse_custom_channel(f"{text},{channel}").endpoint) is kind


@pytest.mark.parametrize("end", ["unixsocket=/tmp/s", "tcp=localhost:80"])
def test_without_streams_the_default_is_to_listen(end: str) -> None:
    for channel in ("channelid=webdav,demux=off", "channelid=128"):
        for serving in (False, True):
            spec = parse_custom_channel(f"{end},{channel}", serving=serving)
            assert type(spec.endpoint) is ListeningEndpoint


# serve


@pytest.mark.parametrize("end", ["unixsocket=/tmp/s", "tcp=localhost:80"])
def test_serve_listens_for_connections_that_become_streams(end: str) -> None:
    for mode in ("", ",mode=listen"):
        spec = parse_custom_channel(f"{end}{mode},channelid=webdav", serving=True)
        assert type(spec.endpoint) is ListeningEndpoint
        assert spec.demux == DEFAULTS


@pytest.mark.parametrize(
    "text",
    [
        "unixsocket=/tmp/s,mode=connect,channelid=webdav",
        "tcp=localhost:80,mode=connect,channelid=128,demux=on",
        "exec=cat,channelid=webdav",
        "share=/srv,channelid=webdav",
    ],
)
def test_serve_makes_streams_of_nothing_else(text: str) -> None:
    with pytest.raises(UsageError, match=r"listening socket; use unixsocket or tcp"):
        parse_custom_channel(text, serving=True)
    parse_custom_channel(text)


def test_serve_with_demux_off_takes_every_end() -> None:
    for end in ("exec=cat", "unixsocket=/tmp/s,mode=connect", "stdio", "pty"):
        assert parse_custom_channel(f"{end},channelid=webdav,demux=off", serving=True).demux is None


# Limits


@pytest.mark.parametrize(
    ("text", "limits"),
    {
        "buffer=1": Limits(buffer=1),
        "buffer=65536": Limits(buffer=65536),
        "buffer=64K": Limits(buffer=65536),
        "buffer=2M": Limits(buffer=2 * 1024 * 1024),
        "buffer=1G": Limits(buffer=2**30),
        "stall=0": Limits(stall=0.0),
        "stall=0.5": Limits(stall=0.5),
        "stall=3600": Limits(stall=3600.0),
        "max-streams=1": Limits(max_streams=1),
        "max-streams=65536": Limits(max_streams=65536),
        "buffer=4K,stall=1,max-streams=2": Limits(4096, 1.0, 2),
    }.items(),
)
def test_what_is_said_of_limits_is_taken(text: str, limits: Limits) -> None:
    for serving in (False, True):
        spec = parse_custom_channel(f"unixsocket=/tmp/s,channelid=webdav,{text}", serving=serving)
        assert spec.demux == limits


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1k", "1KB", "1.5M", "M", " 1", "1 ", "0x10", "2G", "1025M", "\u0661", "9" * 5000],
)
def test_a_buffer_that_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no size from 1 byte to 1G; write e.g. buffer=1M"):
        parse_custom_channel(f"unixsocket=/tmp/s,channelid=webdav,buffer={text}")


@pytest.mark.parametrize("text", ["-1", "-0.1", "nan", "inf", "-inf", "soon", "1s"])
def test_a_stall_that_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no number of seconds; write e.g. stall=30$"):
        parse_custom_channel(f"unixsocket=/tmp/s,channelid=webdav,stall={text}")


@pytest.mark.parametrize("text", ["0", "-1", "65537", "1K", "many", "1.0", "9" * 5000])
def test_a_number_of_streams_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number from 1 to 65536"):
        parse_custom_channel(f"unixsocket=/tmp/s,channelid=webdav,max-streams={text}")


@given(st.integers(-10, 2**31), st.sampled_from(["", "K", "M", "G"]))
def test_a_buffer_is_a_size_up_to_a_gibibyte(number: int, unit: str) -> None:
    wanted = number * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]
    try:
        spec = parse_custom_channel(f"exec=cat,port=p,demux=on,buffer={number}{unit}")
    except UsageError:
        assert not 1 <= wanted <= 2**30
    else:
        assert spec.demux == Limits(buffer=wanted)


# What does not go together


@pytest.mark.parametrize("key", ["buffer=1M", "stall=1", "max-streams=1"])
@pytest.mark.parametrize("channel", ["channelid=128", "channelid=webdav,demux=off", "port=p"])
def test_limits_are_for_streams(key: str, channel: str) -> None:
    name = key.partition("=")[0]
    with pytest.raises(UsageError, match=f"{name}= is for streams; add demux=on"):
        parse_custom_channel(f"unixsocket=/tmp/s,{channel},{key}")


@pytest.mark.parametrize("end", ["stdio", "pipe=/tmp/p", "pty", "fd=5"])
def test_an_end_that_is_one_application_has_no_streams(end: str) -> None:
    name = end.partition("=")[0]
    for serving in (False, True):
        with pytest.raises(UsageError, match=f"{name} is one application.*or add demux=off"):
            parse_custom_channel(f"{end},channelid=webdav", serving=serving)


@pytest.mark.parametrize("key", ["attach=always", "attach=demand", "on-close=keep", "on-close=eof"])
def test_what_is_for_raw_bytes_does_not_go_with_streams(key: str) -> None:
    name = key.partition("=")[0]
    with pytest.raises(UsageError, match=f"{name}= does not go with demux=on: .*; leave {name}="):
        parse_custom_channel(f"unixsocket=/tmp/s,channelid=webdav,{key}")


def test_a_share_is_never_raw() -> None:
    with pytest.raises(UsageError, match="share= serves streams; leave demux=off out"):
        parse_custom_channel("share=/srv,channelid=webdav,demux=off")


@pytest.mark.parametrize("end", ["unixsocket=/tmp/s", "tcp=:80", "exec=cat"])
def test_readonly_is_for_share(end: str) -> None:
    with pytest.raises(UsageError, match=r"readonly= does not go with .*; it is for share"):
        parse_custom_channel(f"{end},channelid=webdav,readonly=on")


def test_a_mode_of_creation_is_for_what_is_created() -> None:
    parse_custom_channel("unixsocket=/tmp/s,channelid=webdav,mode=listen,perm=660")
    with pytest.raises(UsageError, match="perm= does not go with mode=connect"):
        parse_custom_channel("unixsocket=/tmp/s,channelid=webdav,perm=660")


# --share


@pytest.mark.parametrize(
    "folder", ["/srv", "a,b", ",", "x,readonly=on", "a b", "=", ".", "\udcff", "/srv/,,/"]
)
def test_the_short_form_means_this_folder_whatever_its_name_is(folder: str) -> None:
    spec = parse_custom_channel(share_channel(folder))
    assert isinstance(spec.endpoint, ShareEndpoint)
    assert spec.endpoint.name == f"share={folder}"
    assert (spec.name, spec.demux) == ("channelid=webdav", DEFAULTS)


def test_a_share_is_written_to_unless_it_is_readonly() -> None:
    for key, readonly in {"": False, ",readonly=off": False, ",readonly=on": True}.items():
        endpoint = parse_custom_channel(f"share=/srv,channelid=webdav{key}").endpoint
        assert isinstance(endpoint, ShareEndpoint)
        assert endpoint._readonly is readonly
