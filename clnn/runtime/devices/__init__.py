"""Which devices there are, which one is used, and whether it can be trusted: all that comes before the first launch."""
