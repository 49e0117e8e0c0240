"""Live migration: one guest in one QEMU after another, and SPICE clients that go along.

It does what libvirt does: a second QEMU of the same making waits for the guest; the first is told
where that one has its SPICE server (`client_migrate_info`), upon which it has its client connect
there, too; then the machine moves (`migrate`), and once SPICE says that it has (`query-spice`:
`migrated`) the first QEMU is ended.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .guest import Guest
from .processes import PATIENCE, PeerError, wait_until

_FAST, _SLOW = 1 << 40, 1 << 16
"""Bytes a second: as fast as it goes, and so slow that the machine never gets there."""


class Migrating:
    """A guest that moves from QEMU to QEMU.

    Args:
        folder: where each QEMU gets a folder of its own; the caller removes it.
        make: makes the guest in a folder: the first boots, those after it are `incoming`.

    Attributes:
        guest: where it runs.
    """

    def __init__(self, folder: Path, make: Callable[[Path, bool], Guest]) -> None:
        self._folders = (folder / f"qemu{number}" for number in itertools.count())
        self._make = make
        self._target: Guest | None = None
        self.guest = self._started(incoming=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every QEMU."""
        self._drop_target()
        self.guest.stop()

    def prepare(self, cert_subject: str | None = None) -> None:
        """Start a target, and have the client connect to it; that is not waited for.

        Args:
            cert_subject: what the client is to expect of the target's certificate instead of the
                name of its host.
        """
        self._drop_target()
        self._target = self._started(incoming=True)
        self.guest.qmp("client_migrate_info", **_address(self._target, cert_subject))

    def move(self) -> None:
        """Move the guest to the target, wait until the client has followed, end the source."""
        target = self._begin(_FAST)
        wait_until(self._moved, what="the guest does not arrive", timeout=PATIENCE)
        wait_until(self._migrated, what="clients do not leave the source", timeout=PATIENCE)
        self._target = None
        source, self.guest = self.guest, target
        source.stop()

    def migrate(self, cert_subject: str | None = None) -> None:
        """Move the guest, when its client is ready for that. Arguments are those of `prepare`."""
        self.prepare(cert_subject)
        self._wait_linked()
        self.move()

    def cancel(self) -> None:
        """Begin to move the guest, with its client ready for that, and think better of it."""
        self.prepare()
        self._wait_linked()
        self._begin(_SLOW)
        wait_until(lambda: self._status() == "active", what="the guest does not begin to move")
        self.guest.qmp("migrate_cancel")
        wait_until(lambda: self._status() == "cancelled", what="the migration is not cancelled")
        self._drop_target()

    def _started(self, *, incoming: bool) -> Guest:
        folder = next(self._folders)
        folder.mkdir()
        return self._make(folder, incoming)

    def _drop_target(self) -> None:
        if self._target:
            self._target.stop()
            self._target = None

    def _wait_linked(self) -> None:
        """Wait until the client has linked at the target what it has linked at the source."""
        assert self._target
        source, target = self.guest, self._target
        wait_until(
            lambda: len(_channels(target)) == len(_channels(source)),
            what="the client does not link the target's channels",
            timeout=PATIENCE,
        )

    def _begin(self, bandwidth: int) -> Guest:
        assert self._target
        uri = f"unix:{self._target.folder / 'incoming'}"
        self._target.qmp("migrate-incoming", uri=uri)
        self.guest.qmp("migrate-set-parameters", max_bandwidth=bandwidth)
        self.guest.qmp("migrate", uri=uri)
        return self._target

    def _status(self) -> str:
        return str(self.guest.qmp("query-migrate").get("status"))

    def _moved(self) -> bool:
        if (status := self._status()) == "failed":
            raise PeerError(f"the migration failed: {self.guest.qmp('query-migrate')}")
        return status == "completed"

    def _migrated(self) -> bool:
        return bool(self.guest.qmp("query-spice")["migrated"])


def _channels(guest: Guest) -> list[Any]:
    """The channels that clients have linked."""
    channels: list[Any] = guest.qmp("query-spice").get("channels", [])
    return channels


def _address(target: Guest, cert_subject: str | None) -> dict[str, Any]:
    """Where the target has its SPICE server, as arguments of `client_migrate_info`."""
    address: dict[str, Any] = {"protocol": "spice", "hostname": "127.0.0.1"}
    for name in ("port", "tls_port"):
        if hasattr(target, name):
            address[name] = getattr(target, name)
    if cert_subject is not None:
        address["cert_subject"] = cert_subject
    return address
