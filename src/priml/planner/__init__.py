"""The cost of a training run before it is started: arithmetic on settings, model facts and a machine. No torch."""
