"""spice-webdavd in a guest: connections to its port 9843 become streams of the webdav channel.

It registers with avahi, and avahi needs the system's dbus; without them it exits as soon as a
SPICE client is there. All three run as root and with the least that they can do with.
"""

from typing import Self

from .guest import Guest

PORT = "org.spice-space.webdav.0"
"""The SPICE port to make a guest with: the program has its name built in."""

URL = "http://localhost:9843"
"""Where programs in the guest reach it."""

_START_BUS = """
pidof avahi-daemon && exit
ip link set lo up
cat >/etc/passwd <<END
root:x:0:0::/:/bin/sh
avahi:x:1:1::/:/bin/sh
END
echo avahi:x:1: >/etc/group
cat >/etc/dbus.conf <<END
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
END
: >/etc/avahi.conf
mkdir -p /run/dbus /run/avahi-daemon
dbus-daemon --config-file=/etc/dbus.conf --fork
avahi-daemon --file=/etc/avahi.conf --no-drop-root --no-chroot --no-rlimits --daemonize
"""
"""Both go into the background when they are ready."""

_START = """
spice-webdavd -p 9843 >/run/webdavd.log 2>&1 &
echo $! >/run/webdavd.pid
until grep -q ' 0100007F:2673 00000000:0000 0A' /proc/net/tcp; do usleep 5000; done
"""
"""Until it listens; 9843 is 0x2673."""

_STOP = """
read pid </run/webdavd.pid
kill $pid
while [ -d /proc/$pid ]; do usleep 5000; done
"""


class Webdavd:
    """spice-webdavd, from entering the `with` block to leaving it.

    Whether a SPICE client is linked does not matter: connections wait for one.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.run(_START_BUS)
        guest.run(_START)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill it; its port closes."""
        self._guest.run(_STOP)

    def log(self) -> str:
        """What it has written."""
        return self._guest.run("cat /run/webdavd.log")
