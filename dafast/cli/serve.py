"""``dafast serve`` and ``dafast demo``: depth over HTTP, and a page to try it."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._common import CommandError, add_device, depth, positive
from ._log import tell

if TYPE_CHECKING:
    from ..serve import ServerSettings


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds both parsers."""
    serve = commands.add_parser(
        "serve",
        help="serve depth over HTTP",
        description="Serves POST /v1/depth: a photo in, its depth out. Requests that arrive "
        "together are computed together. docs/serve.md describes the interface; /openapi.json "
        "has it for programs.",
        epilog="Ctrl-C or SIGTERM finishes the accepted requests and ends the server.",
    )
    _add_options(serve)
    serve.set_defaults(function=run, page=False)
    demo = commands.add_parser(
        "demo",
        help="open a page to try a model",
        description="Serves a page on this machine to try a model on your own photos. Nothing "
        "leaves the machine, and after the model is downloaded no network is needed.",
    )
    _add_options(demo)
    demo.add_argument(
        "--no-browser", action="store_true", help="print the address and open no browser"
    )
    demo.set_defaults(function=run, page=True)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        help="preset, hub id, file or folder; again for further ones, which are loaded when a "
        "request asks for them (default: nano)",
    )
    add_device(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=8000, help="port; 0 for any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("DAFAST_TOKEN", ""),
        help="requests must carry `Authorization: Bearer TOKEN` (default: the environment "
        "variable DAFAST_TOKEN, or no check)",
    )
    _add_limits(parser.add_argument_group("limits"))
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes that hold the model (default: 2 on a CPU for a published model of the size "
        "of ViT-S or smaller, else 1)",
    )
    speed.add_argument(
        "--batch",
        type=positive,
        default=8,
        metavar="N",
        help="largest number of pictures of a batch (default: %(default)s)",
    )
    speed.add_argument(
        "--batch-wait",
        type=_milliseconds,
        default=0.01,
        metavar="MS",
        help="milliseconds that a lone request waits for others (default: 10)",
    )


def _add_limits(limits: argparse._ArgumentGroup) -> None:
    limits.add_argument(
        "--max-pixels",
        type=positive,
        default=32_000_000,
        metavar="N",
        help="largest picture, in pixels (default: %(default)s)",
    )
    limits.add_argument(
        "--max-bytes",
        type=positive,
        default=32 << 20,
        metavar="N",
        help="largest body of a request, in bytes (default: %(default)s)",
    )
    limits.add_argument(
        "--videos",
        type=count,
        default=4,
        metavar="N",
        help="videos that wait or are converted, one at a time; 0 for none (default: %(default)s)",
    )
    limits.add_argument(
        "--max-video-bytes",
        type=positive,
        default=1 << 30,
        metavar="N",
        help="largest video, in bytes (default: %(default)s)",
    )
    limits.add_argument(
        "--timeout",
        type=depth,
        default=60.0,
        metavar="SECONDS",
        help="for the body of a request to arrive, and then for its answer (default: %(default)s)",
    )
    limits.add_argument(
        "--queue",
        type=positive,
        default=64,
        metavar="N",
        help="requests that are received, waiting or computed at a time; more get 503 "
        "(default: %(default)s)",
    )
    limits.add_argument(
        "--allow-urls",
        nargs="?",
        const="public",
        default="",
        choices=("public", "any"),
        help="fetch pictures by URL, from the public internet only or from any address (default: "
        "refuse)",
    )
    limits.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin use the server; again for more, '*' for all (default: none)",
    )


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def count(text: str) -> int:
    """Parses a number of at least 0."""
    return 0 if text == "0" else positive(text)


def _milliseconds(text: str) -> float:
    """Parses milliseconds, as seconds."""
    return 0.0 if text == "0" else depth(text) / 1000


def settings_of(args: argparse.Namespace) -> ServerSettings:
    """The settings that the options ask for."""
    from ..serve import ServerSettings

    models = tuple(dict.fromkeys(args.model or ["nano"]))
    return ServerSettings(
        models=models,
        device=args.device,
        dtype=args.dtype,
        token=args.token,
        max_pixels=args.max_pixels,
        max_bytes=args.max_bytes,
        max_video_bytes=args.max_video_bytes,
        timeout=args.timeout,
        queue=args.queue,
        workers=args.workers or _default_workers(models[0], args.device),
        videos=args.videos,
        batch=args.batch,
        batch_wait=args.batch_wait,
        allow_urls=args.allow_urls,
        cors_origins=tuple(args.cors),
        page=args.page,
    )


def _default_workers(model: str, device: str) -> int:
    """Two on a CPU for a small model: threads of two processes do not wait for each other."""
    from torch import get_num_threads

    from ..devices import resolve_device
    from ..models import zoo

    entry = zoo.find(model)
    small = entry is not None and entry.config.embed_dim <= 384
    return 2 if small and resolve_device(device).type == "cpu" and get_num_threads() > 1 else 1


def run(args: argparse.Namespace) -> int:
    """Runs the server until it is asked to end."""
    from ..serve import check_packages

    check_packages()
    import socket

    import uvicorn

    from ..serve import create_app

    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((args.host, args.port))
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(
            f"--host {args.host} --port {args.port}: {reason}; --port 0 takes a free port"
        ) from None
    app: Any = create_app(settings_of(args))

    class QuietServer(uvicorn.Server):
        """Ends with exit code 0 after a signal; uvicorn would send it to the process again."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
            try:
                yield
            finally:
                for sig, handler in before.items():
                    signal.signal(sig, handler)

    server = QuietServer(
        uvicorn.Config(
            app, http=_protocol(), log_level="warning", access_log=False, server_header=False
        )
    )
    host = f"[{args.host}]" if family == socket.AF_INET6 else args.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    announcer = threading.Thread(target=_announce, args=(args, app, server, address), daemon=True)
    announcer.start()
    server.run(sockets=[listener])
    if problem := app.state.server.pool.problem:
        raise CommandError(problem)
    print("the server has ended", file=sys.stderr)
    return 0


def _protocol() -> Any:
    """uvicorn's parser: httptools with a limit on the headers, or the slower h11, which has one."""
    from ..optional import why_no_module

    if why_no_module("httptools"):
        return "h11"
    from ..serve.protocol import LimitedProtocol

    return LimitedProtocol


def _announce(args: argparse.Namespace, app: Any, server: Any, address: str) -> None:
    """Waits for the model, and says where the server is; ends it if there is no model."""
    state = app.state.server
    tell(f"loading {(args.model or ['nano'])[0]} ...")
    while not (state.pool and state.pool.ready):
        if server.should_exit:
            return
        if state.pool and state.pool.problem:
            server.should_exit = True
            return
        time.sleep(0.05)
    if args.page and args.token:
        address += f"/#{urllib.parse.quote(args.token)}"
    print(f"serving on {address}", flush=True)
    if args.page and not args.no_browser:
        import webbrowser

        webbrowser.open(address)
