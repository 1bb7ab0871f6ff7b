"""Progress of a run: a live line, `metrics.jsonl`, TensorBoard where it is installed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from dafast._warnings import is_quiet
from dafast.data.remote import write_text
from dafast.files import writing
from dafast.optional import why_no_module
from dafast.training.config import ConfigError


def duration(seconds: float) -> str:
    """Seconds as 1:02:03."""
    seconds = int(max(0.0, seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class RunLog:
    """Writes the metrics of a run. Does nothing in processes other than the main one.

    Args:
        out: Run directory.
        total_steps: Length of the run.
        start_step: First step of this process; later lines of an earlier process are removed, so
            that `metrics.jsonl` has exactly one object per step.
        log_every: Steps between lines where the output is not a terminal.
        enabled: Whether this process writes.
    """

    def __init__(
        self, out: str | Path, total_steps: int, start_step: int, log_every: int, enabled: bool
    ) -> None:
        self.enabled, self.total_steps, self.log_every = enabled, total_steps, log_every
        self._live = sys.stdout.isatty()
        self._quiet = is_quiet()
        self._speed = 0.0
        self._recent: list[float] = []
        self._line_shown = False
        self._tensorboard: Any = None
        if not enabled:
            return
        self._out = out = Path(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: cannot create {out}: {error.strerror}") from error
        path = out / "metrics.jsonl"
        _drop_later_lines(path, start_step)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (closed in close())
        if not why_no_module("tensorboard", "torch.utils.tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=start_step)

    def step(self, step: int, seconds: float, images: int, values: dict[str, float]) -> None:
        """Records a training step (counted from 1) that took `seconds` for `images`."""
        if not self.enabled:
            return
        speed = images / seconds if seconds > 0 else 0.0
        # The line shows a running mean; the file has the speed of each step.
        self._speed = speed if not self._speed else 0.9 * self._speed + 0.1 * speed
        self._record({"step": step, **values, "images_per_second": round(speed, 2)})
        self._recent = [*self._recent[-49:], values["loss"]]
        if self._quiet or (not self._live and step % self.log_every and step != self.total_steps):
            return
        left = (self.total_steps - step) * images / self._speed if self._speed else 0.0
        text = (
            f"step {step}/{self.total_steps}  loss {values['loss']:.4f} "
            f"(mean {sum(self._recent) / len(self._recent):.4f})  lr {values['lr']:.2e}  "
            f"{self._speed:.1f} images/s  ETA {duration(left)}"
        )
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="", flush=True)
            self._line_shown = True
        else:
            print(text, flush=True)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Records the scores of an evaluation after `step` steps."""
        if not self.enabled:
            return
        self._record({"step": step, **{f"eval/{name}": value for name, value in values.items()}})
        self.say(f"eval at step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        if self.enabled:
            print(("\n" if self._line_shown else "") + text, flush=True)
            self._line_shown = False

    def warn(self, text: str) -> None:
        """Prints a line to stderr, in every process."""
        print(("\n" if self._line_shown else "") + text, file=sys.stderr, flush=True)
        self._line_shown = False

    def close(self) -> None:
        """Ends the live line and closes the files."""
        if not self.enabled:
            return
        if self._line_shown:
            print(flush=True)
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _record(self, values: dict[str, float]) -> None:
        # NaN is not JSON; a skipped step has null.
        clean = {
            k: None if isinstance(v, float) and not _finite(v) else v for k, v in values.items()
        }
        with writing(self._out / "metrics.jsonl"):
            try:
                self._file.write(json.dumps(clean) + "\n")
            except OSError:
                with contextlib.suppress(OSError):  # flushing the rest of the buffer fails again
                    self._file.close()
                raise
        if self._tensorboard is not None:
            with writing(self._out / "tensorboard"):
                for name, value in values.items():
                    if name != "step":
                        self._tensorboard.add_scalar(name, value, values["step"])


class Stopwatch:
    """Measures the time between calls."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def skip(self) -> None:
        """Ignores the time since the last call (a checkpoint, an evaluation)."""
        self._last = time.perf_counter()


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _drop_later_lines(path: Path, start_step: int) -> None:
    """Removes lines that a killed run wrote after the checkpoint that this one starts from."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= start_step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the last line of a killed process may be half a line
    write_text(path, "".join(line + "\n" for line in kept))


def is_evaluated(out: str | Path, step: int) -> bool:
    """Whether the metrics of a run have an evaluation after a step."""
    path = Path(out) / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values.get("step") == step and any(name.startswith("eval/") for name in values):
            return True
    return False
