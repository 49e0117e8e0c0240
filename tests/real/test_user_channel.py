"""How a user-defined channel gets a server: QEMU's plain chardev here, SPICE there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.qemu import Qemu
from tests.peers.qmp_client import QmpClient
from tests.real.tools import Start, connection, served_uri

pytestmark = pytest.mark.real_peer

LOG = ("--log-format", "json")


@pytest.mark.parametrize("type_", [128, 255])
def test_a_plain_chardev_of_qemu_becomes_a_channel_of_any_type(
    spicebridge: Start, short_tmp: Path, type_: int
) -> None:
    guest, app = short_tmp / "chardev", short_tmp / "s"
    plain = [
        *("-chardev", f"socket,id=plain,path={guest},server=on,wait=off"),
        *("-mon", "plain,mode=control"),
    ]
    with Qemu(short_tmp, extra=plain) as qemu:
        server = spicebridge(
            *("serve", "--listen", "127.0.0.1:0", *LOG, "--custom-channel"),
            f"channelid={type_},unixsocket={guest},mode=connect",
        )
        spicebridge(
            *(served_uri(server), "--custom-channel", f"unixsocket={app},channelid={type_}")
        )
        for _ in range(3):  # each application finds a monitor that begins anew
            with connection(app) as sock, QmpClient(sock) as client:
                assert client.execute("query-status") == qemu.qmp("query-status")
                schema = client.execute("query-qmp-schema")
                assert len(str(schema)) > 100_000
