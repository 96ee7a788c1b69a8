"""The family of augmentations; a recipe is an ordered list of them."""

from collections.abc import Sequence

from data_loading.augmentations.base import Augmentation
from data_loading.augmentations.brightness import Brightness
from data_loading.augmentations.mirror import Mirror
from data_loading.augmentations.noise import Noise
from utils.registry import Registry

AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", Noise, Brightness, Mirror)


def build_recipe(choices: Sequence[str]) -> tuple[Augmentation, ...]:
    """The augmentations called for, in order: ("noise:probability=0.2", "mirror"); ("none",) is empty."""
    if tuple(choices) == ("none",):
        return ()
    return tuple(AUGMENTATIONS.build(choice) for choice in choices)
