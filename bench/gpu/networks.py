"""Sections that measure whole networks: the forward, `infer` from file to map, training steps."""

from __future__ import annotations

import contextlib
import copy
import inspect
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bench import timing
from bench.gpu.meter import Meter, attempt
from bench.gpu.records import Records
from bench.model import TOLERANCE
from dafast import DepthAnything, use_backend
from dafast.config import ModelConfig
from dafast.images import load_image
from dafast.models.saving import save_pretrained
from dafast.ops import OPS, _dispatch, affine_invariant_loss, feature_alignment_loss

SIZE = (518, 518)
PICTURE = (518, 700)
"""The size of the pictures in docs/scale.md: 518x690, padded."""

FP8_TOLERANCE = 0.2
"""Largest accepted error over the largest value of the map: e4m3 has 4 binary digits."""

SMALL = ModelConfig(
    name="small", embed_dim=32, num_layers=4, num_heads=2, features=8, out_channels=(8, 8, 8, 8),
    out_indices=(0, 1, 2, 3), image_size=28, grid_size=2,
)  # fmt: skip
"""The network of the stub."""


class Forwards:
    """The forwards of one preset in bfloat16 by all implementations, each next to its error.

    Args:
        meter: The device.
        records: Gets a record for each implementation, batch and size.
        preset: Name of the preset.
        folder: For the random weights, in the layouts of dafast and transformers.
    """

    def __init__(self, meter: Meter, records: Records, preset: str, folder: Path) -> None:
        self.meter, self.records, self.preset, self.folder = meter, records, preset, folder
        torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(0)
        self.exact = DepthAnything(meter.size(preset, SMALL)).eval()
        with torch.no_grad():  # a positive map of order 1, as a trained model predicts
            self.exact.depth_head.scratch.output_conv2[2].weight.mul_(10)
            self.exact.depth_head.scratch.output_conv2[2].bias.fill_(1.0)
        save_pretrained(self.exact, folder / "dafast")
        save_pretrained(self.exact, folder / "transformers", layout="transformers")
        self.exact = self.exact.to(meter.device)

    def dafast(self, **options: Any) -> Callable[[Tensor], Tensor]:
        """The model, optimized with the options."""
        model = DepthAnything.from_pretrained(
            self.folder / "dafast", device=self.meter.device, dtype="bfloat16"
        )
        for name in options:
            if name not in inspect.signature(model.optimize).parameters:
                raise NotImplementedError(f"optimize() has no option {name}")
        return model.eval().optimize(**options)

    def transformers(self, attention: str) -> Callable[[Tensor], Tensor]:
        """transformers' model with ``"eager"`` or ``"sdpa"`` attention."""
        from transformers import DepthAnythingForDepthEstimation

        model = DepthAnythingForDepthEstimation.from_pretrained(self.folder / "transformers")
        model.backbone.set_attn_implementation(attention)
        model = model.to(self.meter.device, torch.bfloat16).eval()
        return lambda x: model(x).predicted_depth

    def inputs(self, batch: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Images, and the maps of the float32 reference, one image at a time."""
        height, width = self.meter.size(size, (28, 28))
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, 3, height, width, generator=generator).to(self.meter.device)
        with torch.no_grad(), use_backend("reference"):
            expected = torch.cat([self.exact(x[i : i + 1]) for i in range(batch)])
        self.meter.release()
        return x.bfloat16(), expected

    def measure(
        self, who: str, make: Callable[[], Callable[[Tensor], Tensor]], x: Tensor, expected: Tensor,
        *, graph: bool = False, kernels: bool = False,
        tolerance: float = TOLERANCE["bfloat16"],
    ) -> None:  # fmt: skip
        """Times one implementation: as it is, and with ``graph`` also in a captured graph.

        With ``kernels`` it measures only the sum of its kernels. An error above ``tolerance``
        gets no figure.
        """
        made: list[Callable[[Tensor], Tensor]] = []

        @torch.no_grad()
        def figures(captured: bool) -> dict[str, Any]:
            if not made:
                made.append(make())
            function = made[0]

            def run() -> Tensor:
                return function(x)

            for _ in range(2):  # dafast captures a graph at the second call
                run()
            call = self.meter.capture(run) if captured else run
            error = timing.largest_error(call(), expected)
            if not error <= tolerance:
                return {"error": error, "why": "differs from the float32 reference"}
            if kernels:
                return {"kernels_ms": sum(self.meter.kernels(call).values()) / 1e3}
            found = {"error": error, **self.meter.time(call)}
            found["images_s"] = 1e3 * len(x) / found["wall_ms"]
            found["peak_bytes"] = self.meter.peak_bytes(call)
            return found

        record = {"model": self.preset, "batch": len(x), "size": list(x.shape[2:]),
                  "dtype": "bfloat16"}  # fmt: skip
        for captured in (False, True) if graph else (False,):
            name = f"{who}, graph" if captured else who
            attempt(self.records, {**record, "who": name}, lambda c=captured: figures(c))
        made.clear()
        self.meter.release()


def _model(meter: Meter, records: Records, preset: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        forwards = Forwards(meter, records, preset, Path(name))
        batches = meter.size((1, 16), (1, 2))
        for batch in batches:
            x, y = forwards.inputs(batch, SIZE)
            forwards.measure("dafast", forwards.dafast, x, y)
            forwards.measure("dafast, modules", lambda: forwards.dafast(cuda_graphs=False), x, y)
            for attention in ("sdpa", "eager"):
                forwards.measure(f"transformers, {attention}",
                                 lambda a=attention: forwards.transformers(a), x, y,
                                 graph=True)  # fmt: skip
            fp8 = meter.size(True, "emulate")
            forwards.measure("dafast, fp8", lambda fp8=fp8: forwards.dafast(fp8=fp8), x, y,
                             tolerance=FP8_TOLERANCE)  # fmt: skip
        x, y = forwards.inputs(batches[1], PICTURE)
        forwards.measure("dafast", forwards.dafast, x, y)
        for batch in batches:  # the profiler may slow down later launches of its process
            x, y = forwards.inputs(batch, SIZE)
            forwards.measure("dafast, kernels", forwards.dafast, x, y, kernels=True)
        for batch in reversed(batches):  # compiling takes longest
            x, y = forwards.inputs(batch, SIZE)
            forwards.measure("transformers, sdpa, torch.compile",
                             lambda: meter.compile(forwards.transformers("sdpa")), x, y,
                             graph=True)  # fmt: skip


def model_vits(meter: Meter, records: Records) -> None:
    """The forward of ViT-S, batch 1 and 16."""
    _model(meter, records, "vits")


def model_vitl(meter: Meter, records: Records) -> None:
    """The forward of ViT-L, batch 1 and 16."""
    _model(meter, records, "vitl")


def _write_photo(path: Path, height: int, width: int) -> None:
    """Writes a JPEG that is smooth with some noise, as a photo is."""
    from PIL import Image

    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [127 + 100 * np.sin(x / s + y / t) for s, t in ((70, 90), (50, 200), (300, 40))]
    photo = np.stack(waves, axis=-1)
    photo += np.random.default_rng(0).normal(0, 5, photo.shape)
    Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def infer(meter: Meter, records: Records) -> None:
    """`infer` from a JPEG to a map in the host's memory, and its parts."""
    height, width = meter.size((1080, 1920), (40, 60))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "photo.jpg")
        _write_photo(path, height, width)
        photo = np.asarray(load_image(path))
        record = {"photo": [height, width]}
        attempt(records, {**record, "what": "read the file"},
                lambda: meter.time(lambda: load_image(path)))  # fmt: skip
        for preset in ("vits", "vitl"):
            model = DepthAnything(meter.size(preset, SMALL)).eval()
            model = model.to(meter.device, torch.bfloat16)
            many = [str(path)] * meter.size(32, 2)
            for graphs in (True, False):
                model.optimize(cuda_graphs=graphs)
                about = {**record, "model": preset, "graphs": graphs}
                for what, source in (("an array", photo), ("a file", path)):

                    def one(model: Any = model, source: Any = source) -> dict[str, Any]:
                        for _ in range(2):
                            model.infer(source)
                        return meter.time(lambda: model.infer(source))

                    attempt(records, {**about, "what": f"infer {what}"}, one)

                def files(model: Any = model, many: list[str] = many) -> dict[str, Any]:
                    for _ in range(2):
                        model.infer(many)
                    found = meter.time(lambda: model.infer(many))
                    return {**found, "images_s": 1e3 * len(many) / found["wall_ms"]}

                attempt(records, {**about, "what": f"infer {len(many)} files"}, files)
        _copies(meter, records, height, width)


