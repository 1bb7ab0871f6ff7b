"""Evaluation: alignment, metrics and data sets with true depth."""
