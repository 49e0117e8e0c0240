"""Names and numbers of the SPICE protocol, and the limits we set on sizes from the wire.

Numbers are those of spice-protocol 0.14 (``spice/protocol.h``, ``spice/enums.h``) and keep its
names. The limits at the end are ours; each says what justifies it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

MAGIC: Final = b"REDQ"
VERSION_MAJOR: Final = 2
VERSION_MINOR: Final = 2

MAX_PASSWORD_LENGTH: Final = 60
"""Bytes of a ticket (SPICE_MAX_PASSWORD_LENGTH)."""

TICKET_KEY_BITS: Final = 1024
"""Size of the server's RSA key (SPICE_TICKET_KEY_PAIR_LENGTH)."""

TICKET_PUBKEY_BYTES: Final = TICKET_KEY_BITS // 8 + 34
"""Bytes of the DER SubjectPublicKeyInfo in a link reply (SPICE_TICKET_PUBKEY_BYTES)."""

TICKET_BYTES: Final = TICKET_KEY_BITS // 8
"""Bytes of an encrypted ticket (SpiceLinkEncryptedTicket)."""


class ChannelType(IntEnum):
    """SPICE_CHANNEL_*: the ``channel_type`` byte of a link message."""

    MAIN = 1
    DISPLAY = 2
    INPUTS = 3
    CURSOR = 4
    PLAYBACK = 5
    RECORD = 6
    TUNNEL = 7
    SMARTCARD = 8
    USBREDIR = 9
    PORT = 10
    WEBDAV = 11


USER_DEFINED_START: Final = 128
"""First channel type for users (SPICE_CHANNEL_USER_DEFINED_START, proposed in 2011)."""

MAX_CHANNEL_TYPE: Final = 255
"""It is one byte in the link message."""


class LinkErr(IntEnum):
    """SPICE_LINK_ERR_*: the error of a link reply, and the result of a login."""

    OK = 0
    ERROR = 1
    INVALID_MAGIC = 2
    INVALID_DATA = 3
    VERSION_MISMATCH = 4
    NEED_SECURED = 5
    NEED_UNSECURED = 6
    PERMISSION_DENIED = 7
    BAD_CONNECTION_ID = 8
    CHANNEL_NOT_AVAILABLE = 9


class CommonCap(IntEnum):
    """SPICE_COMMON_CAP_*: bits of the capabilities that every channel has."""

    PROTOCOL_AUTH_SELECTION = 0
    AUTH_SPICE = 1
    AUTH_SASL = 2
    MINI_HEADER = 3


class MainCap(IntEnum):
    """SPICE_MAIN_CAP_*: bits of the capabilities of the main channel."""

    SEMI_SEAMLESS_MIGRATE = 0
    NAME_AND_UUID = 1
    AGENT_CONNECTED_TOKENS = 2
    SEAMLESS_MIGRATE = 3


class SpicevmcCap(IntEnum):
    """SPICE_SPICEVMC_CAP_*: bits of the capabilities of spicevmc channels."""

    DATA_COMPRESS_LZ4 = 0


class AuthMechanism(IntEnum):
    """What a client sends when both sides have PROTOCOL_AUTH_SELECTION."""

    SPICE = CommonCap.AUTH_SPICE
    SASL = CommonCap.AUTH_SASL


class DataCompressionType(IntEnum):
    """SPICE_DATA_COMPRESSION_TYPE_*: the first byte of COMPRESSED_DATA."""

    NONE = 0
    LZ4 = 1


class PortEventType(IntEnum):
    """SPICE_PORT_EVENT_*."""

    OPENED = 0
    CLOSED = 1
    BREAK = 2


class NotifySeverity(IntEnum):
    """SPICE_NOTIFY_SEVERITY_*."""

    INFO = 0
    WARN = 1
    ERROR = 2


class MigrateFlags(IntFlag):
    """SPICE_MIGRATE_*: the flags of a MIGRATE message."""

    NEED_FLUSH = 1
    NEED_DATA_TRANSFER = 2


class Msg(IntEnum):
    """Message types that this code handles by number, both directions (SPICE_MSG_*, SPICE_MSGC_*).

    The names of all messages are in the tables of ``messages.py``.
    """

    # from the server, on every channel
    MIGRATE = 1
    MIGRATE_DATA = 2
    SET_ACK = 3
    PING = 4
    WAIT_FOR_CHANNELS = 5
    DISCONNECTING = 6
    NOTIFY = 7
    # from the server, on the main channel
    MAIN_INIT = 103
    MAIN_CHANNELS_LIST = 104
    # both ways, on spicevmc channels
    DATA = 101
    COMPRESSED_DATA = 102
    # from the server, on ports
    PORT_INIT = 201
    PORT_EVENT = 202


class MsgC(IntEnum):
    """Message types from the client that this code handles by number (SPICE_MSGC_*)."""

    ACK_SYNC = 1
    ACK = 2
    PONG = 3
    MIGRATE_FLUSH_MARK = 4
    MIGRATE_DATA = 5
    DISCONNECTING = 6
    MAIN_ATTACH_CHANNELS = 104
    COMPRESSED_DATA = 102
    PORT_EVENT = 201


