"""Held-out evaluation over any sampler and verifier."""
