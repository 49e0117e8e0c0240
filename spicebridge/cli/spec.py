"""The grammar of ``--custom-channel``: ``key=value,key=value…``, as QEMU writes options.

A literal comma is ``,,``. The table `KEYS` is what the man page and the completions are held
against.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, cast

from spicebridge import (
    MAX_CHANNEL_TYPE,
    USER_DEFINED_START,
    BridgeSpec,
    ChannelType,
    ChannelWanted,
    ConnectingEndpoint,
    Endpoint,
    Limits,
    ListeningEndpoint,
    StdioEndpoint,
    UnixAddress,
    UsageError,
    parse_host_port,
)
from spicebridge.cli.descriptors import find_given

KEYS: Final[Mapping[str, str]] = {
    "channelid": "channel type: 128 to 255, or webdav, usbredir, smartcard, port",
    "instance": "channel id within the type; the lowest offered one by default",
    "port": "a port by its name; * ? [] match exactly one",
    "unixsocket": "local end: a Unix socket at this path",
    "tcp": "local end: a TCP port, HOST:PORT",
    "pipe": "local end: the FIFOs PATH.in and PATH.out",
    "stdio": "local end: standard input and output",
    "exec": "local end: a program and its arguments",
    "pty": "local end: a pseudo-terminal, with a link to it at this path",
    "fd": "local end: a descriptor, open both ways or a socket that listens; or its systemd name",
    "share": "local end: this folder, over WebDAV; implies demux=on",
    "mode": "listen or connect, for unixsocket, tcp and fd; connect is the default with demux=on",
    "demux": "on: an application for each stream, the default for webdav; off: raw bytes",
    "attach": "demand (default): link while an application is there; always: link at once",
    "perm": "mode of a created socket or FIFO, octal, 0600 by default",
    "on-close": "when the guest closes the port: eof (default) for the application, or keep it",
    "linger": "seconds of silence after the application's end of file before it ends",
    "buffer": "demux: bytes held for each stream whose application is slow, 1M by default",
    "stall": "demux: seconds that a full stream may take nothing before it is ended, 30 by default",
    "max-streams": "demux: streams at once, 1024 by default",
    "readonly": "share: on to refuse writing, off (default)",
}
"""Every key and what it means, in the order of the man page."""

ENDS: Final = ("unixsocket", "tcp", "pipe", "stdio", "exec", "pty", "fd", "share")
"""The keys of local ends, of which a specification has exactly one."""

BARE: Final = frozenset({"stdio", "pty"})
"""Keys that may stand without a value."""

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "channelid": ("port", "webdav", "usbredir", "smartcard"),
    "mode": ("listen", "connect"),
    "demux": ("on", "off"),
    "attach": ("demand", "always"),
    "on-close": ("eof", "keep"),
    "readonly": ("off", "on"),
}
"""Keys with named values, the default first; channelid takes numbers beside them."""

_ONLY_WITH: Final[Mapping[str, tuple[str, ...]]] = {
    "mode": ("unixsocket", "tcp", "fd"),
    "perm": ("unixsocket", "pipe"),
    "linger": ("stdio", "unixsocket", "tcp", "fd"),
    "readonly": ("share",),
}

_LISTENING: Final = ("unixsocket", "tcp", "fd")
_DEMUX_ENDS: Final = ("unixsocket", "tcp", "exec", "share")
_DEMUX_ONLY: Final = ("buffer", "stall", "max-streams")
_RAW_ONLY: Final[Mapping[str, str]] = {
    "attach": "the channel is linked at once there",
    "on-close": "every stream ends there when the guest closes the port",
}

_MAX_INSTANCE: Final = 255  # one byte in the link message
_MAX_PERM: Final = 0o777
_MAX_FD: Final = 2**31 - 1
_MAX_BUFFER: Final = 2**30
_MAX_STREAMS: Final = 65536
_SIZES: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_custom_channel(text: str, *, serving: bool = False) -> BridgeSpec:
    """Reads one ``--custom-channel``. Nothing is opened yet.

    Args:
        text: it.
        serving: whether it is one of ``spicebridge serve``, where local programs play the guest.

    Raises:
        UsageError: saying what is wrong, with the nearest known key where one is not known.
    """
    values = _split(text)
    ends = [key for key in ENDS if key in values]
    if not ends:
        raise UsageError(
            f"--custom-channel {text!r} has no local end", f"add one of {', '.join(ENDS)}"
        )
    if len(ends) > 1:
        raise UsageError(
            f"--custom-channel {text!r} has {len(ends)} local ends ({', '.join(ends)})",
            "keep one of them",
        )
    for key, allowed in _ONLY_WITH.items():
        if key in values and ends[0] not in allowed:
            raise UsageError(f"{key}= does not go with {ends[0]}", f"it is for {_or(allowed)}")
    if ends[0] == "fd":
        values.setdefault("mode", _mode_of(_descriptor(values["fd"])))
    channel = _channel(values)
    demux = _demux(values, ends[0], channel, serving=serving)
    connects = demux is not None and not serving
    return BridgeSpec(
        name=_name(values),
        channel=channel,
        endpoint=_endpoint(ends[0], values, "connect" if connects else "listen"),
        attach=cast("Literal['demand', 'always']", _choice(values, "attach")),
        on_close=cast("Literal['eof', 'keep']", _choice(values, "on-close")),
        demux=demux,
    )


def share_channel(folder: str) -> str:
    """The ``--custom-channel`` that ``--share FOLDER`` is short for."""
    return f"channelid=webdav,share={folder.replace(',', ',,')}"


def _or(words: tuple[str, ...]) -> str:
    return " or ".join(words)


def _split(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    # a doubled comma is a comma of a value; no key or value has a NUL, an argument cannot
    for item in text.replace(",,", "\0").split(","):
        key, equals, value = item.replace("\0", ",").partition("=")
        if not item:
            raise UsageError(
                f"--custom-channel {text!r} has an empty part", "a comma is one too many"
            )
        if key not in KEYS:
            from difflib import get_close_matches  # here, as no other line needs it

            near = get_close_matches(key, KEYS, n=1, cutoff=0)
            raise UsageError(f"--custom-channel: unknown key {key!r}", f"did you mean {near[0]}?")
        if key in values:
            raise UsageError(f"--custom-channel: {key}= is given twice", "keep one of them")
        if not value and (equals or key not in BARE):
            raise UsageError(f"--custom-channel: {key}= has no value", f"write {key}=VALUE")
        if value and key == "stdio":
            raise UsageError("--custom-channel: stdio takes no value", "write stdio alone")
        values[key] = value
    return values


def _demux(
    values: Mapping[str, str], end: str, channel: ChannelWanted, *, serving: bool
) -> Limits | None:
    """The limits of the streams; None for raw bytes."""
    default = "on" if channel.type == ChannelType.WEBDAV or end == "share" else "off"
    if _choice(values, "demux", default) == "off":
        for key in _DEMUX_ONLY:
            if key in values:
                raise UsageError(f"{key}= is for streams", "add demux=on to take them apart")
        if end == "share":
            raise UsageError("share= serves streams", "leave demux=off out")
        return None
    if end not in _DEMUX_ENDS and not (end == "fd" and _choice(values, "mode") == "listen"):
        raise UsageError(
            f"{end} is one application, and demux=on gives each stream its own",
            f"use {_or(_DEMUX_ENDS)}, or add demux=off to have the framed bytes",
        )
    for key, reason in _RAW_ONLY.items():
        if key in values:
            raise UsageError(f"{key}= does not go with demux=on: {reason}", f"leave {key}= out")
    if serving and (end not in _LISTENING or values.get("mode") == "connect"):
        raise UsageError(
            "serve with demux=on makes streams of the connections to a listening socket",
            "use unixsocket or tcp with mode=listen, which is the default there",
        )
    return Limits(
        buffer=_size(values, "buffer", Limits.buffer, _MAX_BUFFER),
        stall=_seconds(values, "stall", Limits.stall),
        max_streams=_number("max-streams", values["max-streams"], _MAX_STREAMS, minimum=1)
        if "max-streams" in values
        else Limits.max_streams,
    )


def _choice(values: Mapping[str, str], key: str, default: str | None = None) -> str:
    value = values.get(key, default or CHOICES[key][0])
    if value not in CHOICES[key]:
        raise UsageError(f"{key}={value} is not known", f"write {_or(CHOICES[key])}")
    return value


def socket_mode(text: str) -> int:
    """The mode of a socket, in octal.

    Raises:
        UsageError: it is none.
    """
    return _number("perm", text, _MAX_PERM, base=8)


def _number(key: str, text: str, maximum: int, base: int = 10, minimum: int = 0) -> int:
    what, digits = ("an octal number", "[0-7]{1,9}") if base == 8 else ("a number", "[0-9]{1,10}")
    number = int(text, base) if re.fullmatch(digits, text) else -1
    if not minimum <= number <= maximum:
        limit = f"{maximum:04o}" if base == 8 else str(maximum)
        raise UsageError(f"{key}={text} is not {what} from {minimum} to {limit}")
    return number


def _size(values: Mapping[str, str], key: str, default: int, maximum: int) -> int:
    """Bytes, with QEMU's suffixes K, M and G."""
    text = values.get(key, str(default))
    match = re.fullmatch("([0-9]{1,10})([KMG]?)", text)
    size = int(match[1]) * _SIZES[match[2]] if match else 0
    if not 1 <= size <= maximum:
        raise UsageError(f"{key}={text} is no size from 1 byte to 1G", f"write e.g. {key}=1M")
    return size


