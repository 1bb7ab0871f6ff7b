"""Runs every Triton and CUDA kernel once at small sizes on the GPU, for sanitize.sh."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.registry import SMALL_CASES
from dafast.ops import OPS, BackendError, use_backend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=torch.seed() % 2**31)
    options = parser.parse_args()
    print(f"seed = {options.seed}")
    ran = set()
    for case in SMALL_CASES:
        for dtype in case.dtypes:
            for backend in {"triton", "cuda"} & OPS[case.op].backends.keys():
                arguments = case.make(options.seed, dtype, torch.device("cuda"))
                try:
                    with use_backend(backend):
                        case.run(arguments)
                except BackendError as error:  # this GPU has no clusters of thread blocks
                    print("not run:", error)
                    continue
                torch.cuda.synchronize()
                ran.add(f"{case.op} ({backend})")
    print("ran:", ", ".join(sorted(ran)))


if __name__ == "__main__":
    main()
