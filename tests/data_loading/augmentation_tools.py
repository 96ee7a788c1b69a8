"""What tests of augmentations share: a phantom, and one part run in a DALI graph or on the host."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.types import DALIDataType

from data_loading.augmentations.base import Augmentation, DrawContext
from utils.contracts import Shape

Arrays = tuple[list[np.ndarray], list[np.ndarray]]


def always(part: Augmentation) -> Augmentation:
    """The part with every probability at 1."""
    certain = {field.name: 1.0 for field in fields(part) if field.name.endswith("probability")}
    return replace(part, **certain)


def draws(part: Augmentation, number: int, context: DrawContext, seed: int = 0) -> np.ndarray:
    """Drawn vectors (number, n)."""
    random = np.random.default_rng(seed)
    return np.stack([part.draw(random, context) for _ in range(number)])


def phantom(shape: Shape, num_channels: int, place: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels -1 to 2 in blocks that no flip maps onto themselves, and an image that is 10 x label + 20."""
    depth, height, width = shape
    label = np.zeros((1, *shape), np.int16)
    label[:, : depth // 3, : height // 3, : width // 3] = 1
    label[:, depth // 2 :, height // 2 :, : width // 2] = 2
    label[:, :, -1 - place % 2] = -1
    return np.repeat(10 * label + 20, num_channels, axis=0).astype(np.float32), label


def random_block(shape: Shape, num_channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image of normal-like values, and labels -1 to 2 that follow its first channel."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    image = np.stack(
        [ndimage.gaussian_filter(random.normal(size=shape), 1.5) * 5 for _ in range(num_channels)]
    )
    label = np.digitize(image[:1], [-1.0, 0.3, 1.0]).astype(np.int16) - 1
    return image.astype(np.float32), label


def in_graph(part: Augmentation, drawn: Sequence[np.ndarray], inputs: Arrays) -> Arrays:
    """Images and labels of one batch after `part.apply` has acted in a CPU graph."""
    images, labels = inputs

    @pipeline_def(enable_conditionals=True)
    def graph():  # noqa: ANN202
        image, label, values = fn.external_source(
            source=lambda: (images, labels, list(drawn)),
            num_outputs=3,
            dtype=[DALIDataType.FLOAT, DALIDataType.INT16, DALIDataType.FLOAT],
            ndim=[4, 4, 1],
            layout=["CDHW", "CDHW", ""],
        )
        return part.apply(image, label, values)

    built: Any = graph
    pipeline = built(batch_size=len(drawn), num_threads=1, device_id=None, seed=0, prefetch_queue_depth=1)
    pipeline.build()
    image, label = pipeline.run()
    places = range(len(drawn))
    return [np.array(image.at(i)) for i in places], [np.array(label.at(i)) for i in places]


def on_host(part: Augmentation, drawn: Sequence[np.ndarray], inputs: Arrays) -> Arrays:
    """The same by `part.compute`, called where the source would call it."""
    images, labels = [], []
    for values, image, label in zip(drawn, *inputs, strict=True):
        image, label = image.copy(), label.copy()
        if values[0]:
            image, label = part.compute(image, label, values)
        images.append(image)
        labels.append(label)
    return images, labels
