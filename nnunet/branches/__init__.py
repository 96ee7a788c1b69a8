"""The family of classification branches."""

from nnunet.branches.base import Branch
from nnunet.branches.roi_pooled import RoiPooled
from nnunet.branches.simple import Simple
from utils.registry import Registry

BRANCHES: Registry[Branch] = Registry("branch", RoiPooled, Simple)
