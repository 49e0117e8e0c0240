"""Options that several commands share, and what they mean for the whole process."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spicebridge import DEFAULT_URI, URI_VARIABLE, UsageError
from spicebridge.cli.log import LogFormat, set_up_logging

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


class _StderrConsole(Console):
    """Goes quiet when nobody reads it any more: the bridges matter more than their log."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        self.quiet = True


@dataclass(frozen=True)
class Output:
    """Where a command writes.

    Attributes:
        console: on stderr, shared by the log and the live line.
        live: whether a live line may be drawn there.
    """

    console: Console
    live: bool


def set_up_output(
    verbose: int, quiet: bool, log_format: LogFormat, *, filter_like: bool = False
) -> Output:
    """Sets up logging on stderr.

    Args:
        verbose: how often -v was given.
        quiet: whether -q was.
        log_format: of --log-format.
        filter_like: whether we stand in a pipeline, where a program says nothing that nobody asked
            for: only warnings are shown unless -v or JSON was asked for.
    """
    console = _StderrConsole()
    level = logging.WARNING if filter_like and log_format is LogFormat.TEXT else logging.INFO
    if quiet:
        level = logging.ERROR
    elif verbose:
        level = logging.INFO if verbose == 1 and filter_like else logging.DEBUG
    set_up_logging(console, log_format, level)
    live = log_format is LogFormat.TEXT and not quiet and not filter_like
    return Output(console, live)


def tell_ready(fd: int | None) -> None:
    """Writes to the descriptor of --ready-fd and closes it.

    Raises:
        UsageError: if it is not open for writing.
    """
    if fd is None:
        return
    try:
        os.write(fd, b"ready\n")
        os.close(fd)
    except OSError as error:
        raise UsageError(
            f"--ready-fd {fd}: {error.strerror}", f"open it in the shell, e.g. {fd}>FILE"
        ) from error
