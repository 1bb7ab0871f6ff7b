"""The sections of `bench/gpu_run.py`."""
