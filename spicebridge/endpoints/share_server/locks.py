"""WebDAV's locks (RFC 4918, 6), in memory: they end with the server."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from wsgidav.dav_error import DAVError
from wsgidav.lock_man.lock_manager import LockManager, is_lock_expired
from wsgidav.lock_man.lock_storage import LockStorageDict

_MAX_LOCKS: Final = 4096


class _Mutex:
    """In place of WsgiDAV's reader-writer lock, which refuses two readers that both would write."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.acquire_read = self._lock.acquire
        self.acquire_write = self._lock.acquire
        self.release = self._lock.release


class _Storage(LockStorageDict):
    """Forgets what has expired when a lock is made, not while somebody goes through the list."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = _Mutex()

    def get(self, token: str) -> dict[str, Any] | None:
        lock: dict[str, Any] | None = self._dict.get(token)
        return None if lock is None or is_lock_expired(lock) else lock

    def create(self, path: str, lock: dict[str, Any]) -> dict[str, Any]:
        now = time.time()
        tokens = [key for key, value in self._dict.items() if isinstance(value, dict)]
        for token in tokens:
            if self._dict[token]["expire"] < now:
                self.delete(token)
        if len(tokens) >= _MAX_LOCKS:
            raise DAVError(503, "there are too many locks")
        super().create(path, lock)  # it fills in the token
        return lock


def lock_manager() -> LockManager:
    """Where locks are kept."""
    manager = LockManager(_Storage())
    manager._lock = _Mutex()  # noqa: SLF001 - it offers no other way
    return manager
