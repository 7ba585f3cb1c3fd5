"""Settings become objects here and nowhere else."""
