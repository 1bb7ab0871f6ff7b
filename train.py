"""Trains Depth Anything: the command `dafast train`, for a checkout and for torchrun.

    python train.py --config nano-teacher
    torchrun --nproc-per-node 8 train.py --config configs/student-vits.toml
    python train.py --config nano-teacher --steps 500 --optim.encoder-lr 5e-4

The loop is `dafast/training/loop.py`.
"""

from __future__ import annotations

import sys

from dafast.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
