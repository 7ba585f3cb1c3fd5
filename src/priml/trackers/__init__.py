"""Where numbers go: files, the screen, clocks."""
