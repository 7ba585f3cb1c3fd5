"""One module per command: what `priml COMMAND` does with its settings."""
