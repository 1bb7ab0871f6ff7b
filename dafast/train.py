"""``python -m dafast.train`` and ``torchrun -m dafast.train``: the command ``dafast train``."""

from __future__ import annotations

import sys

from dafast.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
