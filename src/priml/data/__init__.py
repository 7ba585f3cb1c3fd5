"""From files and generators to `Problem`s and tokens, in an order that survives a restart."""
