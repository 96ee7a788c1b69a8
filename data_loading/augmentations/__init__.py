"""The family of augmentations; data_loading/recipes.py puts them in order."""

from data_loading.augmentations.base import Augmentation
from data_loading.augmentations.brightness import Brightness
from data_loading.augmentations.mirror import Mirror
from data_loading.augmentations.noise import Noise
from data_loading.augmentations.rotate_scale import RotateScale
from utils.registry import Registry

AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    RotateScale,
    Noise,
    Brightness,
    Mirror,
)
