"""nginx: a stock WebDAV server behind a Unix socket, and a reverse proxy for WebSockets.

One process in the foreground, as whoever runs the tests.
"""

import socket
from collections.abc import Mapping
from pathlib import Path

from .certificates import CertificateFiles
from .listening import ListeningProcess
from .processes import Process, wait_until

_COMMON = """
daemon off;
master_process off;
pid pid;
error_log stderr;
"""
_TEMPORARY = """
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
"""
_DAV_CONFIG = """
{common}
load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
events {{ worker_connections 2048; }}
http {{
    {temporary}
    access_log off;
    client_max_body_size 0;
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
_PROXY_CONFIG = """
{common}
events {{ }}
http {{
    {temporary}
    log_format connection "$uri $status";
    access_log access.log connection;
    server {{
        listen 127.0.0.1:{listen};
        {tls}
        location / {{ return 404; }}
        {routes}
    }}
}}
"""
_ROUTE = """
        location = "{path}" {{
            proxy_pass http://127.0.0.1:{port};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout 1h;
        }}
"""


class Nginx(Process):
    """nginx with its DAV modules.

    It keeps an idle connection for an hour, for spice-webdavd does not heed that a stream has ended
    on our side.

    Args:
        state: an empty folder for its socket, its configuration and what it keeps for a moment;
            the caller removes it.
        folder: what it serves.
    """

    def __init__(self, state: Path, folder: Path) -> None:
        self.path = state / "http"
        config = state / "nginx.conf"
        config.write_text(
            _DAV_CONFIG.format(
                common=_COMMON, temporary=_TEMPORARY, socket=self.path, folder=folder
            )
        )
        super().__init__(_command(state, config))
        try:
            wait_until(self._listens, what="nginx does not listen")
        except BaseException as error:
            failure = self.error(str(error))
            self.stop()
            raise failure from error

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self.path)) == 0


class WebSocketProxy(ListeningProcess):
    """nginx in front of servers that speak WebSocket, as a web server with many machines is.

    Args:
        state: an empty folder for its configuration and its log; the caller removes it.
        routes: the TCP port of 127.0.0.1 for each path, such as /vm1/spice; all else is 404.
        certificate: take TLS with it, which makes this wss: instead of ws:.
    """

    def __init__(
        self, state: Path, routes: Mapping[str, int], *, certificate: CertificateFiles | None = None
    ) -> None:
        config = state / "nginx.conf"
        self._log = state / "access.log"
        tls = ""
        if certificate:
            tls = f'ssl_certificate "{certificate.cert}"; ssl_certificate_key "{certificate.key}";'
        fields = {
            "common": _COMMON,
            "temporary": _TEMPORARY,
            "tls": tls,
            "routes": "".join(_ROUTE.format(path=path, port=routes[path]) for path in routes),
        }

        def command(port: int) -> list[str | Path]:
            listen = f"{port} ssl" if certificate else f"{port}"
            config.write_text(_PROXY_CONFIG.format(**fields, listen=listen))
            return _command(state, config)

        super().__init__(command)

    def connections(self) -> list[str]:
        """The requests that have ended, `PATH STATUS` each: a WebSocket's is 101."""
        return self._log.read_text().splitlines()


def _command(state: Path, config: Path) -> list[str | Path]:
    return ["/usr/sbin/nginx", "-e", "stderr", "-p", state, "-c", config]
