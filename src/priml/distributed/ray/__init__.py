"""Roles as Ray actors. Only `cluster.py` imports Ray, when a run asks for it."""
