"""The command line of a training run: every setting of `TrainConfig` is an option."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from dafast.optional import why_no_module
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.config_files import load_toml, shipped_configs
from dafast.training.tasks import check_config

DESCRIPTION = """Trains Depth Anything on labeled shards, a student on unlabeled ones too, depth in
metres, or segmentation. A configuration file sets the options; those on the command line win.
Running the same command again continues the run. `-v` shows more messages, `-q` only errors and
results."""


@dataclass(frozen=True)
class Options(TrainConfig):
    """The settings of a run, and options that only the command line has.

    Attributes:
        config: TOML file, or name of a shipped configuration, that the other options override.
        list_configs: List the shipped configurations and exit.
        encoder_init: Short for --model.encoder-init.
    """

    config: str = ""
    list_configs: bool = False
    encoder_init: str = ""


def parse_args(argv: Sequence[str] | None = None) -> TrainConfig:
    """Reads the command line of `dafast train`.

    `--config` names a file or a shipped configuration, whose settings the other options override.

    Args:
        argv: The options; those of the process by default.

    Raises:
        ConfigError: If tyro is missing, or the configuration cannot be used.
        SystemExit: After `--help` and `--list-configs`, and for an unknown option.
    """
    if why := why_no_module("tyro"):
        raise ConfigError(f"training needs tyro ({why}): pip install 'dafast[train]'")
    import tyro

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--list-configs", action="store_true")
    known, _ = early.parse_known_args(argv)
    if known.list_configs:
        for name, title in shipped_configs().items():
            print(f"{name:<24}{title}")
        raise SystemExit(0)
    settings = vars(load_toml(known.config) if known.config else TrainConfig())
    options = tyro.cli(
        Options,
        default=Options(**settings),
        args=argv,
        prog="dafast train",
        description=DESCRIPTION,
    )
    config = TrainConfig(**{name: getattr(options, name) for name in settings})
    if options.encoder_init:
        model = dataclasses.replace(config.model, encoder_init=options.encoder_init)
        config = dataclasses.replace(config, model=model)
    check_config(config)
    return config