def _copies(meter: Meter, records: Records, height: int, width: int) -> None:
    photo = torch.zeros(height, width, 3, dtype=torch.uint8)
    result = torch.rand(height, width, device=meter.device)

    def pinned(x: Tensor) -> Tensor:
        return torch.empty_like(x, device="cpu", pin_memory=not meter.stub)

    runs: dict[str, Callable[[], Callable[[], Any]]] = {
        "photo to the device": lambda: lambda: photo.to(meter.device),
        "photo to the device, pinned": lambda: (
            lambda host: lambda: host.to(meter.device, non_blocking=True)
        )(pinned(photo)),
        "map to the host": lambda: result.cpu,
        "map to the host, pinned": lambda: (
            lambda host: lambda: host.copy_(result, non_blocking=True)
        )(pinned(result)),
    }
    for what, make in runs.items():
        attempt(records, {"copy": what}, lambda make=make: meter.time(make(), 40))


@contextlib.contextmanager
def sdpa_and_references() -> Iterator[None]:
    """Every op by its reference, attention by SDPA."""
    with contextlib.ExitStack() as stack:
        for op in OPS.values():
            known = {k: v for k, v in op.backends.items() if k in ("sdpa", "reference")}
            stack.enter_context(mock.patch.object(op, "backends", known))
        _dispatch.forget_choices()
        try:
            yield
        finally:
            _dispatch.forget_choices()


