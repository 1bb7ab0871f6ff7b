"""Training: configuration, data order, steps, state, progress, evaluation."""
