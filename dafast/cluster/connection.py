"""The connection to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from urllib.parse import urlsplit

from dafast.files import explain
from dafast.optional import MissingPackageError, why_no_module

_REACH = 10.0  # seconds until a port must answer
_TRIES = 3  # of a client: on a busy head the process that Ray starts for it may die while it starts


class ClusterError(RuntimeError):
    """The cluster cannot be used; the message says why."""


def check_address(cluster: str) -> tuple[str, int] | None:
    """Checks the value of `--cluster`, and that Ray is installed.

    Returns:
        Host and port of ``ray://HOST:PORT``; None for ``ray``.

    Raises:
        ClusterError: If the value is neither ``ray`` nor ``ray://HOST:PORT``.
        MissingPackageError: If Ray cannot be imported.
    """
    server = None
    if cluster != "ray":
        server = _host_and_port(cluster)
        if server is None:
            raise ClusterError(f"--cluster {cluster}: give ray, or ray://HOST:PORT")
    needed = ["ray"] if cluster == "ray" else ["ray", "grpc"]
    if why := why_no_module(*needed):
        raise MissingPackageError(f"--cluster {cluster} needs pip install 'dafast[ray]' ({why})")
    return server


def _host_and_port(cluster: str) -> tuple[str, int] | None:
    try:
        url = urlsplit(cluster)
        host, port = url.hostname, url.port
    except ValueError:  # of the port
        return None
    return (host, port) if url.scheme == "ray" and host and port else None


def _check_port(cluster: str, server: tuple[str, int]) -> None:
    """Checks that a port of the cluster answers: Ray would try for 30 seconds, or for minutes.

    Raises:
        ClusterError: If it does not.
    """
    try:
        socket.create_connection(server, timeout=_REACH).close()
    except OSError as error:
        remedy = "start the cluster, or correct RAY_ADDRESS"
        if cluster != "ray":
            remedy = (
                "`ray start --head` opens it with --ray-client-server-port, and 10001 if "
                "ray[client] is installed there"
            )
        host, port = server
        raise ClusterError(
            f"--cluster {cluster}: {host}:{port} does not answer ({explain(error)}); {remedy}"
        ) from error


def _take_token() -> None:
    """Uses the user's token if there is one, as `ray start` does.

    Only for a client: a cluster without tokens ignores a client's, and fails with a driver's.
    """
    with contextlib.suppress(ImportError):  # a private name of Ray: RAY_AUTH_MODE=token does it
        from ray._private.authentication import authentication_token_setup

        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns; ray.init sets the level again
        authentication_token_setup.maybe_enable_token_auth_if_token_available(False)


def _init(cluster: str, client: bool) -> None:
    """Calls `ray.init`; as a client again, if the process that serves it could not start."""
    import ray

    for left in reversed(range(_TRIES)):
        try:
            ray.init(
                address=cluster if client else None,
                logging_level=logging.WARNING,
                # Ray prints the messages of its nodes to stdout, also each lost worker.
                log_to_driver=logging.getLogger("dafast").isEnabledFor(logging.INFO),
            )
            return
        except ConnectionError as error:
            if not (left and client and "Initialization failure from server" in str(error)):
                raise


def _is_lost(error: Exception) -> bool:
    """True if Ray raised an error because it has no connection any more."""
    import ray

    if isinstance(error, ConnectionError):
        return not ray.is_initialized()  # else an error of another connection
    return type(error).__module__.startswith("grpc.")


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[None]:
    """Connects this process to a cluster within the block.

    Args:
        cluster: ``ray`` for the cluster at RAY_ADDRESS, else the one that ``ray start`` started on
            this machine, else a new one of this machine only; ``ray://HOST:PORT`` for a cluster's
            port for clients. A program's own connection is used and stays.

    Raises:
        ClusterError: If it cannot be reached, or if the connection is lost within the block.
        MissingPackageError: If Ray cannot be imported.
    """
    server = check_address(cluster)
    import ray

    if ray.is_initialized():
        yield
        return
    used = server or _host_and_port("ray://" + os.environ.get("RAY_ADDRESS", ""))
    if used is not None:
        _check_port(cluster, used)
    if server is not None:
        _take_token()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Ray Client connection timed out")  # says it twice
            _init(cluster, client=server is not None)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        why = explain(error)
        if isinstance(error, ConnectionError):
            why += (
                "; if the cluster has a token, copy it into ~/.ray/auth_token and set "
                "RAY_AUTH_MODE=token"
            )
        raise ClusterError(f"--cluster {cluster}: no connection ({why})") from error
    try:
        yield
    except Exception as error:
        if not _is_lost(error):
            raise
        raise ClusterError(
            f"--cluster {cluster}: the connection was lost; finished work stays, and the same "
            "command does the rest"
        ) from error
    finally:
        ray.shutdown()
