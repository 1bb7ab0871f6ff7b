"""The connection to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from dafast._warnings import is_quiet
from dafast.files import explain
from dafast.optional import MissingPackageError, why_no_module


class ClusterError(RuntimeError):
    """The cluster cannot be used; the message says why."""


def check_address(cluster: str) -> None:
    """Checks the value of `--cluster`, and that Ray is installed.

    Raises:
        ClusterError: If the value is neither ``ray`` nor ``ray://HOST:PORT``.
        MissingPackageError: If Ray cannot be imported.
    """
    if cluster != "ray" and not (cluster.startswith("ray://") and len(cluster) > len("ray://")):
        raise ClusterError(f"--cluster {cluster}: give ray, or ray://HOST:PORT")
    needed = ["ray"] if cluster == "ray" else ["ray", "grpc"]
    if why := why_no_module(*needed):
        raise MissingPackageError(f"--cluster {cluster} needs pip install 'dafast[ray]' ({why})")


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[None]:
    """Connects this process to a cluster within the block.

    Args:
        cluster: ``ray`` for the cluster at RAY_ADDRESS, else the one that ``ray start`` started on
            this machine, else a new one of this machine only; ``ray://HOST:PORT`` for a cluster's
            port for clients. A program's own connection is used and stays.

    Raises:
        ClusterError: If it cannot be reached.
        MissingPackageError: If Ray cannot be imported.
    """
    check_address(cluster)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=None if cluster == "ray" else cluster,
            logging_level=logging.WARNING,
            log_to_driver=not is_quiet(),
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ClusterError(f"--cluster {cluster}: no connection ({explain(error)})") from error
    try:
        yield
    finally:
        ray.shutdown()
