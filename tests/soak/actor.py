"""An actor: some of our processes, what stands around them, and what befalls them."""

from __future__ import annotations

import random
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final, Protocol

from tests.soak.leftovers import back, settled
from tests.soak.program import Program
from tests.soak.tally import Leftover, LostError, Tally

FINDINGS: Final = Path(__file__).resolve().parents[2] / ".cache" / "soak"
"""Where it is written down what went wrong, with the logs of the processes."""

_WARM: Final = 0.2
"""Of the time, after which processes have all that they make once."""

_WARM_ROUNDS: Final = 3
_FAILURES: Final = 5
"""After so many an actor gives up."""


class Stop(Protocol):
    """An event of whatever kind."""

    def is_set(self) -> bool: ...


class Actor(ABC):
    """One of those that run at the same time.

    Args:
        dice: its own.
        tally: what it has seen.

    Attributes:
        folder: for its sockets; a short path.
        stack: what ends with it.
        programs: our processes, in the order of their start.
    """

    name: ClassVar[str]

    def __init__(self, dice: random.Random, tally: Tally) -> None:
        self.dice = dice
        self.tally = tally
        self.programs: list[Program] = []

    @abstractmethod
    def set_up(self) -> None:
        """Starts what it needs, on `stack`."""

    @abstractmethod
    def round(self) -> None:
        """Does something to its processes, and checks what their applications see.

        Raises:
            LostError, AssertionError: bytes were lost.
        """

    @abstractmethod
    def calm(self) -> None:
        """The same while nothing befalls them: all has to arrive."""

    def start(self, program: Program) -> Program:
        """Looks after a process of ours."""
        self.programs.append(self.stack.enter_context(program))
        return program

    def play(self, stop: Stop, seconds: float, tell: Callable[[Tally], None]) -> None:
        """Goes on until `stop`, anew after a failure.

        Args:
            stop: set when it is enough.
            seconds: how long that will be, if nobody is impatient.
            tell: called with the tally again and again.
        """
        self._tell = tell
        end = time.monotonic() + seconds
        failures = 0
        while True:
            try:
                self._play(stop, end)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                failures += 1
                lost = isinstance(error, AssertionError | TimeoutError)
                told = f"{self.name}: {type(error).__name__}: {error}"
                (self.tally.lost if lost else self.tally.failed).append(told)
            if stop.is_set() or failures >= _FAILURES:
                return

    def _play(self, stop: Stop, end: float) -> None:
        self.programs = []
        with tempfile.TemporaryDirectory(prefix="sb-") as folder, ExitStack() as self.stack:
            self.folder = Path(folder)
            try:
                self.set_up()
                self._check_all(stop, end)
            except Exception:
                self._write_down()
                raise

    def _check_all(self, stop: Stop, end: float) -> None:
        self.calm()  # before, a bridge that must be linked may say that it cannot
        now = time.monotonic()
        warm = now + _WARM * max(0.0, end - now)
        rounds = 0
        while not stop.is_set() and (time.monotonic() < warm or rounds < _WARM_ROUNDS):
            self.round()
            self._tell(self.tally)
            rounds += 1
        self.calm()
        before = settled([each.pid for each in self.programs])
        while not stop.is_set():
            self.round()
            self._tell(self.tally)
        self.calm()
        for program, then in zip(self.programs, before, strict=True):
            left = Leftover(program.name, then, back(program.pid, then))
            self.tally.leftovers.append(left)
        self._end()

    def _end(self) -> None:
        """All our processes are still there, and end when they are told to."""
        for program in reversed(self.programs):
            program.popen.terminate()
            if code := program.popen.wait(60):
                raise program.error(f"{program.name} has ended with {code}")

    def _write_down(self) -> None:
        FINDINGS.mkdir(parents=True, exist_ok=True)
        number = len(self.tally.lost) + len(self.tally.failed)
        with (FINDINGS / f"{self.name}-{number}.log").open("w") as file:
            traceback.print_exc(file=file)
            for program in self.programs:
                print(f"\n--- {program.error(program.name)}", file=file)


def check(condition: object, what: str) -> None:
    """Raises `LostError` if it is not so."""
    if not condition:
        raise LostError(what)
