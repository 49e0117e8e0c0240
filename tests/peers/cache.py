"""What is built once and kept: the endpoint's binary, the guest's kernel and initramfs.

The folder is `$SPICEBRIDGE_TEST_CACHE`, else `.cache/guest` in the checkout. Two pytest workers
may ask for the same thing at once: the second waits for the first.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from .processes import PeerError

_CHECKOUT = Path(__file__).resolve().parents[2]
_COMMAND_TIMEOUT = 300.0


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache, filled by `build(folder)` if it is not there yet."""
    root = Path(os.environ.get("SPICEBRIDGE_TEST_CACHE") or _CHECKOUT / ".cache" / "guest")
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            draft = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
            try:
                build(draft)
                draft.rename(folder)
            except BaseException:
                shutil.rmtree(draft)
                raise
    return folder


def digest(*parts: str | bytes) -> str:
    """A short key that changes with what a cached thing is built from."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode() if isinstance(part, str) else part)
        whole.update(b"\0")
    return whole.hexdigest()[:12]


def command(*argv: str | os.PathLike[str], cwd: Path | None = None) -> str:
    """Run one command of a build and return its stdout; a `PeerError` has its stderr."""
    done = subprocess.run(
        argv, cwd=cwd, text=True, capture_output=True, check=False, timeout=_COMMAND_TIMEOUT
    )
    if done.returncode:
        raise PeerError(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
