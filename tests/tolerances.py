"""How far a result may be from its reference: the one table that all tests read."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """Bounds for one dtype, as multiples of the largest absolute value of the reference.

    Attributes:
        model: A whole network, or any activation within it, against the same network written
            by others, in the same dtype.
        op: One op against its float32 specification, on top of twice the error of PyTorch's own
            eager path in that dtype; it catches references whose error happens to be 0.
        copy: A value that is only stored in this dtype and read back.
    """

    model: float
    op: float
    copy: float


TOLERANCES: dict[torch.dtype, Tolerance] = {
    # 24 blocks of float32 accumulate some 1e-6; a convolution that runs before an interpolation
    # instead of after it, and sums in another order, about as much. 1e-4 is what the project
    # promises.
    torch.float32: Tolerance(model=1e-4, op=1e-6, copy=0.0),
    # Rounding to nearest is off by up to 2^-8; every activation is rounded, and 12 to 24 residual
    # blocks add up.
    torch.bfloat16: Tolerance(model=5e-2, op=2**-8, copy=2**-8),
    # The same with three more bits, 2^-11.
    torch.float16: Tolerance(model=1e-2, op=2**-11, copy=2**-11),
    # For specifications that are compared with closed formulas or gradcheck.
    torch.float64: Tolerance(model=1e-11, op=1e-13, copy=0.0),
}
