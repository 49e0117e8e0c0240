"""Options that several commands share, and what they mean for the whole process."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from spicebridge import DEFAULT_URI, Address, UsageError, parse_uri
from spicebridge.cli.log import LogFormat, set_up_logging

URI_VARIABLE: Final = "SPICEBRIDGE_URI"

UriArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="URI",
        help=f"SPICE server: spice://HOST:PORT or spice+unix:///PATH. "
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


def server_address(uri: str | None) -> Address:
    """The server that a URI, the environment or the default names."""
    if uri is None:
        uri = os.environ.get(URI_VARIABLE) or DEFAULT_URI
    return parse_uri(uri)


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
