"""``python -m spicebridge.endpoints.share_server FD FOLDER on|off``: serves a folder over WebDAV.

FD is a socket (SOCK_SEQPACKET) to the process that started us: we tell it that we are ready, each
connection comes over it as a descriptor (SCM_RIGHTS, unix(7)), and when it ends, so do we. So there
is no address that anybody else could connect to, and nothing that could stay behind. The last
argument tells whether the folder is read-only.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
import threading
from typing import Final

from spicebridge.endpoints.share_server import READY

_PATIENCE: Final = 1.0  # seconds that requests under way have to be given up


def main(control: socket.socket, folder: str, *, readonly: bool) -> None:
    """Serves until the parent ends."""
    from spicebridge.endpoints.share_server.http import Server
    from spicebridge.endpoints.share_server.requests import Application, report

    logging.disable()  # WsgiDAV's tracebacks; `report` tells what matters
    threading.excepthook = lambda what: report(f"a connection failed: {what.exc_value!r}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.chdir("/")  # not to keep a file system busy
    server = Server(Application(folder, readonly=readonly))
    control.send(READY)
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(control, 1, 1)
        except ConnectionResetError:
            break
        if not message:
            break
        for fd in fds:  # none if we have too many: its client then reads end of file
            server.serve_connection(socket.socket(fileno=fd))
    server.end(_PATIENCE)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        try:
            main(control, sys.argv[2], readonly=sys.argv[3] == "on")
        except Exception as error:  # noqa: BLE001 - the parent tells the user, in one line
            try:
                control.send(str(error).encode()[:1000])
            except OSError:  # it has gone
                pass
            sys.exit(1)
