#!/usr/bin/python3
"""spice-client-glib, the library under virt-viewer, as a client of a SPICE server.

The lower half is a script for the system's Python, which has the bindings (Debian: python3-gi,
gir1.2-spiceclientglib-2.0); the upper half, for tests, runs it. The script prints JSON lines:

    {"channels": [{"type": 10, "id": 0, "name": "…", "opened": true}, …]}   `list`
    {"port": NAME, "opened": BOOL}    `exchange`: when linked, and when the guest opens or closes
    {"received": N}                   `exchange`: all is sent, and N bytes, no less than were
                                      expected, have come; it stays linked until it is ended
    {"port": NAME, "opened": BOOL}    `share`: as for `exchange`, of webdav; it serves the folder
                                      itself (libphodav) until it is ended
    {"error": TEXT}                   then it ends

`--set NAME=VALUE` sets a property of the SpiceSession that is a text or a list of texts, such as
ca-file, cert-subject (which then stands for the host's name, as in virt-viewer), ciphers, proxy
(http or https), secure-channels or username. The proxy has no say over Unix sockets; $SPICE_PROXY
is the same. That of an https proxy must be a certificate that the system trusts.

The library cannot drain on leaving: a server may lose what it has not taken when the client
goes, so look at the server's end before the exchange is left. And libspice-server 0.15.1 crashes
when a client leaves a port before it was sent PORT_INIT, so nothing begins before all have names.

Names and `opened` are null for channels that are no ports.

Two traps of the bindings: `connect` of a SpiceChannel or SpiceSession is the library's own, so
signals need GObject's; and spice_port_channel_write_async keeps a reference to the data, which
the bindings free too early, so it is called through ctypes.
"""

