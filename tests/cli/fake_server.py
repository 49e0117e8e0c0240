"""Servers in a thread that say what a test wants: garbage, or SPICE up to some point."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from spicebridge import ChannelType, SpicebridgeError
from spicebridge.protocol.constants import LinkErr, Msg
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.events import ChannelsList, MainInit
from spicebridge.protocol.framing import Framing
from spicebridge.protocol.link import Linked, LinkRequest, link_server
from spicebridge.protocol.messages import encode_channels_list, encode_main_init
from spicebridge.protocol.server_ticket import ServerTicket, new_ticket_key, ticket_pubkey
from tests.conftest import PATIENCE

Script = Callable[[socket.socket], None]
"""Talks to one client; the connection is closed when it returns."""


@contextmanager
def serving(sock: socket.socket, script: Script) -> Iterator[None]:
    """Serves every client of a bound socket with a script, in a thread each."""
    clients: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def talk(client: socket.socket) -> None:
        with client:
            client.settimeout(PATIENCE)
            try:
                script(client)
            except (OSError, SpicebridgeError):  # the client has gone
                pass

    def accept() -> None:
        while True:
            try:
                client, _ = sock.accept()
            except OSError:  # we are done
                return
            clients.append(client)
            threads.append(threading.Thread(target=talk, args=(client,)))
            threads[-1].start()

    sock.listen()
    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        accepting.join()
        sock.close()
        for client in clients:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                pass
        for thread in threads:
            thread.join()


@contextmanager
def fake_server(path: Path, script: Script) -> Iterator[str]:
    """A server at a Unix socket; gives its URI."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    with serving(sock, script):
        yield f"spice+unix://{path}"
    path.unlink()


def message(kind: int, payload: bytes = b"", *, size: int | None = None) -> bytes:
    """A message with the 6-byte header, which may lie about its size."""
    header = bytearray(6)
    Framing(mini_header=True).pack_into(header, 0, kind, len(payload) if size is None else size)
    return bytes(header) + payload


def until_gone(client: socket.socket) -> None:
    """Reads until the client has ended its side."""
    while client.recv(65536):
        pass


def link_client_of(client: socket.socket, refuse: LinkErr = LinkErr.OK) -> Linked:
    """Plays the server's role of a link."""
    key, pubkey = _ticket_key()

    def available(_request: LinkRequest) -> LinkErr:
        return refuse

    def admit(_request: LinkRequest) -> LinkErr:
        return LinkErr.OK

    exchange = Exchange(link_server(pubkey, [ServerTicket(key, None)], available, admit))
    while not exchange.done:
        data = client.recv(exchange.needed)
        if not data:
            raise ConnectionAbortedError
        try:
            exchange.receive_data(data)
        finally:
            client.sendall(exchange.data_to_send())
    return exchange.result


@cache
def _ticket_key() -> tuple[rsa.RSAPrivateKey, bytes]:
    key = new_ticket_key()
    return key, ticket_pubkey(key)


def spice(
    *,
    offers: Sequence[tuple[int, int]] = ((128, 0),),
    main: bytes = b"",
    says: Mapping[int, bytes] | None = None,
    hang_up: bool = False,
) -> Script:
    """A SPICE server that is a good one up to what it says.

    Args:
        offers: type and id of the channels that it lists.
        main: what the main channel says after the list.
        says: what channels say once they are linked, by type.
        hang_up: whether a channel other than main is closed after that.
    """

    def script(client: socket.socket) -> None:
        linked = link_client_of(client)
        kind = linked.request.channel_type
        if kind != ChannelType.MAIN:
            client.sendall((says or {}).get(kind, b""))
            if hang_up:
                client.shutdown(socket.SHUT_WR)
        else:
            client.sendall(message(Msg.MAIN_INIT, encode_main_init(MainInit(7))))
            client.recv(6, socket.MSG_WAITALL)  # ATTACH_CHANNELS
            listed = encode_channels_list(ChannelsList(tuple(offers)))
            client.sendall(message(Msg.MAIN_CHANNELS_LIST, listed) + main)
        until_gone(client)

    return script
