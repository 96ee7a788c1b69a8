"""The family of classification branches."""

from nnunet.branches.base import Branch
from nnunet.branches.bottleneck import Bottleneck
from nnunet.branches.memory_query import MemoryQuery
from nnunet.branches.multi_scale import MultiScale
from nnunet.branches.roi_pooled import RoiPooled
from nnunet.branches.roi_scaled import RoiScaled
from nnunet.branches.simple import Simple
from utils.registry import Registry

BRANCHES: Registry[Branch] = Registry(
    "branch", Bottleneck, MemoryQuery, MultiScale, RoiPooled, RoiScaled, Simple
)
