"""Options that several commands share, as Typer reads and explains them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spicebridge import DEFAULT_URI, FIRST_DELAY, URI_VARIABLE
from spicebridge.cli.bridging import RECONNECT_MAX
from spicebridge.cli.log import LogFormat

UriArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="URI",
        help="SPICE server: spice://HOST:PORT, spice+tls://HOST:PORT, spice+unix:///PATH, "
        "wss://HOST/PATH, or a connection file: FILE.vv, or - for stdin. "
        f"Without one, ${URI_VARIABLE}, else {DEFAULT_URI}.",
        show_default=False,
    ),
]
CustomChannelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--custom-channel",
        metavar="SPEC",
        help="Bridge a channel: key=value,key=value... Repeatable. "
        "E.g. unixsocket=/tmp/s,channelid=128.",
        show_default=False,
    ),
]
ShareOption = Annotated[
    str | None,
    typer.Option(
        "--share",
        metavar="DIR",
        help="Share a folder with the guest; short for "
        "--custom-channel channelid=webdav,share=DIR.",
        show_default=False,
    ),
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="Read the password from the first line of FILE "
        "instead of $SPICEBRIDGE_PASSWORD or a prompt.",
        show_default=False,
    ),
]
PasswordCommandOption = Annotated[
    str | None,
    typer.Option(
        "--password-command",
        metavar="COMMAND",
        help="Take the password from the first line that COMMAND prints.",
        show_default=False,
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        help="Certificates (PEM) of the authorities that a server's own may come from.",
        show_default=False,
    ),
]
HostSubjectOption = Annotated[
    str | None,
    typer.Option(
        "--host-subject",
        metavar="SUBJECT",
        help="Expect a certificate for this subject instead of the host's name: C=...,O=...,CN=...",
        show_default=False,
    ),
]
PinnedKeyOption = Annotated[
    str | None,
    typer.Option(
        "--pinned-key",
        metavar="sha256//BASE64",
        help="Trust the server with this public key, and no other.",
        show_default=False,
    ),
]
TlsCiphersOption = Annotated[
    str | None,
    typer.Option(
        "--tls-ciphers",
        metavar="LIST",
        help="Ciphers of TLS 1.2, as openssl-ciphers(1) writes them.",
        show_default=False,
    ),
]
InsecureTlsOption = Annotated[
    bool,
    typer.Option(
        "--insecure-tls",
        help="Do not check who the server is: anybody on the way can read and change everything.",
        show_default=False,
    ),
]
SecureChannelsOption = Annotated[
    str | None,
    typer.Option(
        "--secure-channels",
        metavar="TYPES|all",
        help="Link these channels with TLS only, e.g. main,port.",
        show_default=False,
    ),
]
ProxyOption = Annotated[
    str | None,
    typer.Option(
        "--proxy",
        metavar="URI",
        help="Go through http://, https:// or socks5://[USER@]HOST[:PORT] instead of $SPICE_PROXY.",
        show_default=False,
    ),
]
SaslMechanismOption = Annotated[
    str | None,
    typer.Option(
        "--sasl-mechanism",
        metavar="NAME",
        help="Log in with this SASL mechanism only.",
        show_default=False,
    ),
]
ConnectTimeoutOption = Annotated[
    float,
    typer.Option(
        "--connect-timeout",
        metavar="SECONDS",
        help="How long each step of reaching the server may take.",
        min=0.01,
    ),
]
ReconnectOption = Annotated[
    float | None,
    typer.Option(
        "--reconnect",
        metavar="[=MAX]",
        help="Stay while the server is away, and try again after 0.2 seconds, then ever later, "
        f"up to MAX ({RECONNECT_MAX:g}).",
        show_default=False,
        min=FIRST_DELAY,
    ),
]
TakeoverLimitOption = Annotated[
    int,
    typer.Option(
        "--takeover-limit",
        metavar="N",
        help="With --reconnect: end once another client has taken the session over N times, one "
        "soon after the other; 0 for never.",
        min=0,
    ),
]
IdleTimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--idle-timeout",
        metavar="SECONDS",
        help="Take the session for lost when the server has said nothing for so long.",
        show_default=False,
        min=0.01,
    ),
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="Log more; twice for every message.", show_default=False
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Log nothing but errors.", show_default=False)
]
LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="How to log on stderr.", case_sensitive=False)
]
ReadyFdOption = Annotated[
    int | None,
    typer.Option(
        "--ready-fd",
        metavar="N",
        help="Write a line to descriptor N and close it once the local ends exist.",
        show_default=False,
        min=1,
    ),
]
