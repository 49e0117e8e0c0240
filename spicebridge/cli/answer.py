"""The asked-for answer, on stdout."""

from __future__ import annotations

import os
import sys
from io import StringIO

from rich.console import Console, RenderableType

from spicebridge import SpicebridgeError


class OutputClosedError(SpicebridgeError):
    """Nobody reads our answer any more, as in ``spicebridge list | head -1``."""

    exit_code = 141  # 128 + SIGPIPE, what a shell sees of a program that the signal ended


def print_answer(answer: RenderableType) -> None:
    """Prints it: as wide as the terminal, or as it needs where there is none.

    Raises:
        OutputClosedError: stdout has been closed.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    with console.capture() as captured:
        console.print(answer, soft_wrap=True)
    write_answer(captured.get())


def write_answer(text: str) -> None:
    """Writes plain text.

    Raises:
        OutputClosedError: stdout has been closed.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        # what is still buffered must not fail once more when the interpreter ends
        sys.stdout = StringIO()
        os.close(1)
        raise OutputClosedError("nobody reads stdout") from error
