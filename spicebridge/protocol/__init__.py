"""SPICE as pure data, for both roles: bytes in, events or bytes out; no sockets, no clocks."""
