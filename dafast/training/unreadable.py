"""Samples that could not be read, counted over all processes of a run and over its restarts."""

from __future__ import annotations

from collections.abc import Sequence

from dafast.data.shards import SampleError, check_bad_share
from dafast.distributed import World
from dafast.training.task import SampleSet, StepBatch, TrainingSet


class Unreadable:
    """Samples that the loaders skipped, labeled and unlabeled; too many of either end the run.

    Args:
        data: The training data.
        max_bad_fraction: Largest tolerated fraction of the samples of a set.
    """

    def __init__(self, data: TrainingSet, max_bad_fraction: float) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.sets: dict[str, SampleSet] = {"labeled": data.labeled}
        if data.unlabeled is not None:
            self.sets["unlabeled"] = data.unlabeled
        self.reasons: dict[str, set[str]] = {name: set() for name in self.sets}
        self._remembered: dict[str, set[str]] = {}  # of an earlier start

    def found(self, batches: Sequence[StepBatch]) -> dict[str, list[str]]:
        """The unreadable samples of this process's batches, by set: "key: reason"."""
        every = {
            "labeled": [reason for batch in batches for reason in batch.skipped],
            "unlabeled": [reason for batch in batches for reason in batch.unlabeled_skipped],
        }
        return {name: reasons for name, reasons in every.items() if reasons}

    def add(self, found: dict[str, list[str]], world: World) -> None:
        """Adds the findings of all processes; each process must call it.

        Raises:
            ShardError: On all processes, where too large a fraction of a set is unreadable.
        """
        for of_one in world.gather(found):
            for name, reasons in of_one.items():
                self.reasons[name].update(reasons)
        for name, reasons in self.reasons.items():
            total = len(self.sets[name])
            if len(reasons) > self.max_bad_fraction * total:
                self._drop_readable(name)
            check_bad_share(sorted(reasons), total, self.max_bad_fraction)

    def _drop_readable(self, name: str) -> None:
        """Reads samples again, once, that an earlier start could not read."""
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
        """Entries of a checkpoint."""
        return {name: sorted(reasons) for name, reasons in self.reasons.items()}

    def load_state_dict(self, state: dict[str, list[str]] | list[str]) -> None:
        """From a checkpoint. An early one has a list of both sets, whose names do not tell the sets
        apart; counting then starts again."""
        if isinstance(state, dict):
            for name in self.reasons:
                self.reasons[name] = set(state.get(name, ()))
                self._remembered[name] = set(self.reasons[name])
