"""Where the password comes from: a file, a command, the environment, or a person at a terminal."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from spicebridge import PASSWORD_VARIABLE, Address, LoginError, UsageError


def given_password(file: Path | None, command: str | None) -> str | None:
    """The first line of a file or of what a command prints, else the variable if it is not empty.

    Args:
        file: of --password-file.
        command: of --password-command.

    Returns:
        The password; None if none was given.

    Raises:
        UsageError: if the file cannot be read, its first line is empty, the command cannot be run,
            or both are given.
        LoginError: if the command fails, or prints none.
    """
    if file is not None and command is not None:
        raise UsageError("--password-file and --password-command are both given", "keep one")
    if file is not None:
        return _from_file(file)
    if command is not None:
        return _from_command(command)
    return os.environ.get(PASSWORD_VARIABLE) or None


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
    try:
        words = shlex.split(command)
        if not words:
            raise UsageError("--password-command names no program", "write one")
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,  # ours may be an application's
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"--password-command {command}: {reason}", "check the program's name and quotation"
        ) from error
    if done.returncode:
        raise LoginError(
            f"--password-command: it ended with status {done.returncode}", "try it by hand"
        )
    password = done.stdout.partition("\n")[0].rstrip("\r")
    if not password:
        raise LoginError("--password-command: its first line is empty", "try it by hand")
    return password


def with_password(given: str | None, address: Address, run: Callable[[str], int]) -> int:
    """Runs something that logs in; asks a person only if the server wants a password.

    The question is asked between two runs, not within one: no event loop may wait for a person,
    and Ctrl-C then does what it does everywhere.

    Args:
        given: what `given_password` found.
        address: of the server, for the question.
        run: called with the password, once more if it was asked for; returns an exit code.

    Raises:
        LoginError: the password is wrong, or none is there and nobody to ask.
    """
    try:
        return run(given or "")
    except LoginError as error:
        if given is not None:
            raise
        if sys.stdin is None or not sys.stdin.isatty():
            raise LoginError(
                error.problem,
                f"give a password with --password-file, --password-command or ${PASSWORD_VARIABLE}",
            ) from error
    return run(getpass.getpass(f"Password for {address}: "))