def training_step(model: DepthAnything, labeled: int, unlabeled: int) -> Callable[[], Any]:
    """A step of a teacher, or of a student if there are unlabeled images.

    Both passes under autocast to bfloat16, the losses, the frozen encoder of a student, AdamW; not
    the loader, the colours and the labels of a teacher in the loop.
    """
    device, (height, width) = model.device, (SIZE if model.device.type == "cuda" else (28, 28))
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    frozen = None
    if unlabeled:
        frozen = copy.deepcopy(model.pretrained).bfloat16().eval().requires_grad_(False)
    x = torch.randn(labeled + unlabeled, 3, height, width, device=device)
    target = torch.rand(labeled + unlabeled, height, width, device=device)
    mask = target > 0.1
    region = torch.zeros_like(mask[labeled:])
    region[:, : height // 2, : width // 2] = True

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            output = model(x, features=unlabeled > 0)
        prediction, features = output if unlabeled else (output, None)
        prediction = prediction.float()
        total = affine_invariant_loss(prediction[:labeled], target[:labeled], mask[:labeled])
        if frozen is not None:
            with torch.no_grad():
                wanted = frozen(x[labeled:].bfloat16())
            total = total + affine_invariant_loss(
                prediction[labeled:], target[labeled:], mask[labeled:], regions=region
            )
            total = (total + feature_alignment_loss(features[labeled:], wanted)) / 3
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


TRAINING = (("vitl", 8, 0), ("vitl", 8, 16), ("vits", 16, 0), ("vits", 8, 16))
"""Preset, labeled images and unlabeled images of a step."""


def train(meter: Meter, records: Records) -> None:
    """A training step of teacher and student, next to one with SDPA and the references."""
    for preset, labeled, unlabeled in TRAINING:
        for who in ("dafast", "SDPA and references"):

            def figures(who: str = who, preset: str = preset, counts: tuple[int, int] = (
                labeled, unlabeled)) -> dict[str, Any]:  # fmt: skip
                counts = meter.size(counts, tuple(min(n, 2) for n in counts))
                context = contextlib.nullcontext if who == "dafast" else sdpa_and_references
                with context():
                    model = DepthAnything(meter.size(preset, SMALL)).to(meter.device)
                    step = training_step(model, *counts)
                    for _ in range(2):
                        step()
                    peak = meter.peak_bytes(step)
                    found = meter.time(step, 400)
                return {**found, "images_s": 1e3 * sum(counts) / found["wall_ms"],
                        "peak_bytes": peak}  # fmt: skip

            record = {"model": preset, "step": "student" if unlabeled else "teacher",
                      "labeled": labeled, "unlabeled": unlabeled, "who": who}  # fmt: skip
            attempt(records, record, figures)
            meter.release()
