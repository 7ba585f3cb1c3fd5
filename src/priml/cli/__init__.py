"""The `priml` command."""
