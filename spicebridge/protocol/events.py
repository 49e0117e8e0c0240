"""What a peer says, one frozen dataclass a message (``spice.proto`` of spice-common)."""

from __future__ import annotations

from dataclasses import dataclass

from spicebridge.protocol.constants import MigrateFlags, NotifySeverity, PortEventType


@dataclass(frozen=True)
class Migrate:
    """MIGRATE: this channel is to go on at another server."""

    flags: MigrateFlags


@dataclass(frozen=True)
class MigrateData:
    """MIGRATE_DATA: the state of this channel, for the other server; `size` bytes follow."""

    size: int


@dataclass(frozen=True)
class MigrationTarget:
    """SpiceMigrationDstInfo: where a machine moves to.

    Attributes:
        host: name or address.
        port: for plain connections; None where there is none.
        tls_port: for TLS; likewise.
        cert_subject: of its certificate; empty where the host's name tells enough.
    """

    host: str
    port: int | None
    tls_port: int | None
    cert_subject: str


@dataclass(frozen=True)
class MigrateBegin:
    """MAIN_MIGRATE_BEGIN and MAIN_MIGRATE_BEGIN_SEAMLESS: link everything there, too.

    Attributes:
        target: where.
        version: of the state that channels will hand over; None where they will not.
    """

    target: MigrationTarget
    version: int | None = None


@dataclass(frozen=True)
class MigrateCancel:
    """MAIN_MIGRATE_CANCEL: the machine stays."""


@dataclass(frozen=True)
class MigrateEnd:
    """MAIN_MIGRATE_END: the machine has moved, without the state of the channels."""


@dataclass(frozen=True)
class MigrateSwitchHost:
    """MAIN_MIGRATE_SWITCH_HOST: the machine has moved; begin anew there."""

    target: MigrationTarget


@dataclass(frozen=True)
class SeamlessAck:
    """MAIN_MIGRATE_DST_SEAMLESS_ACK or _NACK: whether the other server takes that state."""

    agreed: bool


@dataclass(frozen=True)
class SetAck:
    """SET_ACK: acknowledge every `window` messages; 0 for none."""

    generation: int
    window: int


@dataclass(frozen=True)
class Ping:
    """PING: answer with PONG, same id and timestamp. Any payload behind them is padding."""

    id: int
    timestamp: int


@dataclass(frozen=True)
class WaitForChannels:
    """WAIT_FOR_CHANNELS: (type, id, serial of a message) that other channels must have reached."""

    waits: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Disconnecting:
    """DISCONNECTING: the peer is about to close, and why."""

    timestamp: int
    reason: int


@dataclass(frozen=True)
class Notify:
    """NOTIFY: a text for the user."""

    severity: NotifySeverity
    what: int
    text: str


@dataclass(frozen=True)
class MainInit:
    """MAIN_INIT: the session begins; `session_id` links the other channels."""

    session_id: int


@dataclass(frozen=True)
class ChannelsList:
    """MAIN_CHANNELS_LIST: (type, id) of every channel on offer."""

    channels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Unfolded:
    """COMPRESSED_DATA, decompressed."""

    data: bytes


@dataclass(frozen=True)
class PortInit:
    """PORT_INIT: the name of this port, and whether the guest has it open."""

    name: str
    opened: bool


@dataclass(frozen=True)
class PortEvent:
    """PORT_EVENT: the other side opened or closed the port, or sent a break."""

    event: PortEventType


@dataclass(frozen=True)
class AckSync:
    """ACK_SYNC: the client has seen SET_ACK of this generation."""

    generation: int


@dataclass(frozen=True)
class Ack:
    """ACK: the client has taken another window of messages."""


@dataclass(frozen=True)
class Pong:
    """PONG: the answer to a PING."""

    id: int
    timestamp: int


@dataclass(frozen=True)
class AttachChannels:
    """MAIN_ATTACH_CHANNELS: the client wants the list of channels."""


@dataclass(frozen=True)
class Ignored:
    """A message that means nothing to us."""

    name: str


Event = (
    Migrate
    | MigrateData
    | MigrateBegin
    | MigrateCancel
    | MigrateEnd
    | MigrateSwitchHost
    | SeamlessAck
    | SetAck
    | Ping
    | WaitForChannels
    | Disconnecting
    | Notify
    | MainInit
    | ChannelsList
    | Unfolded
    | PortInit
    | PortEvent
    | AckSync
    | Ack
    | Pong
    | AttachChannels
    | Ignored
)
