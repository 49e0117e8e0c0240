"""A small Linux guest in QEMU: Debian's cloud kernel, busybox, virtio ports that are SPICE ports.

The kernel comes out of Debian's package (it is not installed), the initramfs is made here; both
are kept in the test cache. In the guest every port is /dev/virtio-ports/NAME, and `portpump`
(portpump.c, /bin/portpump) joins one with stdin and stdout. One more virtio port, on a private
socket and not on SPICE, has a shell behind it; through that a test runs commands in the guest.
"""

import re
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .cache import cached, command, digest
from .processes import PeerError
from .qemu import Qemu

_BOOT_TIMEOUT = 60.0
_CONTROL = "control"

_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/char/virtio_console",
)
"""What Debian's kernel has as modules, in the order of their dependencies."""

_PROGRAMS = (
    "/bin/busybox",
    "/usr/bin/curl",
    "/usr/bin/dbus-daemon",
    "/usr/sbin/avahi-daemon",
    "/usr/sbin/spice-webdavd",
)
"""Programs of this machine that go into the guest, with the libraries they are linked to."""

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t debugfs debugfs /sys/kernel/debug
for module in {" ".join(Path(module).name for module in _MODULES)}; do
    insmod /modules/$module.ko || exit
done
mkdir /dev/virtio-ports
until [ -e /dev/virtio-ports/{_CONTROL} ]; do # the last to come
    usleep 5000
    for port in /sys/class/virtio-ports/*; do
        ln -sf ../${{port##*/}} /dev/virtio-ports/$(cat $port/name)
    done
done
exec sh <>/dev/virtio-ports/{_CONTROL} >&0
"""


class GuestError(RuntimeError):
    """A command in the guest ended with something else than 0."""


class Guest(Qemu):
    """A booted guest.

    Args:
        folder, unix, password: as for `Qemu`; the guest's console goes to `folder`/console.
        ports: the names of virtio ports, each a SPICE port of the same name.
    """

    def __init__(
        self,
        folder: Path,
        *ports: str,
        unix: bool = False,
        password: str | None = None,
    ) -> None:
        kernel, initramfs = _kernel(), _initramfs()
        self._console = folder / "console"
        self._shell, theirs = socket.socketpair()
        try:
            with theirs:
                fd = theirs.fileno()
                super().__init__(
                    folder,
                    unix=unix,
                    password=password,
                    run=True,
                    extra=[
                        *_boot(kernel / "vmlinuz", initramfs / "initramfs", self._console),
                        *_virtio_ports(ports, fd),
                    ],
                    pass_fds=[fd],
                )
        except BaseException:
            self._shell.close()
            raise
        try:
            self.run("true", timeout=_BOOT_TIMEOUT)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the guest, as if its power failed."""
        self._shell.close()
        super().stop()

    def run(self, script: str, *, timeout: float = 30.0) -> str:
        """Run shell commands in the guest; give back what they print, standard error with it.

        What is to go on in the background must not keep that output: `portpump … >/tmp/log 2>&1 &`.

        Raises:
            GuestError: the last command ended with something else than 0.
            PeerError: the guest did not answer in time; it is of no more use then.
        """
        mark = secrets.token_hex(8)
        line = f"sh -c {shlex.quote(script)} </dev/null 2>&1; echo {mark} $?\n"
        try:
            self._shell.sendall(line.encode())
            output, status = self._answer(mark, time.monotonic() + timeout)
        except OSError as error:
            console = self._console.read_text(errors="replace")[-2000:]
            raise self.process.error(f"{script!r} in the guest: {error}\n{console}") from error
        if status:
            raise GuestError(f"{script!r} in the guest ended with {status}:\n{output}")
        return output

    def _answer(self, mark: str, deadline: float) -> tuple[str, int]:
        answer = b""
        while not (end := re.search(rb"%s (\d+)\n$" % mark.encode(), answer)):
            self._shell.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._shell.recv(65536)
            if not data:
                raise ConnectionError("its shell has gone")
            answer += data
        return answer[: end.start()].decode(errors="replace"), int(end[1])

    def host_connected(self, port: str) -> bool:
        """Whether the guest sees a SPICE client on `port`."""
        state = self.run(
            f"cat /sys/kernel/debug/virtio-ports/$(basename $(readlink /dev/virtio-ports/{port}))"
        )
        return "host_connected: 1" in state


def _boot(kernel: Path, initramfs: Path, console: Path) -> list[str]:
    # fmt: off
    return [
        "-m", "512", "-no-reboot",
        "-cpu", "max", # it has RDRAND: who needs random numbers need not wait for them
        "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1",
        "-chardev", f"file,id=console,path={str(console).replace(',', ',,')}",
        "-serial", "chardev:console",
    ]
    # fmt: on


def _virtio_ports(names: Sequence[str], control_fd: int) -> list[str]:
    arguments = ["-device", "virtio-serial"]
    for index, name in enumerate(names):
        arguments += ["-chardev", f"spiceport,id=port{index},name={name}"]
        arguments += ["-device", f"virtserialport,chardev=port{index},name={name}"]
    arguments += ["-chardev", f"socket,id=shell,fd={control_fd}"]
    arguments += ["-device", f"virtserialport,chardev=shell,name={_CONTROL}"]
    return arguments


def _kernel() -> Path:
    """The folder with `vmlinuz` and `modules`, from the package that Debian's metapackage names."""

    def build(folder: Path) -> None:
        depends = command("apt-cache", "depends", _KERNEL_PACKAGE)
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if not package:
            raise PeerError(f"apt knows no kernel for {_KERNEL_PACKAGE}: apt-get update?")
        command("apt-get", "download", package[1], cwd=folder)
        (archive,) = folder.glob("*.deb")
        tree = folder / "tree"
        command("dpkg", "-x", archive, tree)
        (vmlinuz,) = tree.glob("boot/vmlinuz-*")
        vmlinuz.rename(folder / "vmlinuz")
        (folder / "modules").mkdir()
        for module in _MODULES:
            (file,) = tree.glob(f"lib/modules/*/kernel/{module}.ko")
            file.rename(folder / "modules" / file.name)
        archive.unlink()
        shutil.rmtree(tree)

    return cached("kernel", build)


def _initramfs() -> Path:
    """The folder with `initramfs`."""
    source = Path(__file__).with_name("portpump.c")
    modules = _kernel() / "modules"

    def build(folder: Path) -> None:
        root = folder / "root"
        for directory in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            (root / directory).mkdir(parents=True)
        shutil.copytree(modules, root / "modules")
        command("gcc", "-O2", "-Wall", "-o", folder / "portpump", source)
        for program in (*_PROGRAMS, folder / "portpump"):
            _install(Path(program), root)
        init = root / "init"
        init.write_text(_INIT)
        init.chmod(0o755)
        command("sh", "-c", "find . | cpio --quiet -o -H newc -F ../initramfs", cwd=root)
        shutil.rmtree(root)

    key = digest(_INIT, source.read_bytes(), *(Path(p).read_bytes() for p in _PROGRAMS))
    return cached(f"initramfs-{key}", build)


def _install(program: Path, root: Path) -> None:
    """Copy a program to /bin of the guest, and its libraries to where it seeks them."""
    shutil.copy(program, root / "bin")
    linked = subprocess.run(["ldd", program], text=True, capture_output=True, check=False)
    for library in re.findall(r"(/\S+) \(0x", linked.stdout):  # none in a static program
        target = root / library.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
