"""The executable: what has to be done before the program is imported, and around that."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

_STDERR = 2


def main(args: list[str] | None = None) -> NoReturn:
    """Runs a command and exits with its code; errors are one line on stderr.

    Nothing of what is imported is garbage, nor will it ever be: looking for some costs the start
    6 % of its time, and every full collection later on some milliseconds.
    """
    _reserve_standard_descriptors()
    gc.disable()
    from spicebridge.cli.program import run_program

    gc.freeze()
    gc.enable()
    sys.exit(run_program(sys.argv[1:] if args is None else args))


def _reserve_standard_descriptors() -> None:
    """Nothing that we open may become stdin, stdout or stderr because that was closed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(fd, True)  # nor may anything become those of a program that we start
    os.close(fd)
