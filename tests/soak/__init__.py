"""``make soak``: everything that may befall bridges, mixed, for as long as one likes."""
