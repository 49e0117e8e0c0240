"""What every real peer needs: to be started, waited for with a bound, and ended.

A peer that fails says so with a `PeerError` that carries the tail of its standard error.
"""

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

PATIENCE = 60.0
"""Seconds after which something that has not happened is a failure, on the slowest machine."""

_STOP_TIMEOUT = 5.0
_POLL_INTERVAL = 0.02
_STDERR_TAIL = 4000
_EXIT_GRACE = 0.5
"""How long a process that closed its end may take to be gone, for an error to say how it ended."""

Message = dict[str, Any]
"""One JSON object that a peer printed on a line of its own."""


class PeerError(RuntimeError):
    """A real peer did not start, ended too early, or did not answer in time."""


class Process:
    """A child process that is ended when its `with` block is left.

    Its standard error goes to an unnamed file, to be quoted by errors; `env` is added to ours.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._name = Path(argv[0]).name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.popen = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=self._stderr,
                pass_fds=pass_fds,
                env={**os.environ, **(env or {})},
            )
        except BaseException:
            self._stderr.close()
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stderr(self) -> str:
        """The last of what the process wrote on standard error."""
        fd = self._stderr.fileno()
        start = max(0, os.fstat(fd).st_size - _STDERR_TAIL)
        return os.pread(fd, _STDERR_TAIL, start).decode(errors="replace")

    def error(self, what: str) -> PeerError:
        """Make the error that says `what`, whether the process runs, and its stderr."""
        try:
            state = f"ended with {self.popen.wait(_EXIT_GRACE)}"
        except subprocess.TimeoutExpired:
            state = "still running"
        return PeerError(f"{self._name} ({state}): {what}\n{self.stderr()}")

    def stop(self) -> None:
        """Terminate the process, kill it when it does not heed that, and reap it."""
        self.popen.terminate()
        try:
            self.popen.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self._stderr):
            if pipe is not None:
                pipe.close()


class JsonProcess(Process):
    """A child that takes commands as lines on stdin and reports in JSON lines on stdout."""

    def __init__(
        self, argv: Sequence[str | os.PathLike[str]], *, pass_fds: Sequence[int] = ()
    ) -> None:
        super().__init__(argv, pass_fds=pass_fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.messages: list[Message] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        try:
            for line in self.popen.stdout:
                with self._news:
                    self.messages.append(json.loads(line))
                    self._news.notify_all()
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()

    def send(self, line: str) -> None:
        """Give the process one line on its stdin."""
        assert self.popen.stdin is not None
        try:
            os.write(self.popen.stdin.fileno(), line.encode() + b"\n")
        except BrokenPipeError:
            raise self.error(f"it cannot be told {line!r}") from None

    def wait_message(
        self, *, since: int = 0, timeout: float = PATIENCE, **fields: object
    ) -> Message:
        """Wait for a message, at index `since` or later, that has all of `fields`; return it."""
        wanted = fields.items()
        return self.wait_messages(
            lambda messages: next((m for m in messages[since:] if wanted <= m.items()), None),
            what=f"no message with {fields}",
            timeout=timeout,
        )

    def wait_messages(
        self,
        find: Callable[[Sequence[Message]], Message | None],
        *,
        what: str,
        timeout: float = PATIENCE,
    ) -> Message:
        """Wait until `find` picks one of the messages so far; `what` says what is missing else."""
        deadline = time.monotonic() + timeout
        with self._news:
            while (found := find(self.messages)) is None:
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise self.error(f"{what} within {timeout} s; last: {self.messages[-5:]}")
                self._news.wait(left)
            return found

    def stop(self) -> None:
        """End the process and the thread that reads it."""
        self.popen.terminate()
        self._reader.join(_STOP_TIMEOUT)
        super().stop()


def wait_until(condition: Callable[[], bool], *, what: str, timeout: float = PATIENCE) -> None:
    """Poll `condition` until it holds; `what` says in the error what did not come to hold."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise PeerError(f"{what} within {timeout} s")
        time.sleep(_POLL_INTERVAL)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago: whoever uses it must bear a collision."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def rss_kib(pid: int) -> int:
    """Resident memory of a process now, in KiB."""
    return _status_kib(pid, "VmRSS")


def peak_rss_kib(pid: int) -> int:
    """The most resident memory that a process has had so far (its high-water mark), in KiB."""
    return _status_kib(pid, "VmHWM")


def _status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise PeerError(f"process {pid} has no {field}: it has ended")
