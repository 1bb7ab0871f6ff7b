"""What `train.py` is made of: configuration, data order, steps, state, progress, evaluation."""
