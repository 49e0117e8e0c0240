"""spicebridge turns SPICE channels of virtual machines into sockets.

The Python API, all of it; the command line uses nothing else::

    async with open_session(parse_uri("spice://127.0.0.1:5900")) as session:
        async for info in session.ports():
            print(info.channel.name, info.port)
        async with await session.open_channel(ChannelInfo(10, 0)) as channel:
            await channel.send(b"info status\\n")
            print(await channel.read())
"""

from spicebridge.bridge.report import BridgeStatus, Ready, StreamCount
from spicebridge.bridge.serving import serve_bridges
from spicebridge.bridge.spec import BridgeSpec, ChannelWanted, Limits
from spicebridge.bridge.supervisor import run_bridges
from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.client.session import ChannelInfo, PortInfo, Session, open_session
from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.endpoints.inherited import InheritedEndpoint
from spicebridge.endpoints.pipe import PipeEndpoint
from spicebridge.endpoints.process import PASSWORD_VARIABLE, ProcessEndpoint
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
    UsageError,
    one_error,
)
from spicebridge.protocol.constants import (
    MAX_CHANNEL_TYPE,
    USER_DEFINED_START,
    ChannelType,
    channel_type_name,
)
from spicebridge.protocol.events import PortEvent, PortInit
from spicebridge.transport.address import (
    DEFAULT_URI,
    Address,
    TcpAddress,
    UnixAddress,
    parse_host_port,
    parse_uri,
)
from spicebridge.transport.connect import CONNECT_TIMEOUT

__version__ = "0.1.0"

__all__ = [
    "CONNECT_TIMEOUT",
    "DEFAULT_URI",
    "MAX_CHANNEL_TYPE",
    "PASSWORD_VARIABLE",
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
    "Endpoint",
    "EndpointError",
    "InheritedEndpoint",
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
    "PtyEndpoint",
    "Ready",
    "Session",
    "SessionLostError",
    "ShareEndpoint",
    "SpicebridgeError",
    "StdioEndpoint",
    "StreamCount",
    "TcpAddress",
    "UnixAddress",
    "UsageError",
    "__version__",
    "channel_type_name",
    "one_error",
    "open_session",
    "parse_host_port",
    "parse_uri",
    "run_bridges",
    "serve_bridges",
]
