"""The commands, as Typer reads and explains them. Bridging is what happens when none is named.

Importing this costs a start as much as all the rest: `program` does it only when it has to, see
`plain`. What a command needs beside Typer is imported by the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from typer.core import TyperGroup, TyperOption

from spicebridge import (
    CONNECT_TIMEOUT,
    TAKEOVER_LIMIT,
    Ready,
    Target,
    TcpAddress,
    UnixAddress,
    UsageError,
    __version__,
    parse_host_port,
)
from spicebridge.cli.bridging import (
    RECONNECT_MAX,
    BridgeOptions,
    bridge,
    parse_specs,
    set_up_for,
)
from spicebridge.cli.log import LogFormat, show_steps
from spicebridge.cli.options import (
    CaFileOption,
    ConnectTimeoutOption,
    CustomChannelOption,
    HostSubjectOption,
    IdleTimeoutOption,
    InsecureTlsOption,
    LogFormatOption,
    PasswordCommandOption,
    PasswordFileOption,
    PinnedKeyOption,
    ProxyOption,
    QuietOption,
    ReadyFdOption,
    ReconnectOption,
    SaslMechanismOption,
    SecureChannelsOption,
    ShareOption,
    TakeoverLimitOption,
    TlsCiphersOption,
    UriArgument,
    VerboseOption,
)
from spicebridge.cli.output import set_up_output
from spicebridge.cli.password import GivenPassword, with_password
from spicebridge.cli.running import run_until_signal
from spicebridge.cli.spec import socket_mode
from spicebridge.cli.target import ReachOptions, server_target

_BRIDGE = "bridge"  # the command that needs no name


class _DefaultCommandGroup(TyperGroup):
    """Takes a command line without a command for one of ``bridge``, and shows its options.

    Options may stand before a command's name (``spicebridge -v list``), as in most programs.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # its value is optional, and stands behind an equals sign, as GNU programs have it
        args = [f"{word}={RECONNECT_MAX}" if word == "--reconnect" else word for word in args]
        if args not in (["--help"], ["--version"]):
            command = self._command_index(args)
            if command is None:
                args = [_BRIDGE, *args]
            else:
                args = [args[command], *args[:command], *args[command + 1 :]]
        return super().parse_args(ctx, args)

    def _command_index(self, args: list[str]) -> int | None:
        """Where the name of a command stands: the first word that is no option's value."""
        with_value = {
            name
            for command in self.commands.values()
            for option in command.params
            if isinstance(option, TyperOption) and not (option.is_flag or option.count)
            for name in option.opts
        }
        words = iter(enumerate(args))
        for index, word in words:
            if word == "--":
                return None
            if word in with_value:
                next(words, None)
            elif not word.startswith("-"):
                return index if word in self.commands else None
        return None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        own = self.params
        self.params = [*self.commands[_BRIDGE].params, *own]
        try:
            super().format_help(ctx, formatter)
        finally:
            self.params = own

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        del ctx
        return ["[OPTIONS] [URI] | COMMAND [ARGS]..."]


app = typer.Typer(
    name="spicebridge", cls=_DefaultCommandGroup, add_completion=False, rich_markup_mode=None
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spicebridge {__version__}")
        raise typer.Exit


@app.callback(
    help="Turn SPICE channels of a virtual machine into sockets, FIFOs, terminals or programs.",
    epilog="See spicebridge(1) for the keys of SPEC, exit codes and examples.",
)
def _spicebridge(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
            show_default=False,
        ),
    ] = False,
) -> None:
    del version


