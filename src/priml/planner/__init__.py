"""What a training run will cost, before it is started: arithmetic on settings, model facts and a machine. No torch."""
