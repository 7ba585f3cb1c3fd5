"""The algorithm (`loop`), and what keeps a run on disk exact and resumable. Sees interfaces, never engines."""
