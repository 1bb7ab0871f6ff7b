"""Counts the bytes that the launches of an op load and store, in Triton's interpreter.

As a program, in its own process with the interpreter on, it reads the label of a case per line and
prints a line of JSON for each: a list of kernels with the bytes that they load and store.
Masked-off elements do not count; loads that a cache would serve do.
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


class Counter:
    """Counts in a process of its own, one case at a time; a context manager.

    Args:
        arch: Architecture that the launchers choose tiles for, for example ``sm_90``.
    """

    def __init__(self, arch: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--arch", arch],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it

    def count(self, label: str) -> list[dict[str, Any]]:
        """Counts the case ``op|case|dtype`` of `bench.registry`.

        Returns:
            Its launches, each with ``kernel``, ``read`` and ``written`` in bytes.

        Raises:
            RuntimeError: If the process ended; its message is on the standard error stream.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(label + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"counting the bytes of {label} failed")
        return json.loads(line)


def _count_lines(arch: str) -> None:
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
    cases = {
        case.name(dtype): (case, dtype)
        for case in (*SMALL_CASES, *STATIC_CASES)
        for dtype in case.dtypes
    }
    for line in sys.stdin:
        case, dtype = cases[line.rstrip("\n")]
        launches.clear()
        arguments = case.make(0, dtype, torch.device("cpu"))
        with use_backend("triton"), runtime.assume_target(target.backend, target.arch):
            case.run(arguments)
        print(json.dumps(launches), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="sm_90")
    _count_lines(parser.parse_args().arch)
