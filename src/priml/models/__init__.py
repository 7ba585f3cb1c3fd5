"""Hugging Face models: load, score, save."""
