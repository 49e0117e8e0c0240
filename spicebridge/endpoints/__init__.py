"""The local end of a bridge: where an application meets us. Knows no SPICE."""
