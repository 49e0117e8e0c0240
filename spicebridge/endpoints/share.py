"""``share=FOLDER``: a folder over WebDAV, served by a process of ours.

The server is a child of its own because it is made of threads and of blocking calls: neither the
GIL nor a slow disk is to hold up the data path. `share_server` tells how it gets its connections.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from types import TracebackType
from typing import Final

import anyio
from anyio.abc import Process

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.endpoints.environment import environment
from spicebridge.endpoints.process import EXIT_TIMEOUT
from spicebridge.endpoints.share_server import READY
from spicebridge.errors import EndpointError
from spicebridge.transport.stream import Stream

START_TIMEOUT = 30.0
"""Seconds that the server has to start; it takes less than one."""

_SERVER: Final = "spicebridge.endpoints.share_server"
_LIBRARIES: Final = ("wsgidav", "cheroot")


class ShareEndpoint(Endpoint):
    """Serves a folder; each application is a new connection to its WebDAV server.

    Args:
        folder: what is shared. Nothing outside of it can be reached, symbolic links in it are not
            followed; it may be one itself.
        readonly: whether nothing in it may change.
    """

    waits = False
    repeats = True

    def __init__(self, folder: str, *, readonly: bool = False) -> None:
        self.name = f"share={folder}"
        self._folder = folder
        self._readonly = readonly
        self._root = ""
        self._process: Process | None = None
        self._control: socket.socket | None = None
        self._handing_over = anyio.Lock()

    async def open(self) -> None:
        """Checks the folder and starts the server.

        Raises:
            EndpointError: the folder is not there or not ours to serve, or there is no server.
        """
        self._check_folder()
        missing = [name for name in _LIBRARIES if find_spec(name) is None]
        if missing:
            raise EndpointError(
                f"{self.name}: {' and '.join(missing)} not installed",
                "pip install 'spicebridge[webdav]'",
            )
        await self._start()

    def _check_folder(self) -> None:
        if not self._folder:
            raise EndpointError("share= names no folder", "write share=FOLDER")
        try:
            os.stat(self._folder)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise EndpointError(f"{self.name}: {reason}", "check the path of the folder") from error
        if not os.path.isdir(self._folder):
            raise EndpointError(f"{self.name}: it is no folder", "name the folder that it is in")
        if not os.access(self._folder, os.R_OK | os.X_OK, effective_ids=True):
            raise EndpointError(f"{self.name}: you may not read it", "check its permissions")
        if not self._readonly and not os.access(self._folder, os.W_OK, effective_ids=True):
            raise EndpointError(
                f"{self.name}: you may not write to it", "add readonly=on to share it so"
            )
        self._root = os.path.realpath(self._folder)

    async def accept(self) -> Application:
        """A new connection to the server. One that has died is started again.

        A crash of the server then costs the requests that were under way, and locks; nobody would
        want the share to be gone for good.

        Raises:
            EndpointError: it does not start again.
        """
        ours, theirs = socket.socketpair()
        try:
            async with self._handing_over:
                if not await self._hand_over(theirs):
                    await self._end()
                    await self._start()
                    if not await self._hand_over(theirs):
                        raise EndpointError(f"{self.name}: its server dies at once")
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Application(Stream.of_socket(ours), self.name)

    async def _hand_over(self, sock: socket.socket) -> bool:
        """Gives the server a connection; returns False if it has died."""
        control = self._control
        if control is None:
            raise EndpointError(f"{self.name} is not open")
        while True:
            try:
                socket.send_fds(control, [b"\0"], [sock.fileno()])
            except BlockingIOError:
                await anyio.wait_writable(control)
            except (BrokenPipeError, ConnectionResetError):
                return False
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                await anyio.sleep(0.02)  # it has not taken those before; nothing tells when
            else:
                return True

    async def _start(self) -> None:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        self._control = control
        try:
            with theirs:
                self._process = await anyio.open_process(
                    [
                        sys.executable,
                        "-P",  # the working directory may be anybody's: no modules from there
                        "-m",
                        _SERVER,
                        str(theirs.fileno()),
                        self._root,
                        "on" if self._readonly else "off",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C is for us; it ends when we do
                    pass_fds=(theirs.fileno(),),
                )
            with anyio.fail_after(START_TIMEOUT):
                await anyio.wait_readable(control)
            answer = control.recv(4096)
        except BaseException as error:
            await self._end()
            if isinstance(error, TimeoutError):
                raise EndpointError(f"{self.name}: its server does not start") from None
            if isinstance(error, OSError):
                raise EndpointError(f"{self.name}: {error.strerror}") from error
            raise
        if answer != READY:
            await self._end()
            reason = answer.decode(errors="replace").splitlines() or ["it ended at once"]
            raise EndpointError(f"{self.name}: its server does not start: {reason[0]}")

    async def _end(self) -> None:
        """Lets the server end, and makes it if it does not."""
        self.close()
        process, self._process = self._process, None
        if process is None:
            return
        with anyio.CancelScope(shield=True):
            for force in (process.terminate, process.kill):
                with anyio.move_on_after(EXIT_TIMEOUT):
                    await process.wait()
                if process.returncode is not None:
                    break
                force()
            await process.wait()
            await process.aclose()

    def close(self) -> None:
        """Tells the server to end: it does when this socket is closed."""
        if self._control is not None:
            anyio.notify_closing(self._control)
            self._control.close()
            self._control = None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()
