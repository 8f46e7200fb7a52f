"""Videos with images that are trained beside them, as in Open-Sora-Plan v1.0 and v1.1."""

from __future__ import annotations

from typing import Any

import numpy as np

from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.errors import UserError

TEXT = ("input_ids", "cond", "cond_mask")  # the arrays of a sample with a row for each of its texts


class JointDataset(T2VDataset):
    """Samples of `T2VDataset`, each with N = `use_image_num` images.

    The images are frames of the video, evenly spaced, with its caption; or those of `image_data`, N after N in the
    order of the file, where group i of the images belongs to video i, modulo the number of groups.

    Raises:
        UserError: as `T2VDataset`; or fewer than N images.
    """

    def __init__(self, options: T2VDataOptions, tokenizer: Any, quiet: bool = False):
        super().__init__(options, tokenizer, quiet)
        self.images = None
        if options.image_data is not None:
            self.images = T2VDataset(options.of_images(), tokenizer, quiet)
            if len(self.images.index) < options.use_image_num:
                raise UserError(
                    f"{options.image_data}: has {len(self.images.index)} images, fewer than --use_image_num "
                    f"{options.use_image_num}"
                )

    def item(self, index: int, rng: np.random.Generator) -> dict:
        """As `T2VDataset.item`, with `images`, float32 (3, N, H, W); rows 1 to N of the texts are those of the images.

        `replaced` counts the images, too.
        """
        sample = super().item(index, rng)
        count = self.options.use_image_num
        if self.images is None:
            frames = np.linspace(0, sample["pixels"].shape[1] - 1, count, dtype=int)
            rows = {name: sample[name] for name in TEXT if name in sample}
            images = [{"pixels": sample["pixels"][:, frame : frame + 1], **rows, "replaced": 0} for frame in frames]
        else:
            first = index % (len(self.images.index) // count) * count
            images = [self.images.item(first + i, rng) for i in range(count)]
        joined = {name: np.concatenate([one[name] for one in (sample, *images)]) for name in TEXT if name in sample}
        replaced = sample["replaced"] + sum(image["replaced"] for image in images)
        pixels = np.concatenate([image["pixels"] for image in images], 1)
        return {**sample, **joined, "images": pixels, "replaced": replaced}