class MigrationMsg(IntEnum):
    """SPICE_MSG_MAIN_MIGRATE_*: what a server says of live migration on the main channel.

    Apart from `Msg`, as other channels have other messages of these numbers; likewise below.
    """

    BEGIN = 101
    CANCEL = 102
    SWITCH_HOST = 111
    END = 112
    BEGIN_SEAMLESS = 116
    DST_SEAMLESS_ACK = 117
    DST_SEAMLESS_NACK = 118


class MigrationMsgC(IntEnum):
    """SPICE_MSGC_MAIN_MIGRATE_*: what a client says of it there."""

    CONNECTED = 102
    CONNECT_ERROR = 103
    END = 109
    DST_DO_SEAMLESS = 110
    CONNECTED_SEAMLESS = 111


def channel_type_name(channel_type: int) -> str:
    """Name of a channel type as users write it: ``port``, ``webdav``, or the number."""
    try:
        return ChannelType(channel_type).name.lower()
    except ValueError:
        return str(channel_type)


def channel_types(name: str) -> frozenset[int]:
    """The channel types that a word stands for: a name, a user-defined number, or ``all``.

    Raises:
        ValueError: it stands for none.
    """
    if name == "all":
        return frozenset(range(1, MAX_CHANNEL_TYPE + 1))
    if name.upper() in ChannelType.__members__:
        return frozenset({ChannelType[name.upper()]})
    if name.isascii() and name.isdigit() and USER_DEFINED_START <= int(name) <= MAX_CHANNEL_TYPE:
        return frozenset({int(name)})
    raise ValueError(name)


# Limits on what a peer may make us hold.

MAX_LINK_BODY: Final = 4096
"""Bytes of a link message or reply after its header. libspice-server takes no more than this."""

MAX_CAPS_WORDS: Final = 32
"""32-bit words of capabilities in each of the two sets. spice-protocol has used one of each."""

RECEIVE_BUFFER: Final = 256 * 1024
"""Bytes read from a channel at once. The largest message seen from libspice-server is 65,568."""

MAX_MESSAGE: Final = 128 * 1024
"""Bytes of a message that must be held whole (all but DATA). Twice what libspice-server sends."""

MAX_DATA: Final = 64 * 1024 * 1024
"""Bytes of one DATA message. It is passed on as it comes, so this only tells garbage from data."""

MAX_UNCOMPRESSED: Final = 1024 * 1024
"""Bytes that one COMPRESSED_DATA may unfold to. libspice-server sends at most 65,568."""

MAX_HOST_NAME: Final = 1024
"""Bytes of the name of a host that a machine moves to, with its NUL. DNS has 255 at most."""

MAX_CERT_SUBJECT: Final = 4096
"""Bytes of the subject of its certificate, with the NUL."""

MAX_MIGRATE_DATA: Final = 64 * 1024 * 1024
"""Bytes of the state of a channel that moves, which is passed on as it comes. libspice-server has
in it what the guest has not taken yet: up to 128 DATA, of `SEND_DATA` bytes each where we sent
them."""

MAX_IGNORED: Final = 4 * 1024 * 1024
"""Bytes of a message that is read and ignored. QEMU's main channel sends pings of 256,000."""

MAX_CHANNELS: Final = 4096
"""Channels in one CHANNELS_LIST. A busy VM has fewer than 50."""

MAX_PORT_NAME: Final = 1024
"""Bytes of a port's name, its NUL included. virtio-serial and QEMU use far less than 256."""

MAX_NOTIFY_TEXT: Final = 4096
"""Bytes of the text in NOTIFY."""

MAX_SASL_MECHANISMS: Final = 1024
"""Bytes of the list of SASL mechanisms. spice-gtk takes 300; all that Cyrus has are fewer."""

MAX_SASL_DATA: Final = 1024 * 1024
"""Bytes of one SASL message. libspice-server and spice-gtk set the same limit."""

MAX_SASL_REASON: Final = 1024
"""Bytes of the reason why a SASL login is refused. libspice-server sends 22."""

MAX_SASL_TOKEN: Final = 128 * 1024
"""Bytes of a frame of SASL's security layer that we let the server send. spice-gtk says 100,000."""

MAX_SCRAM_MESSAGE: Final = 4096
"""Bytes of a SCRAM message. Those of Cyrus SASL have fewer than 200."""

SCRAM_ITERATIONS: Final = range(4096, 1_000_001)
"""How often a server may have us hash the password: RFC 5802's least; half a second's worth."""

SEND_DATA: Final = 256 * 1024
"""Bytes that we put in one DATA message, at most.

Neither libspice-server nor spice-client-glib has a bound. Four times what they send themselves
saves the server a quarter of its work, and spice-client-glib sends as much.
"""

MAX_STORED: Final = 4096
"""Bytes that we put in one COMPRESSED_DATA, at most, as they are."""
