"""Triton kernels and their launchers, one file per op; installed as ``dafast.kernels``.

Imports only torch, Triton and itself.
"""

# From the root of a checkout this folder can also be imported as `kernels`; that would be a second
# copy of every kernel, with its own caches and its own registered ops.
if __name__ != "dafast.kernels":
    raise ImportError("import dafast.kernels, not kernels: this folder is a part of dafast")
