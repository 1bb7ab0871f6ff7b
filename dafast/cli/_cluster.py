"""Commands on a cluster: the options, and the runner that they ask for."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import CommandError, positive
from ._log import tell

if TYPE_CHECKING:
    from ..cluster import RayRunner

_PATHS = ("model", "config", "cache")  # options that may name a local file


def add_cluster(parser: argparse.ArgumentParser, models: bool = True) -> None:
    """Adds ``--cluster``, and for a command with a model ``--cluster-models``."""
    parser.add_argument(
        "--cluster",
        metavar="ray[://HOST:PORT]",
        help="do the work on a Ray cluster: ray (at RAY_ADDRESS, else that of `ray start` on this "
        "machine, else this machine) or ray://HOST:PORT (its port for clients); all nodes must "
        "reach the files under the same names (docs/scale.md)",
    )
    if models:
        parser.add_argument(
            "--cluster-models",
            type=positive,
            metavar="N",
            help="number of models on the cluster (default: one per GPU; without GPUs one per "
            "processor)",
        )


def use_absolute_paths(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with absolute paths: workers run in other folders."""
    changed = argparse.Namespace(**vars(args))
    for name in _PATHS:
        value = getattr(args, name, None)
        if value is not None and Path(value).exists():
            setattr(changed, name, type(value)(os.path.abspath(value)))
    return changed


def place_for_workers(place: Path) -> Path:
    """A place with an absolute path, if it is local."""
    from ..data.remote import is_remote

    return place if is_remote(place) else place.absolute()


@contextlib.contextmanager
def cluster_runner(
    args: argparse.Namespace, command: str, make: Callable[[argparse.Namespace], Any] | None = None
) -> Iterator[RayRunner]:
    """The runner for ``--cluster``.

    Args:
        args: Of the command.
        command: Its name.
        make: Loads the model in an actor, from the arguments; None for a command without one.

    Raises:
        CommandError: If torchrun started this process.
    """
    from functools import partial

    # Without this Ray answers a lost connection with one to any cluster that it finds.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    from ..cluster import RayRunner, connected

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CommandError("--cluster distributes the work itself: do not use torchrun")
    with connected(args.cluster):
        with RayRunner(
            command,
            partial(make, use_absolute_paths(args)) if make else None,
            models=getattr(args, "cluster_models", None),
            workers=getattr(args, "workers", 1),
            device=getattr(args, "device", "cpu"),
            say=lambda line: tell(f"{command}: {line}"),
        ) as runner:
            yield runner
