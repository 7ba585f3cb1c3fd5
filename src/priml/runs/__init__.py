"""The run folder: its files, their names and formats, and how they are written."""
