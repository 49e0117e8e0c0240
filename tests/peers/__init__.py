"""Real peers for the tests: QEMU, a Linux guest, libspice-server, spice-client-glib, nginx,
proxies, a USB device.

Each starts its program as a context manager, waits until it is ready, and ends that one
process. There is no global state, so that tests can run many at a time (pytest-xdist).
"""
