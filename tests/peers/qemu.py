"""QEMU as a SPICE server without a guest: its monitors are ports, usbredir is a spicevmc.

It takes plain connections, TLS or both, each on a port of its own; WebSockets come in on either,
for the server looks at the first bytes of a connection.

The machine is stopped (`-S`) unless asked otherwise, so that it costs no processor time. A second
QMP monitor on a private socket lets a test look at QEMU from behind. QEMU gets that socket
connected, as a file descriptor: when the monitor answers, QEMU is up, and when it closes, QEMU
has gone, so that nothing needs to be polled.
"""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .certificates import CertificateFiles
from .processes import PeerError, Process, free_port
from .qmp_client import QmpClient, QmpError

HMP_PORT = "org.qemu.monitor.hmp.0"
QMP_PORT = "org.qemu.monitor.qmp.0"

_PORT_ATTEMPTS = 5


class Qemu:
    """A running QEMU.

    Args:
        folder: where its socket and its password file go; the caller removes it.
        unix: listen on a Unix socket in `folder` instead of a TCP port of 127.0.0.1; not with
            `tls`, which would take the socket's place.
        tls: listen for TLS with this certificate.
        plain: listen for plain connections.
        tls_channels: names (`main`, `port`, …; `default` for all else) of what is for TLS only.
        plaintext_channels: names of what is for plain connections only.
        password: the ticket that clients need; without it there is none.
        usbredir: add a USB controller with a usb-redir device; for the device to attach the
            machine must run (it attaches on the virtual clock).
        run: let the machine run; without a disk its firmware soon gives up and idles.
        extra: more arguments; a further `-spice` option is merged into ours.
        pass_fds: file descriptors that `extra` speaks of.
        env: added to its environment, such as SPICE_DEBUG_ALLOW_MC.

    Attributes:
        port: where it takes plain TCP connections; this and the others are there if it does.
        uri: the same, or the Unix socket.
        tls_port: where it takes TLS.
        tls_uri: the same.
    """

    port: int
    uri: str
    tls_port: int
    tls_uri: str

    def __init__(
        self,
        folder: Path,
        *,
        unix: bool = False,
        tls: CertificateFiles | None = None,
        plain: bool = True,
        tls_channels: Sequence[str] = (),
        plaintext_channels: Sequence[str] = (),
        password: str | None = None,
        usbredir: bool = False,
        run: bool = False,
        extra: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._path = folder / "spice.sock" if unix else None
        self._plain, self._tls = plain, tls
        self._arguments = ["qemu-system-x86_64", *_MACHINE, *_MONITORS]
        self._arguments += _USBREDIR if usbredir else []
        self._arguments += [] if run else ["-S"]
        self._arguments += [*_ticket(folder, password), *extra]
        self._security = [f"tls-channel={name}" for name in tls_channels]
        self._security += [f"plaintext-channel={name}" for name in plaintext_channels]
        self._pass_fds, self._env = pass_fds, env
        self._start()

    def _start(self) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._start_at(",".join([*self._listen(), *self._security]))
            except PeerError as error:
                taken = "Failed to open SPICE sockets" in str(error)
                if not taken or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def _listen(self) -> list[str]:
        """Choose where to listen; two ports that happen to be the same are one that is taken."""
        if self._path:
            self.uri = f"spice+unix://{self._path}"
            return ["unix=on", f"addr={_escaped(self._path)}"]
        options = ["addr=127.0.0.1"]
        if self._plain:
            self.port = free_port()
            self.uri = f"spice://127.0.0.1:{self.port}"
            options.append(f"port={self.port}")
        if self._tls:
            self.tls_port = free_port()
            self.tls_uri = f"spice+tls://127.0.0.1:{self.tls_port}"
            options += [f"tls-port={self.tls_port}", *_x509(self._tls)]
        return options

    def _start_at(self, listen: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            control = ["-chardev", f"socket,id=control,fd={fd}", "-mon", "control,mode=control"]
            self.process = Process(
                [*self._arguments, "-spice", listen, *control],
                pass_fds=[fd, *self._pass_fds],
                env=self._env,
            )
        try:
            self._qmp = QmpClient(ours)
        except (QmpError, OSError) as error:
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
    secret = f"secret,id=ticket,file={_escaped(file)}"
    return ["-object", secret, "-spice", "password-secret=ticket"]


def _x509(files: CertificateFiles) -> list[str]:
    return [
        f"x509-key-file={_escaped(files.key)}",
        f"x509-cert-file={_escaped(files.cert)}",
        f"x509-cacert-file={_escaped(files.ca)}",
    ]


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")
