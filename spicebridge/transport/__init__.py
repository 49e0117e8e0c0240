"""How bytes reach a SPICE server, and the address itself; knows no SPICE message."""
