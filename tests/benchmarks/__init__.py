"""How fast it is, always against a peer in the same run."""
