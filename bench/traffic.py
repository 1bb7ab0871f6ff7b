"""Counts the bytes that the launches of an op load and store, in Triton's interpreter.

As a program, in its own process with the interpreter on, it prints JSON: for every case a list of
kernels with the bytes that they load and store. Masked-off elements do not count; loads that a
cache would serve do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def count(labels: list[str], arch: str) -> dict[str, list[dict[str, Any]]]:
    """Counts in a separate process.

    Args:
        labels: ``op|case|dtype`` of cases in `bench.registry`.
        arch: Architecture that the launchers choose tiles for, for example ``sm_90``.

    Returns:
        The launches by label, each with ``kernel``, ``read`` and ``written`` in bytes.
    """
    command = [sys.executable, str(Path(__file__)), "--arch", arch, *labels]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def _count_here(labels: list[str], arch: str) -> dict[str, list[dict[str, Any]]]:
    import dafast.kernels.runtime as runtime
    import numpy as np
    import torch
    from triton.runtime import interpreter

    from bench.registry import SMALL_CASES, STATIC_CASES
    from bench.static import ARCHITECTURES
    from dafast.ops import use_backend

    launches: list[dict[str, Any]] = []
    builder = interpreter.InterpreterBuilder
    launch, load, store = (
        interpreter.GridExecutor.__call__, builder.create_masked_load, builder.create_masked_store,
    )  # fmt: skip
    atomic = builder.create_atomic_rmw

    def counted(kind: str, original: Any, pointers_at: int, mask_at: int) -> Any:
        def method(self: Any, *arguments: Any) -> Any:
            pointers, mask = arguments[pointers_at], arguments[mask_at]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            launches[-1][kind] += max(size, 1) * int(np.count_nonzero(mask.data))
            return original(self, *arguments)

        return method

    def launched(self: Any, *arguments: Any, **options: Any) -> Any:
        launches.append({"kernel": self.fn.__name__, "read": 0, "written": 0})
        return launch(self, *arguments, **options)

    interpreter.GridExecutor.__call__ = launched
    builder.create_masked_load = counted("read", load, 0, 1)
    builder.create_masked_store = counted("written", store, 0, 2)
    builder.create_atomic_rmw = counted("written", atomic, 1, 3)
    target = ARCHITECTURES[arch]
    counts = {}
    for case in (*STATIC_CASES, *SMALL_CASES):
        for dtype in case.dtypes:
            label = case.name(dtype)
            if label not in labels:
                continue
            launches.clear()
            arguments = case.make(0, dtype, torch.device("cpu"))
            with use_backend("triton"), runtime.assume_target(target.backend, target.arch):
                case.run(arguments)
            counts[label] = list(launches)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("labels", nargs="+")
    options = parser.parse_args()
    print(json.dumps(_count_here(options.labels, options.arch)))