@app.command(_BRIDGE, hidden=True)
def _bridge(
    uri: UriArgument = None,
    custom_channel: CustomChannelOption = None,
    share: ShareOption = None,
    password_file: PasswordFileOption = None,
    password_command: PasswordCommandOption = None,
    ca_file: CaFileOption = None,
    host_subject: HostSubjectOption = None,
    pinned_key: PinnedKeyOption = None,
    tls_ciphers: TlsCiphersOption = None,
    insecure_tls: InsecureTlsOption = False,
    secure_channels: SecureChannelsOption = None,
    proxy: ProxyOption = None,
    sasl_mechanism: SaslMechanismOption = None,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT,
    reconnect: ReconnectOption = None,
    takeover_limit: TakeoverLimitOption = TAKEOVER_LIMIT,
    idle_timeout: IdleTimeoutOption = None,
    ready_fd: ReadyFdOption = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Bridge channels of a SPICE server to local ends."""
    code = bridge(
        BridgeOptions(
            uri,
            custom_channel or [],
            share,
            password_file,
            password_command,
            ReachOptions(
                ca_file,
                host_subject,
                pinned_key,
                tls_ciphers,
                insecure_tls,
                secure_channels,
                proxy,
                sasl_mechanism,
            ),
            connect_timeout,
            reconnect,
            takeover_limit,
            idle_timeout,
            ready_fd,
            log_format,
            verbose,
            quiet,
        )
    )
    raise typer.Exit(code)


@app.command("list")
def _list(
    uri: UriArgument = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON.", show_default=False)
    ] = False,
    password_file: PasswordFileOption = None,
    password_command: PasswordCommandOption = None,
    ca_file: CaFileOption = None,
    host_subject: HostSubjectOption = None,
    pinned_key: PinnedKeyOption = None,
    tls_ciphers: TlsCiphersOption = None,
    insecure_tls: InsecureTlsOption = False,
    secure_channels: SecureChannelsOption = None,
    proxy: ProxyOption = None,
    sasl_mechanism: SaslMechanismOption = None,
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT,
    log_format: LogFormatOption = LogFormat.TEXT,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Show the channels that a server offers, the names of its ports and whether they are open.

    Each port is linked for a moment, which the guest sees. Where spicebridge itself bridges
    channels of that server for you, it is asked instead of the server, which might throw it out for
    a new session; the ports that it bridges are left alone, and its streams and bytes are shown.
    """
    from spicebridge.cli.listing import list_channels

    set_up_output(verbose, quiet, log_format, filter_like=True)
    if verbose and not quiet:
        show_steps()
    password = GivenPassword(password_file, password_command)
    target = server_target(
        uri,
        ReachOptions(
            ca_file,
            host_subject,
            pinned_key,
            tls_ciphers,
            insecure_tls,
            secure_channels,
            proxy,
            sasl_mechanism,
        ),
    )

    def run(target: Target) -> int:
        async def show() -> None:
            await list_channels(target, as_json=as_json, timeout=connect_timeout)

        anyio.run(show)
        return 0

    raise typer.Exit(with_password(target, password, run))


@app.command("serve")
def _serve(
    custom_channel: CustomChannelOption = None,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="HOST:PORT|unix:PATH",
            help="Where SPICE clients connect; port 0 takes a free one.",
        ),
    ] = "127.0.0.1:5900",
    perm: Annotated[
        str | None,
        typer.Option(
            "--perm",
            metavar="MODE",
            help="Mode of the Unix socket; 0600 without it.",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            help="Speak TLS, with this certificate (PEM).",
            show_default=False,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            "--tls-key",
            metavar="FILE",
            help="The certificate's private key, unless it is in the same file.",
            show_default=False,
        ),
    ] = None,
    password_file: PasswordFileOption = None,
    password_command: PasswordCommandOption = None,
    ready_fd: ReadyFdOption = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Offer channels to SPICE clients; a local program or socket plays the guest of each."""
    from spicebridge import serve_bridges, server_context

    set_up_output(verbose, quiet, log_format)  # for what is wrong with the specifications
    specs = parse_specs(custom_channel or [], serving=True)
    output = set_up_for(specs, verbose, quiet, log_format)
    if not specs:
        raise UsageError(
            "there is nothing to serve", "add --custom-channel channelid=128,unixsocket=/tmp/guest"
        )
    address: TcpAddress | UnixAddress
    if listen.startswith("unix:"):
        address = UnixAddress(listen.removeprefix("unix:"))
        if not address.path:
            raise UsageError("--listen unix: names no path", "write unix:PATH")
    else:
        address = parse_host_port(listen)
    if tls_key is not None and tls_cert is None:
        raise UsageError("--tls-key is given without a certificate", "add --tls-cert FILE")
    if tls_cert is not None and isinstance(address, UnixAddress):
        raise UsageError(
            "--tls-cert does not go with a Unix socket, on which clients speak no TLS",
            "leave it out, or listen on HOST:PORT",
        )
    tls = server_context(tls_cert, tls_key) if tls_cert is not None else None
    mode = _socket_mode(perm, address)
    password = GivenPassword(password_file, password_command).first()

    async def action(stop: anyio.Event, ready: Ready) -> None:
        await serve_bridges(
            address, specs, password=password, tls=tls, perm=mode, stop=stop, ready=ready
        )

    raise typer.Exit(anyio.run(run_until_signal, action, output, ready_fd, "listening on "))


def _socket_mode(perm: str | None, address: TcpAddress | UnixAddress) -> int:
    if perm is None:
        return 0o600
    if isinstance(address, TcpAddress):
        raise UsageError("--perm is for a Unix socket", "add --listen unix:PATH, or leave it out")
    return socket_mode(perm)


@app.command("demo")
def _demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up to try it.", show_default=False)
    ] = False,
) -> None:
    """Run an endpoint and bridges in one process, and show bytes going through."""
    from spicebridge.cli.demo import run_demo

    output = set_up_output(0, True, LogFormat.TEXT)

    async def action(stop: anyio.Event, ready: Ready) -> None:
        await run_demo(stop, ready, keep=keep)

    raise typer.Exit(anyio.run(run_until_signal, action, output, None))


def run_command(words: list[str]) -> int:
    """Runs the command that a command line asks for, and returns its exit code.

    Raises:
        UsageError: Typer finds a mistake in the command line.
        SpicebridgeError: what went wrong, see `errors`.
    """
    try:
        result: Any = app(words, prog_name="spicebridge", standalone_mode=False)
    except typer.TyperException as error:
        raise UsageError(error.format_message()) from error
    except typer.Abort as error:  # Ctrl-D where a password is asked for
        raise KeyboardInterrupt from error  # the same to a shell
    return result if isinstance(result, int) else 0
