"""What runs inside: standard library only, without a trace of the rest of priml."""
