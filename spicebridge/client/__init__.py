"""A client's session with a SPICE server, and the channels it opens there."""
