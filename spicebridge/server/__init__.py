"""The SPICE endpoint: offers channels of any type, those for users (128 to 255) included."""
