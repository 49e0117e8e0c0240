"""Where the password comes from: a file, the environment, or a person at a terminal."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spicebridge import Address, LoginError, UsageError

VARIABLE: Final = "SPICEBRIDGE_PASSWORD"


def given_password(file: Path | None) -> str | None:
    """The first line of `file`, else the variable if it is not empty, else None.

    Raises:
        UsageError: if the file cannot be read, or its first line is empty.
    """
    if file is None:
        return os.environ.get(VARIABLE) or None
    try:
        with file.open(encoding="utf-8", errors="surrogateescape") as lines:
            password = lines.readline().rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"--password-file {file}: {error.strerror}", "check the file") from error
    if not password:
        raise UsageError(f"--password-file {file}: its first line is empty", "write it there")
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
                error.problem, f"give a password with --password-file or ${VARIABLE}"
            ) from error
    return run(getpass.getpass(f"Password for {address}: "))
