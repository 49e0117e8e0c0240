"""spicebridge turns SPICE channels of virtual machines into sockets.

The Python API, all of it; the command line uses nothing else::

    async with open_session(parse_uri("spice://127.0.0.1:5900")) as session:
        async for info in session.ports():
            print(info.channel.name, info.port)
        async with await session.open_channel(ChannelInfo(10, 0)) as channel:
            await channel.send(b"info status\\n")
            print(await channel.read())

Each name is imported from its module when it is first used (PEP 562), so that a program starts with
what it needs alone: all of it would cost the start of a bridge a tenth of its time, and 5 MB.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spicebridge.bridge.report import BridgeStatus, Ready, StreamCount
    from spicebridge.bridge.retry import FIRST_DELAY, TAKEOVER_LIMIT
    from spicebridge.bridge.serving import serve_bridges
    from spicebridge.bridge.spec import BridgeSpec, ChannelWanted, Limits
    from spicebridge.bridge.supervisor import run_bridges
    from spicebridge.channel import Channel, ChannelClosedError
    from spicebridge.client.checking import check_target
    from spicebridge.client.session import ChannelInfo, PortInfo, Session, open_session
    from spicebridge.endpoints.base import Application, Endpoint
    from spicebridge.endpoints.environment import (
        PASSWORD_VARIABLE,
        PROXY_VARIABLE,
        URI_VARIABLE,
        environment,
    )
    from spicebridge.endpoints.inherited import InheritedEndpoint, InheritedListener, is_listening
    from spicebridge.endpoints.pipe import PipeEndpoint
    from spicebridge.endpoints.process import ProcessEndpoint
    from spicebridge.endpoints.pty import PtyEndpoint
    from spicebridge.endpoints.share import ShareEndpoint
    from spicebridge.endpoints.sockets import ConnectingEndpoint, ListeningEndpoint
    from spicebridge.endpoints.stdio import StdioEndpoint
    from spicebridge.errors import (
        ApplicationError,
        ChannelBusyError,
        ChannelNotFoundError,
        ConnectError,
        EndpointError,
        LinkRefusedError,
        LoginError,
        ProtocolError,
        SessionLostError,
        SpicebridgeError,
        TakeoverError,
        TlsError,
        UsageError,
        one_error,
        printable,
    )
    from spicebridge.protocol.constants import (
        MAX_CHANNEL_TYPE,
        USER_DEFINED_START,
        ChannelType,
        channel_type_name,
        channel_types,
    )
    from spicebridge.protocol.events import PortEvent, PortInit
    from spicebridge.server.limits import ServerLimits
    from spicebridge.server.tls import server_context
    from spicebridge.transport.address import (
        Address,
        TcpAddress,
        UnixAddress,
        WebAddress,
        parse_host_port,
    )
    from spicebridge.transport.connection_file import (
        ConnectionFile,
        delete_connection_file,
        read_connection_file,
    )
    from spicebridge.transport.proxy_address import ProxyAddress, parse_proxy
    from spicebridge.transport.steps import CONNECT_TIMEOUT
    from spicebridge.transport.target import Target, Trust
    from spicebridge.transport.uri import DEFAULT_URI, parse_uri

__version__ = "0.1.0"

__all__ = [
    "CONNECT_TIMEOUT",
    "DEFAULT_URI",
    "FIRST_DELAY",
    "MAX_CHANNEL_TYPE",
    "PASSWORD_VARIABLE",
    "PROXY_VARIABLE",
    "TAKEOVER_LIMIT",
    "URI_VARIABLE",
    "USER_DEFINED_START",
    "Address",
    "Application",
    "ApplicationError",
    "BridgeSpec",
    "BridgeStatus",
    "Channel",
    "ChannelBusyError",
    "ChannelClosedError",
    "ChannelInfo",
    "ChannelNotFoundError",
    "ChannelType",
    "ChannelWanted",
    "ConnectError",
    "ConnectingEndpoint",
    "ConnectionFile",
    "Endpoint",
    "EndpointError",
    "InheritedEndpoint",
    "InheritedListener",
    "Limits",
    "LinkRefusedError",
    "ListeningEndpoint",
    "LoginError",
    "PipeEndpoint",
    "PortEvent",
    "PortInfo",
    "PortInit",
    "ProcessEndpoint",
    "ProtocolError",
    "ProxyAddress",
    "PtyEndpoint",
    "Ready",
    "ServerLimits",
    "Session",
    "SessionLostError",
    "ShareEndpoint",
    "SpicebridgeError",
    "StdioEndpoint",
    "StreamCount",
    "TakeoverError",
    "Target",
    "TcpAddress",
    "TlsError",
    "Trust",
    "UnixAddress",
    "UsageError",
    "WebAddress",
    "__version__",
    "channel_type_name",
    "channel_types",
    "check_target",
    "delete_connection_file",
    "environment",
    "is_listening",
    "one_error",
    "open_session",
    "parse_host_port",
    "parse_proxy",
    "parse_uri",
    "printable",
    "read_connection_file",
    "run_bridges",
    "serve_bridges",
    "server_context",
]

_NAMES = {
    "bridge.report": ("BridgeStatus", "Ready", "StreamCount"),
    "bridge.serving": ("serve_bridges",),
    "bridge.retry": ("FIRST_DELAY", "TAKEOVER_LIMIT"),
    "bridge.spec": ("BridgeSpec", "ChannelWanted", "Limits"),
    "bridge.supervisor": ("run_bridges",),
    "channel": ("Channel", "ChannelClosedError"),
    "client.checking": ("check_target",),
    "client.session": ("ChannelInfo", "PortInfo", "Session", "open_session"),
    "endpoints.base": ("Application", "Endpoint"),
    "endpoints.environment": (
        "PASSWORD_VARIABLE",
        "PROXY_VARIABLE",
        "URI_VARIABLE",
        "environment",
    ),
    "endpoints.inherited": ("InheritedEndpoint", "InheritedListener", "is_listening"),
    "endpoints.pipe": ("PipeEndpoint",),
    "endpoints.process": ("ProcessEndpoint",),
    "endpoints.pty": ("PtyEndpoint",),
    "endpoints.share": ("ShareEndpoint",),
    "endpoints.sockets": ("ConnectingEndpoint", "ListeningEndpoint"),
    "endpoints.stdio": ("StdioEndpoint",),
    "errors": (
        "ApplicationError",
        "ChannelBusyError",
        "ChannelNotFoundError",
        "ConnectError",
        "EndpointError",
        "LinkRefusedError",
        "LoginError",
        "ProtocolError",
        "SessionLostError",
        "SpicebridgeError",
        "TakeoverError",
        "TlsError",
        "UsageError",
        "one_error",
        "printable",
    ),
    "protocol.constants": (
        "MAX_CHANNEL_TYPE",
        "USER_DEFINED_START",
        "ChannelType",
        "channel_type_name",
        "channel_types",
    ),
    "protocol.events": ("PortEvent", "PortInit"),
    "server.limits": ("ServerLimits",),
    "server.tls": ("server_context",),
    "transport.address": ("Address", "TcpAddress", "UnixAddress", "WebAddress", "parse_host_port"),
    "transport.connection_file": (
        "ConnectionFile",
        "delete_connection_file",
        "read_connection_file",
    ),
    "transport.proxy_address": ("ProxyAddress", "parse_proxy"),
    "transport.steps": ("CONNECT_TIMEOUT",),
    "transport.target": ("Target", "Trust"),
    "transport.uri": ("DEFAULT_URI", "parse_uri"),
}
"""What each module has of the API; a test holds it against the imports above."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # or a type checker would believe that every name is here

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # the next time it is there
        return value


def __dir__() -> list[str]:
    return __all__
