"""Where the password comes from: a file, a command, the connection file, the environment, or a
person at a terminal."""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio.to_thread

from spicebridge import PASSWORD_VARIABLE, LoginError, Target, UsageError, environment


class GivenPassword:
    """What the command line says of the password.

    Args:
        file: of --password-file.
        command: of --password-command.

    Raises:
        UsageError: both are given, the file cannot be read, or its first line is empty.
    """

    def __init__(self, file: Path | None, command: str | None) -> None:
        if file is not None and command is not None:
            raise UsageError("--password-file and --password-command are both given", "keep one")
        self._from_file = _from_file(file) if file is not None else None
        self._file, self._command = file, command

    def first(self, known: str = "") -> str | None:
        """The first line of the file or of what the command prints, else what is known from the
        server's URI or file, else the variable if it is not empty; None if none was given.

        Raises:
            UsageError: the command cannot be run.
            LoginError: the command fails, or prints none.
        """
        if self._from_file is not None:
            return self._from_file
        if self._command is not None:
            return _from_command(self._command)
        return known or os.environ.get(PASSWORD_VARIABLE) or None

    @property
    def again(self) -> Callable[[], Awaitable[str]] | None:
        """What gives another password, when the first one is no longer taken; None if nothing."""
        if self._command is not None:
            read = partial(_from_command, self._command)
        elif self._file is not None:
            read = partial(_from_file, self._file)
        else:
            return None

        async def ask() -> str:
            return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)

        return ask


def _from_file(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="surrogateescape") as lines:
            password = lines.readline().rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"--password-file {file}: {error.strerror}", "check the file") from error
    if not password:
        raise UsageError(f"--password-file {file}: its first line is empty", "write it there")
    return password


def _from_command(command: str) -> str:
    named = "--password-command"  # without its arguments, which may be secret
    try:
        words = shlex.split(command)
        named = " ".join([named, *words[:1]])
        if not words:
            raise UsageError("--password-command names no program", "write one")
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,  # ours may be an application's
            stdout=subprocess.PIPE,
            env=environment(),
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{named}: {reason}", "check the program's name and quotation") from error
    if done.returncode:
        raise LoginError(
            f"--password-command: it ended with status {done.returncode}", "try it by hand"
        )
    password = done.stdout.partition("\n")[0].rstrip("\r")
    if not password:
        raise LoginError("--password-command: its first line is empty", "try it by hand")
    return password


def with_password(target: Target, given: GivenPassword, run: Callable[[Target], int]) -> int:
    """Runs something that logs in; asks a person only if the server wants a password.

    The question is asked between two runs, not within one: no event loop may wait for a person,
    and Ctrl-C then does what it does everywhere.

    Args:
        target: the server.
        given: what the command line says of the password.
        run: called with the target and its password, once more if it was asked for; returns an
            exit code.

    Raises:
        LoginError: the password is wrong, or none is there and nobody to ask.
    """
    password = given.first(target.password)
    try:
        return run(replace(target, password=password or ""))
    except LoginError as error:
        if password is not None or not error.by_password:
            raise
        if sys.stdin is None or not sys.stdin.isatty():
            raise LoginError(
                error.problem,
                f"give a password with --password-file, --password-command or ${PASSWORD_VARIABLE}",
            ) from error
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the echo has to be given back
    return run(replace(target, password=getpass.getpass(f"Password for {target}: ")))
