"""``dafast data``: the commands for data sets, each in its own file."""

from __future__ import annotations

import argparse

from . import data_check, data_pack, data_sky


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of the group."""
    parser = commands.add_parser("data", help="pack data sets into shards and check them")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (data_pack, data_check, data_sky):
        command.add_parser(parts)
