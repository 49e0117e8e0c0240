"""Runs a command: which one it is, what went wrong, and the exit code."""

from __future__ import annotations

import logging
import sys

from spicebridge import SpicebridgeError
from spicebridge.cli.answer import OutputClosedError
from spicebridge.cli.bridging import bridge
from spicebridge.cli.descriptors import given
from spicebridge.cli.log import LogFormat
from spicebridge.cli.output import set_up_output
from spicebridge.cli.plain import read_plain

log = logging.getLogger("spicebridge")

_INTERRUPTED = 130  # 128 + SIGINT


def run_program(words: list[str]) -> int:
    """Runs a command and returns its exit code; errors are one line on stderr."""
    given()  # at once: no program that we start gets what the service manager gave us
    try:
        return _run(words)
    except OutputClosedError as error:
        return error.exit_code
    except SpicebridgeError as error:
        return error.exit_code if error.logged else _fail(error)
    except EOFError:  # Ctrl-D where a password is asked for
        print(file=sys.stderr)  # noqa: T201 - ends the line of the question
        return _INTERRUPTED
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(words: list[str]) -> int:
    if (options := read_plain(words)) is not None:
        return bridge(options)
    from spicebridge.cli.commands import run_command  # here, for what it costs, see `plain`

    return run_command(words)


def _fail(error: SpicebridgeError) -> int:
    if not log.handlers:
        set_up_output(0, False, LogFormat.TEXT)
    fields = {"exit_code": error.exit_code}
    log.error("%s", error, extra={"event": "error", "fields": fields})
    return error.exit_code
