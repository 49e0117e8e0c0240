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
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import lz4.block

from .cache import cached, command, digest
from .certificates import CertificateFiles
from .processes import PATIENCE, PeerError, wait_until
from .qemu import Qemu

_CONTROL = "control"

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20

_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_QUICK = "tsc=reliable nokaslr mitigations=off cryptomgr.notests lsm= audit=0"
"""What makes the kernel boot in half the time: nothing here needs what these leave out."""

_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/char/virtio_console",
)
"""What Debian's kernel has as modules, in the order of their dependencies."""

_BUSYBOX = "/bin/busybox"
_WEBDAV = (
    "/usr/bin/curl",
    "/usr/bin/dbus-daemon",
    "/usr/sbin/avahi-daemon",
    "/usr/sbin/spice-webdavd",
)
"""Programs of this machine that go into the guest, with the libraries they are linked to."""

_MEMORY, _SMALL_MEMORY = 512, 128
"""MiB of RAM, with the programs for webdav and without them."""

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
for port in $(echo $echo | tr , ' '); do
    mkfifo /run/$port
    portpump /dev/virtio-ports/$port <>/run/$port >/run/$port 2>/dev/null &
done
exec sh <>/dev/virtio-ports/{_CONTROL} >&0
"""
"""The kernel hands what it does not know of its command line, `echo`, to this as environment."""


class GuestError(RuntimeError):
    """A command in the guest ended with something else than 0."""


class Guest(Qemu):
    """A booted guest.

    Args:
        folder, unix, tls, password, usbredir: as for `Qemu`; the guest's console goes to
            `folder`/console.
        ports: the names of virtio ports, each a SPICE port of the same name.
        echo: those of them that give back what comes, since the guest has booted.
        webdav: have the programs that spice-webdavd needs in the guest, which needs more memory.
        reboots: let `system_reset` reboot it; otherwise it ends QEMU.
        incoming: do not boot, but wait for another guest of the same making to be migrated here.
        extra: more arguments of QEMU.

    Attributes:
        folder: the same.
    """

    def __init__(
        self,
        folder: Path,
        *ports: str,
        unix: bool = False,
        tls: CertificateFiles | None = None,
        password: str | None = None,
        usbredir: bool = False,
        echo: Sequence[str] = (),
        webdav: bool = True,
        reboots: bool = False,
        incoming: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        boot = _kernel() / "vmlinux", _initramfs(_WEBDAV if webdav else ()) / "initramfs"
        self.folder = folder
        self._console = folder / "console"
        self._shell, theirs = socket.socketpair()
        try:
            with theirs:
                fd = theirs.fileno()
                super().__init__(
                    folder,
                    unix=unix,
                    tls=tls,
                    password=password,
                    usbredir=usbredir,
                    run=True,
                    extra=[
                        *_boot(*boot, self._console, echo),
                        *["-m", str(_MEMORY if webdav else _SMALL_MEMORY)],
                        *_virtio_ports(ports, fd),
                        *([] if reboots else ["-no-reboot"]),
                        *(["-incoming", "defer"] if incoming else []),
                        *extra,
                    ],
                    pass_fds=[fd],
                )
        except BaseException:
            self._shell.close()
            raise
        if not incoming:
            try:
                self.run("true", timeout=PATIENCE)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End the guest, as if its power failed."""
        self._shell.close()
        super().stop()

    def run(self, script: str, *, timeout: float = PATIENCE) -> str:
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

    def reset(self) -> None:
        """Reset the machine, which then boots again; that is not waited for."""
        resets = self._resets()
        self.qmp("system_reset")
        wait_until(lambda: self._resets() > resets, what="the guest is not reset")

    def _resets(self) -> int:
        self.qmp("query-status")  # events are read with an answer
        return sum(each["event"] == "RESET" for each in self._qmp.events)

    def host_connected(self, port: str) -> bool:
        """Whether the guest sees a SPICE client on `port`."""
        state = self.run(
            f"cat /sys/kernel/debug/virtio-ports/$(basename $(readlink /dev/virtio-ports/{port}))"
        )
        return "host_connected: 1" in state


def _boot(kernel: Path, initramfs: Path, console: Path, echo: Sequence[str]) -> list[str]:
    # fmt: off
    return [
        "-cpu", "max", # it has RDRAND: who needs random numbers need not wait for them
        "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", f"console=ttyS0 quiet panic=-1 {_QUICK} echo={','.join(echo)}",
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
    """The folder with `vmlinux` and `modules`, from the package that Debian's metapackage names."""

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
        (folder / "vmlinux").write_bytes(_unpacked(vmlinuz.read_bytes()))
        (folder / "modules").mkdir()
        for module in _MODULES:
            (file,) = tree.glob(f"lib/modules/*/kernel/{module}.ko")
            file.rename(folder / "modules" / file.name)
        archive.unlink()
        shutil.rmtree(tree)

    return cached("kernel-unpacked", build)


def _unpacked(image: bytes) -> bytes:
    """The ELF file in a bzImage, which QEMU boots by its PVH entry.

    A guest that unpacks its kernel anew at a reset writes where translated code was, which takes
    TCG seconds. Documentation/x86/boot.rst of Linux has the header; LZ4's legacy frame is blocks
    of 8 MiB, each behind its size.
    """
    setup_sectors = image[0x1F1]
    offset, size = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + size]
    if not payload.startswith(_LZ4_LEGACY):
        raise PeerError("the kernel is not packed with LZ4")
    blocks, position = [], len(_LZ4_LEGACY)
    while position < size - 4:  # behind the last is the unpacked size
        (packed,) = struct.unpack_from("<I", payload, position)
        position += 4
        block = payload[position : position + packed]
        blocks.append(lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK))
        position += packed
    return b"".join(blocks)


def _initramfs(programs: Sequence[str]) -> Path:
    """The folder with `initramfs`, with busybox, portpump and `programs` in it."""
    source = Path(__file__).with_name("portpump.c")
    modules = _kernel() / "modules"

    def build(folder: Path) -> None:
        root = folder / "root"
        for directory in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            (root / directory).mkdir(parents=True)
        shutil.copytree(modules, root / "modules")
        command("gcc", "-O2", "-Wall", "-o", folder / "portpump", source)
        for program in (_BUSYBOX, *programs, str(folder / "portpump")):
            _install(Path(program), root)
        init = root / "init"
        init.write_text(_INIT)
        init.chmod(0o755)
        command("sh", "-c", "find . | cpio --quiet -o -H newc -F ../initramfs", cwd=root)
        shutil.rmtree(root)

    key = digest(_INIT, source.read_bytes(), *(Path(p).read_bytes() for p in (_BUSYBOX, *programs)))
    return cached(f"initramfs-{key}", build)


def _install(program: Path, root: Path) -> None:
    """Copy a program to /bin of the guest, and its libraries to where it seeks them."""
    shutil.copy(program, root / "bin")
    linked = subprocess.run(["ldd", program], text=True, capture_output=True, check=False)
    for library in re.findall(r"(/\S+) \(0x", linked.stdout):  # none in a static program
        target = root / library.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
