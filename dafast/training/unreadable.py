"""Samples that could not be read, counted over all processes of a run and over its restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dafast.data.shards import SampleError, check_bad_share
from dafast.distributed import World


class Unreadable:
    """What the loaders passed over, labeled and unlabeled apart; too much of either ends the run.

    Args:
        data: The training data.
        max_bad_fraction: Of the samples of a set, that may be missing.
    """

    def __init__(self, data: Any, max_bad_fraction: float) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.sets = {"labeled": data.shards}
        if data.unlabeled is not None:
            self.sets["unlabeled"] = data.unlabeled
        self.reasons: dict[str, set[str]] = {name: set() for name in self.sets}
        self._remembered: dict[str, set[str]] = {}  # of an earlier start

    def found(self, batches: Sequence[Any]) -> dict[str, list[str]]:
        """What this process's batches have met, by set: "key: reason"."""
        every = {
            "labeled": [reason for batch in batches for reason in batch.skipped],
            "unlabeled": [r for batch in batches for r in getattr(batch, "unlabeled_skipped", ())],
        }
        return {name: reasons for name, reasons in every.items() if reasons}

    def add(self, found: dict[str, list[str]], world: World) -> None:
        """Adds what all processes have found; each has to call it.

        Raises:
            ShardError: On all of them, where more than the stated share of a set is missing.
        """
        for of_one in world.gather(found):
            for name, reasons in of_one.items():
                self.reasons[name].update(reasons)
        for name, reasons in self.reasons.items():
            total = len(self.sets[name])
            if len(reasons) > self.max_bad_fraction * total:
                self._drop_mended(name)
            check_bad_share(sorted(reasons), total, self.max_bad_fraction)

    def _drop_mended(self, name: str) -> None:
        """Reads again what an earlier start could not read, once."""
        remembered = {reason.split(": ")[0]: reason for reason in self._remembered.pop(name, ())}
        samples = self.sets[name]
        for index in range(len(samples)) if remembered else ():
            if (reason := remembered.get(samples.name(index))) is not None:
                try:
                    samples.read(index)
                except SampleError:
                    continue
                self.reasons[name].discard(reason)

    def state_dict(self) -> dict[str, list[str]]:
        """For a checkpoint."""
        return {name: sorted(reasons) for name, reasons in self.reasons.items()}

    def load_state_dict(self, state: dict[str, list[str]] | list[str]) -> None:
        """From a checkpoint; an early one has a list of both sets, of which the names say nothing,
        and is counted anew."""
        if isinstance(state, dict):
            for name in self.reasons:
                self.reasons[name] = set(state.get(name, ()))
                self._remembered[name] = set(self.reasons[name])
