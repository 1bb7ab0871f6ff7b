"""The batches of the ablation's tasks; experiments/ablation_tasks.py trains with them."""

from __future__ import annotations

import numpy as np
import torch

from dafast.data.cutmix import cutmix_region
from dafast.data.resident import ResidentSet, crop, epoch_batch, random_boxes, random_colours
from dafast.data.transforms import sample_generator
from dafast.training.config import TrainConfig
from dafast.training.data import Batch, UnlabeledBatch

_LABELED, _UNLABELED, _CUTMIX = 1, 2, 3  # streams of random numbers


class Batches:
    """Creates the batch of a step on the device, as a pure function of the step and the seed.

    Args:
        config: The configuration of the task.
        labeled: Pictures with labels.
        unlabeled: Pictures with a teacher's labels, for a student.
    """

    def __init__(
        self, config: TrainConfig, labeled: ResidentSet, unlabeled: ResidentSet | None
    ) -> None:
        self.config, self.labeled, self.unlabeled = config, labeled, unlabeled
        self.device = labeled.image.device
        extra = config.unlabeled.ratio if unlabeled is not None else 0
        self.pictures = config.batch_size * (1 + extra)

    def generator(self, stream: int, step: int) -> torch.Generator:
        """The random numbers of a stream in a step."""
        seed = np.random.SeedSequence([self.config.seed, stream, step]).generate_state(1)[0]
        return torch.Generator(self.device).manual_seed(int(seed))

    def __call__(self, step: int) -> Batch:
        config, data = self.config, self.labeled
        shape = config.data.shapes[0]
        assert data.disparity is not None and data.mask is not None
        generator = self.generator(_LABELED, step)
        index = epoch_batch(len(data), config.batch_size, step, config.seed).to(self.device)
        boxes = random_boxes(len(index), config.augment, data.image.shape[-2:], shape, generator)
        return Batch(
            crop(data.image[index], boxes, shape),
            random_colours(len(index), generator),
            crop(data.disparity[index], boxes, shape, nearest=True),
            crop(data.mask[index], boxes, shape, nearest=True) > 0.5,
            [],
            [],
            self.unlabeled_batch(step, shape) if self.unlabeled is not None else None,
        )

    def unlabeled_batch(self, step: int, shape: tuple[int, int]) -> UnlabeledBatch:
        """Crops, random numbers for their colours, the teacher's labels, and CutMix's regions."""
        section, data = self.config.unlabeled, self.unlabeled
        assert data is not None and data.disparity is not None and data.mask is not None
        count, seed = self.config.batch_size * section.ratio, self.config.seed
        generator = self.generator(_UNLABELED, step)
        # The order differs from that of the labeled pictures of the same seed.
        index = epoch_batch(len(data), count, step, seed + 1_000_000).to(self.device)
        boxes = random_boxes(count, section.augment, data.image.shape[-2:], shape, generator)
        rng = sample_generator(seed, _CUTMIX, step)
        regions = [
            cutmix_region(
                shape,
                rng,
                probability=section.cutmix,
                area=section.cutmix_area,
                aspect=section.cutmix_aspect,
            )
            for _ in range(count)
        ]
        return UnlabeledBatch(
            crop(data.image[index], boxes, shape),
            random_colours(count, generator),
            crop(data.disparity[index], boxes, shape, nearest=True),
            crop(data.mask[index], boxes, shape, nearest=True) > 0.5,
            torch.from_numpy(np.stack(regions)).to(self.device),
        )
