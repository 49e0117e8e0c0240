"""What a command says on stderr and to --ready-fd."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass

from spicebridge import UsageError
from spicebridge.cli.lines import StderrLines
from spicebridge.cli.log import LogFormat, set_up_logging


@dataclass(frozen=True)
class Output:
    """Where a command writes.

    Attributes:
        lines: on stderr, those of the log.
        live: whether a live line may be drawn there.
    """

    lines: StderrLines
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
    lines = StderrLines()
    level = logging.WARNING if filter_like and log_format is LogFormat.TEXT else logging.INFO
    if quiet:
        level = logging.ERROR
    elif verbose:
        level = logging.INFO if verbose == 1 and filter_like else logging.DEBUG
    set_up_logging(lines.write, log_format, level)
    live = log_format is LogFormat.TEXT and not quiet and not filter_like
    return Output(lines, live and sys.stderr is not None and sys.stderr.isatty())


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
