"""The family of augmentations; data_loading/recipes.py puts them in order."""

from data_loading.augmentations.base import Augmentation
from data_loading.augmentations.blur import Blur
from data_loading.augmentations.brightness import Brightness
from data_loading.augmentations.contrast import Contrast
from data_loading.augmentations.gamma import Gamma
from data_loading.augmentations.inverted_gamma import InvertedGamma
from data_loading.augmentations.low_resolution import LowResolution
from data_loading.augmentations.mirror import Mirror
from data_loading.augmentations.noise import Noise
from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.augmentations.zero_outside import ZeroOutside
from data_loading.augmentations.zoom import Zoom
from utils.registry import Registry

AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    RotateScale,
    Noise,
    Brightness,
    Contrast,
    InvertedGamma,
    Gamma,
    Mirror,
    Blur,
    LowResolution,
    Zoom,
    ZeroOutside,
)
