"""Roles as Ray actors. Ray itself is imported in `door.py`, when a run asks for it, and nowhere else."""
