"""Evaluation: alignment, metrics, protocols, and data sets with true depth."""
