"""QEMU as a SPICE server without a guest: its monitors are ports, usbredir is a spicevmc.

The machine is stopped (`-S`) unless asked otherwise, so that it costs no processor time. A second
QMP monitor on a private socket lets a test look at QEMU from behind. QEMU gets that socket
connected, as a file descriptor: when the monitor answers, QEMU is up, and when it closes, QEMU
has gone, so that nothing needs to be polled.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from .processes import PeerError, Process, free_port
from .qmp_client import QmpClient, QmpError

HMP_PORT = "org.qemu.monitor.hmp.0"
QMP_PORT = "org.qemu.monitor.qmp.0"

_PORT_ATTEMPTS = 5


class Qemu:
    """A running QEMU.

    Args:
        folder: where its socket and its password file go; the caller removes it.
        unix: listen on a Unix socket in `folder` instead of a TCP port of 127.0.0.1.
        password: the ticket that clients need; without it there is none.
        usbredir: add a USB controller with a usb-redir device; for the device to attach the
            machine must run (it attaches on the virtual clock).
        run: let the machine run; without a disk its firmware soon gives up and idles.
        extra: more arguments; a further `-spice` option is merged into ours.
        pass_fds: file descriptors that `extra` speaks of.
    """

    def __init__(
        self,
        folder: Path,
        *,
        unix: bool = False,
        password: str | None = None,
        usbredir: bool = False,
        run: bool = False,
        extra: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._path = folder / "spice.sock" if unix else None
        self._arguments = ["qemu-system-x86_64", *_MACHINE, *_MONITORS]
        self._arguments += _USBREDIR if usbredir else []
        self._arguments += [] if run else ["-S"]
        self._arguments += [*_ticket(folder, password), *extra]
        self._pass_fds = pass_fds
        self._start()

    def _start(self) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            if self._path:
                self.uri = f"spice+unix://{self._path}"
                listen = f"unix=on,addr={str(self._path).replace(',', ',,')}"
            else:
                port = free_port()
                self.uri = f"spice://127.0.0.1:{port}"
                listen = f"addr=127.0.0.1,port={port}"
            try:
                self._start_at(listen)
            except PeerError as error:
                taken = "Failed to open SPICE sockets" in str(error)
                if not taken or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def _start_at(self, listen: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            control = ["-chardev", f"socket,id=control,fd={fd}", "-mon", "control,mode=control"]
            self.process = Process(
                [*self._arguments, "-spice", listen, *control], pass_fds=[fd, *self._pass_fds]
            )
        try:
            self._qmp = QmpClient(ours)
        except (QmpError, OSError) as error:
            ours.close()
            failure = self.process.error(f"its control monitor does not answer: {error}")
            self.process.stop()
            raise failure from error

    @property
    def pid(self) -> int:
        """The process id of QEMU."""
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End QEMU."""
        self._qmp.close()
        self.process.stop()

    def qmp(self, command: str, /, **arguments: Any) -> Any:
        """Execute a QMP command on the control monitor and give back what it returns."""
        return self._qmp.execute(command, **arguments)

    def hmp(self, line: str) -> str:
        """Run a line of the human monitor, such as `info usb`, behind the back of the ports."""
        return self._qmp.hmp(line)


# fmt: off
_MACHINE = [
    "-M", "pc", "-accel", "tcg", "-display", "none", "-nodefaults", "-no-user-config",
]
_MONITORS = [
    "-chardev", f"spiceport,id=hmp,name={HMP_PORT}", "-mon", "hmp,mode=readline",
    "-chardev", f"spiceport,id=qmp,name={QMP_PORT}", "-mon", "qmp,mode=control",
]
_USBREDIR = [
    "-device", "qemu-xhci",
    "-chardev", "spicevmc,id=usbredir,name=usbredir", "-device", "usb-redir,chardev=usbredir",
]
# fmt: on


def _ticket(folder: Path, password: str | None) -> list[str]:
    if password is None:
        return ["-spice", "disable-ticketing=on"]
    file = folder / "ticket"
    file.touch(mode=0o600)
    file.write_text(password)
    path = str(file).replace(",", ",,")
    return ["-object", f"secret,id=ticket,file={path}", "-spice", "password-secret=ticket"]
