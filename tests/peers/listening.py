"""What programs that can only be told a number need, to listen on a port that is free.

A port is free until somebody else takes it, so whoever finds it taken is started anew with another
one. That it listens is read from the kernel's tables and not tried: the port may be somebody
else's, and the program's log is to hold the connections of the test and no others.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .processes import PeerError, Process, free_port, wait_until

_ATTEMPTS = 5
_TAKEN = ("Address already in use", "Could not create listening sockets")
"""As the C library says it, and as tinyproxy does."""
_LISTEN = "0A"


class ListeningProcess(Process):
    """A process that listens on a TCP port of 127.0.0.1.

    Args:
        command: gives the arguments that start it for a port; it may write a configuration.
        stdout: as for `Process`.

    Attributes:
        port: where it listens.
    """

    port: int

    def __init__(
        self,
        command: Callable[[int], Sequence[str | os.PathLike[str]]],
        *,
        stdout: int = subprocess.DEVNULL,
    ) -> None:
        for attempt in range(_ATTEMPTS):
            self.port = free_port()
            super().__init__(command(self.port), stdout=stdout)
            try:
                wait_until(self._listens, what="it does not listen")
            except BaseException as error:
                failure = self.error(str(error))
                self.stop()
                taken = any(words in str(failure) for words in _TAKEN)
                if not taken or attempt == _ATTEMPTS - 1:
                    raise failure from error
            else:
                return

    def _listens(self) -> bool:
        if self.popen.poll() is not None:
            raise PeerError("it has ended")
        ours = self._files()
        return any(f"socket:[{inode}]" in ours for inode in _listeners(self.port))

    def _files(self) -> list[str]:
        try:
            return [os.readlink(entry) for entry in Path(f"/proc/{self.pid}/fd").iterdir()]
        except OSError:
            return []  # it has closed one meanwhile, or has ended: the next look will tell


def _listeners(port: int) -> list[str]:
    """The inodes of the sockets that listen on a port of 127.0.0.1."""
    address = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return [row[9] for row in rows if row[1] == address and row[3] == _LISTEN]
