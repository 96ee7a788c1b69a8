"""The family of encoders."""

from nnunet.encoders.attention_gated import AttentionGated
from nnunet.encoders.base import Encoder
from nnunet.encoders.plain import Plain
from nnunet.encoders.residual import Residual
from utils.registry import Registry

ENCODERS: Registry[Encoder] = Registry("encoder", AttentionGated, Plain, Residual)