def _seconds(values: Mapping[str, str], key: str, default: float) -> float:
    text = values.get(key, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{key}={text} is no number of seconds", f"write e.g. {key}={default:g}")
    return seconds


def _channel(values: Mapping[str, str]) -> ChannelWanted:
    port, channelid = values.get("port"), values.get("channelid")
    instance = (
        _number("instance", values["instance"], _MAX_INSTANCE) if "instance" in values else None
    )
    if port is not None:
        if channelid not in {None, "port"}:
            raise UsageError("port= and channelid= name two channels", "keep one of them")
        if instance is not None:
            raise UsageError("port= and instance= name two channels", "keep one of them")
        return ChannelWanted(ChannelType.PORT, port=port)
    if channelid is None:
        raise UsageError(
            "--custom-channel names no channel", "add channelid=128, or port=NAME for a port"
        )
    return ChannelWanted(_channel_type(channelid), instance)


def _channel_type(text: str) -> int:
    if text in CHOICES["channelid"]:
        return ChannelType[text.upper()]
    number = int(text) if re.fullmatch("[0-9]{1,3}", text) else -1
    if USER_DEFINED_START <= number <= MAX_CHANNEL_TYPE:
        return number
    hint = f"user-defined types are {USER_DEFINED_START} to {MAX_CHANNEL_TYPE}, others are "
    raise UsageError(f"channelid={text} is no channel type", hint + _or(CHOICES["channelid"]))


def _name(values: Mapping[str, str]) -> str:
    if "port" in values:
        return f"port={values['port']}"
    instance = f",instance={values['instance']}" if "instance" in values else ""
    return f"channelid={values['channelid']}{instance}"


def _descriptor(text: str) -> int:
    return _number("fd", text, _MAX_FD) if re.fullmatch("[0-9]+", text) else find_given(text)


def _mode_of(fd: int) -> str:
    from spicebridge import is_listening

    return "listen" if is_listening(fd) else "connect"


def _endpoint(end: str, values: Mapping[str, str], mode: str) -> Endpoint:
    """The local end.

    Args:
        end: its key.
        values: all of them.
        mode: whether a socket listens or connects where mode= is not given.
    """
    value = values[end]
    name = f"{end}={value}"
    perm = socket_mode(values.get("perm", "600"))
    linger = _seconds(values, "linger", 0.5) if "linger" in values else None
    # of the rarer ones each is imported where it is asked for: all would cost the start some 10 ms
    match end:
        case "unixsocket" | "tcp":
            address = UnixAddress(value) if end == "unixsocket" else parse_host_port(value)
            if _choice(values, "mode", mode) == "listen":
                return ListeningEndpoint(name, address, perm=perm, linger=linger)
            if "perm" in values:
                raise UsageError("perm= does not go with mode=connect", "nothing is created there")
            return ConnectingEndpoint(name, address, linger=linger)
        case "pipe":
            from spicebridge import PipeEndpoint

            return PipeEndpoint(value, perm=perm)
        case "stdio":
            return StdioEndpoint() if linger is None else StdioEndpoint(linger=linger)
        case "exec":
            from spicebridge import ProcessEndpoint

            return ProcessEndpoint(value)
        case "pty":
            from spicebridge import PtyEndpoint

            return PtyEndpoint(value)
        case "share":
            from spicebridge import ShareEndpoint

            return ShareEndpoint(value, readonly=_choice(values, "readonly") == "on")
        case _:
            from spicebridge import InheritedEndpoint, InheritedListener

            fd = _descriptor(value)
            if _choice(values, "mode") == "listen":
                return InheritedListener(fd, name, linger=linger)
            return InheritedEndpoint(fd, name, linger=linger)
