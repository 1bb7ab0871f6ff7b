"""Triton kernels and their launchers, one file per op; installed as ``dafast.kernels``.

Imports only torch, Triton and itself.
"""

# From the root of a checkout this folder can also be imported as `kernels`, by transformers for
# one, which looks for the hub's package of that name. It then finds an empty package: a second copy
# of every kernel would have its own caches and its own registered ops.
if __name__ != "dafast.kernels":
    __path__ = []