import argparse
import ctypes
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ != "__main__":  # a script has no package to import from
    from .processes import JsonProcess, Message

    class GlibClient(JsonProcess):
        """The running script."""

        def __init__(
            self,
            uri: str,
            *arguments: str | Path,
            password_file: Path | None = None,
            properties: Mapping[str, str] | None = None,
        ) -> None:
            login = ["--password-file", str(password_file)] if password_file else []
            login += [f"--set={name}={value}" for name, value in (properties or {}).items()]
            super().__init__(["/usr/bin/python3", __file__, "--uri", uri, *login, *arguments])

    def list_channels(
        uri: str,
        *,
        password_file: Path | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> list[Message]:
        """The channels that the server at `uri` offers, ports with their names."""
        with GlibClient(uri, "list", password_file=password_file, properties=properties) as client:
            answer = client.wait_messages(
                lambda messages: next((m for m in messages if "channels" in m), None),
                what="no list of channels",
            )
        channels: list[Message] = answer["channels"]
        return channels

    def exchange(
        uri: str,
        port: str,
        *,
        send: Path,
        expect: int,
        out: Path,
        window: int = 0,
        all_channels: bool = False,
        password_file: Path | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> GlibClient:
        """Start to send a file to a port, while `expect` bytes from it go into another file.

        An echo needs a `window`: no more than that many bytes are under way without an answer. The
        library's channel does not read while its socket takes nothing, and so they would wait for
        each other once all buffers are full, which those of a Unix socket soon are.

        The session can migrate with `all_channels`: all that the server offers stay linked. For the
        library links all of them at the target, waits until the source has let go of each, and
        takes part in no other migration before.

        Wait for `received=expect` to see the end of it, for `opened=…` to see the guest's side
        change. A webdav channel is no port here: the library takes its frames apart.
        """
        options = ["--port", port, "--expect-bytes", str(expect), "--window", str(window)]
        options += ["--all-channels"] if all_channels else []
        return GlibClient(
            uri,
            "exchange",
            *options,
            "--send-file",
            send,
            "--out-file",
            out,
            password_file=password_file,
            properties=properties,
        )

    def share(uri: str, folder: Path, *, read_only: bool = False) -> GlibClient:
        """Share a folder with the guest through webdav, as virt-viewer does.

        Wait for `opened=True` to know that the guest's spice-webdavd is there.
        """
        option = ["--read-only"] if read_only else []
        return GlibClient(uri, "share", folder, *option)


_MESSAGE_SIZE = 64 * 1024
_WEBDAV = 11
_PORT_TYPES = (10, _WEBDAV)
"""Port and webdav: both are a SpicePortChannel."""


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--uri", required=True)
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--set", action="append", default=[])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    exchanging = commands.add_parser("exchange")
    exchanging.add_argument("--port", required=True)
    exchanging.add_argument("--send-file", type=Path, required=True)
    exchanging.add_argument("--expect-bytes", type=int, required=True)
    exchanging.add_argument("--window", type=int, required=True)
    exchanging.add_argument("--out-file", type=Path, required=True)
    exchanging.add_argument("--all-channels", action="store_true")
    sharing = commands.add_parser("share")
    sharing.add_argument("folder", type=Path)
    sharing.add_argument("--read-only", action="store_true")
    options = parser.parse_args()
    password = options.password_file.read_text().rstrip("\n") if options.password_file else None
    client: _Client
    match options.command:
        case "list":
            client = _Lister()
        case "exchange":
            client = _Exchanger(options)
        case _:
            client = _Sharer(options)
    client.run(options.uri, password, dict(each.split("=", 1) for each in options.set))


def _say(**message: object) -> None:
    print(json.dumps(message), flush=True)


class _Client:
    """A session that links every port, to learn its name."""

    def __init__(self, *, all_channels: bool = False) -> None:
        self.all_channels = all_channels
        gi = import_module("gi")
        gi.require_version("SpiceClientGLib", "2.0")
        self._glib = import_module("gi.repository.GLib")
        self._spice = import_module("gi.repository.SpiceClientGLib")
        self._on: Callable[..., int] = import_module("gi.repository.GObject").Object.connect
        self._loop = self._glib.MainLoop()
        self._session = self._spice.Session()
        self.channels: list[Any] = []

    def run(self, uri: str, password: str | None, properties: dict[str, str]) -> None:
        self._session.props.uri = uri  # first, for it clears username and password
        self._set(properties)
        if password is not None:
            self._session.props.password = password
        self._on(self._session, "channel-new", self._channel_new)
        self._spice.Session.connect(self._session)
        self._loop.run()
        self._session.disconnect()

    def _set(self, properties: dict[str, str]) -> None:
        for name, value in properties.items():
            is_list = self._session.find_property(name).value_type.name == "GStrv"
            self._session.set_property(name, value.split(",") if is_list else value)
        if "cert-subject" in properties:
            self._session.props.verify = self._spice.SessionVerify.SUBJECT

    def end(self, **message: object) -> None:
        _say(**message)
        self._loop.quit()

    def ready(self, ports: list[Any]) -> None:
        """All ports are linked and have their names."""
        raise NotImplementedError

    def data_came(self, port: Any, data: int, size: int) -> None:
        """A port has said something, which may be before all are ready."""

    def _channel_new(self, _: object, channel: Any) -> None:
        self.channels.append(channel)
        self._on(channel, "channel-event", self._channel_event)
        if channel.props.channel_type in _PORT_TYPES:
            self._on(channel, "notify::port-name", self._named)
            self._on(channel, "port-data", self.data_came)
        if self.all_channels or channel.props.channel_type in _PORT_TYPES:
            self._spice.Channel.connect(channel)

    def _named(self, *_: object) -> None:
        # All channels of one CHANNELS_LIST are made before the first of them is linked.
        ports = [c for c in self.channels if c.props.channel_type in _PORT_TYPES]
        if all(port.props.port_name for port in ports):
            self.ready(ports)

    def _channel_event(self, channel: Any, event: Any) -> None:
        if channel in self.channels and event != self._spice.ChannelEvent.OPENED:
            kind = channel.props.channel_type
            self.end(error=f"channel of type {kind}: {event.value_nick}")


class _Lister(_Client):
    def ready(self, ports: list[Any]) -> None:
        self.end(channels=[_describe(channel) for channel in self.channels])


def _describe(channel: Any) -> dict[str, object]:
    is_port = channel.props.channel_type in _PORT_TYPES
    return {
        "type": channel.props.channel_type,
        "id": channel.props.channel_id,
        "name": channel.props.port_name if is_port else None,
        "opened": channel.props.port_opened if is_port else None,
    }


class _OnePort(_Client):
    """A session that keeps only the port that is wanted, and tells when it opens and closes."""

    def __init__(self, *, all_channels: bool = False) -> None:
        super().__init__(all_channels=all_channels)
        self.port: Any = None

    def ready(self, ports: list[Any]) -> None:
        self.port = next(filter(self.wanted, ports), None)
        if self.port is None:
            self.end(error="there is no such port")
            return
        for port in ports:
            if port != self.port and not self.all_channels:
                self.channels.remove(port)
                port.disconnect(self._spice.ChannelEvent.NONE)
        self._on(self.port, "notify::port-opened", lambda *_: self._opened())
        self._opened()

    def _opened(self) -> None:
        opened = self.port.props.port_opened
        _say(port=self.port.props.port_name, opened=opened)
        self.opened(opened)

    def wanted(self, port: Any) -> bool:
        """Whether this is the port to keep."""
        raise NotImplementedError

    def opened(self, opened: bool) -> None:
        """The guest has opened or closed it."""


class _Sharer(_OnePort):
    """The library does all the work: it serves its session's folder on the webdav channel."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self._session.props.shared_dir = str(options.folder)
        self._session.props.share_dir_ro = options.read_only

    def wanted(self, port: Any) -> bool:
        return bool(port.props.channel_type == _WEBDAV)


class _Exchanger(_OnePort):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(all_channels=options.all_channels)
        self._options = options
        self._data = options.send_file.read_bytes()
        self._out = options.out_file.open("wb")
        self._sending = False
        self._waiting = False
        self._message = b""
        self._sent = self._received = 0
        library = ctypes.CDLL("libspice-client-glib-2.0.so.8")
        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._written = callback(self._message_written)
        self._write_async = library.spice_port_channel_write_async
        self._write_async.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
            ctypes.c_void_p, callback, ctypes.c_void_p,
        ]  # fmt: skip

    def wanted(self, port: Any) -> bool:
        return bool(port.props.port_name == self._options.port)

    def opened(self, opened: bool) -> None:
        if opened and not self._sending:
            self._sending = True
            self._send()

    def _send(self) -> None:
        window = self._options.window
        self._waiting = bool(window) and self._sent - self._received >= window
        if self._waiting:
            return
        self._message = self._data[self._sent : self._sent + _MESSAGE_SIZE]
        if not self._message:
            self._say_when_all_is_done()
            return
        # The hash of a GObject is its address.
        pointer = hash(self.port)
        size = len(self._message)
        self._write_async(pointer, self._message, size, None, self._written, None)

    def _message_written(self, *_: object) -> None:
        self._sent += len(self._message)
        self._send()

    def data_came(self, port: Any, data: int, size: int) -> None:
        if port.props.port_name != self._options.port:
            return
        self._out.write(ctypes.string_at(data, size))
        self._received += size
        if self._waiting:
            self._send()
        self._say_when_all_is_done()

    def _say_when_all_is_done(self) -> None:
        if (
            self._sending
            and self._sent == len(self._data)
            and self._received >= self._options.expect_bytes
        ):
            self._out.flush()
            _say(received=self._received)


if __name__ == "__main__":
    _main()
