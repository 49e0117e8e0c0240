"""nginx with its DAV modules, a stock WebDAV server behind a Unix socket.

One process in the foreground, as whoever runs the tests. It keeps an idle connection for an hour,
for spice-webdavd does not heed that a stream has ended on our side.
"""

import socket
from pathlib import Path

from .processes import Process, wait_until

_CONFIG = """
daemon off;
master_process off;
pid pid;
error_log stderr;
load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    keepalive_timeout 1h;
    keepalive_requests 100000;
    server {{
        listen "unix:{socket}";
        root "{folder}";
        dav_methods PUT DELETE MKCOL COPY MOVE;
        dav_ext_methods PROPFIND OPTIONS;
    }}
}}
"""


class Nginx(Process):
    """A running nginx.

    Args:
        state: an empty folder for its socket, its configuration and what it keeps for a moment;
            the caller removes it.
        folder: what it serves.
    """

    def __init__(self, state: Path, folder: Path) -> None:
        self.path = state / "http"
        config = state / "nginx.conf"
        config.write_text(_CONFIG.format(socket=self.path, folder=folder))
        super().__init__(["/usr/sbin/nginx", "-e", "stderr", "-p", state, "-c", config])
        try:
            wait_until(self._listens, what="nginx does not listen")
        except BaseException as error:
            failure = self.error(str(error))
            self.stop()
            raise failure from error

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self.path)) == 0
