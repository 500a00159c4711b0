"""The encoders that a recipe can choose. To add one: write its file and name its configuration here."""

from __future__ import annotations

from likeness_export.encoders.als import AlsConfig
from likeness_export.encoders.base import Encoder, EncoderConfig
from likeness_export.encoders.image_backbone import ImageBackboneConfig
from likeness_export.encoders.image_small import SmallConvNetConfig
from likeness_export.encoders.one_hot import OneHotConfig
from likeness_export.encoders.text_transformer import TextTransformerConfig

AnyEncoderConfig = TextTransformerConfig | ImageBackboneConfig | SmallConvNetConfig | OneHotConfig | AlsConfig

__all__ = ["AnyEncoderConfig", "Encoder", "EncoderConfig"]
