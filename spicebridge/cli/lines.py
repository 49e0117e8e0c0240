"""Lines on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WriteLine = Callable[[str], None]
"""Writes one line, given without its end."""


class StderrLines:
    """Writes lines on stderr as long as anybody reads them: the bridges matter more than these."""

    def __init__(self) -> None:
        self._write: WriteLine = _write_plainly
        self._gone = False

    def write(self, line: str) -> None:
        """Writes one."""
        if self._gone:
            return
        try:
            self._write(line)
        except BrokenPipeError:
            self._gone = True
        except OSError:  # e.g. its disk is full
            pass

    @contextmanager
    def through(self, write: WriteLine) -> Iterator[None]:
        """Has another one write them meanwhile, who draws on the terminal and keeps both whole."""
        self._write = write
        try:
            yield
        finally:
            self._write = _write_plainly


def _write_plainly(line: str) -> None:
    if sys.stderr is not None:  # as Python has it when started with it closed
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
