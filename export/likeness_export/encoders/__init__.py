"""The encoders that a recipe can choose. To add one: write its file and name its configuration here."""

from __future__ import annotations

from likeness_export.encoders.als import AlsConfig
from likeness_export.encoders.base import Encoder, EncoderConfig
from likeness_export.encoders.hashed import HashedConfig
from likeness_export.encoders.image_backbone import ImageBackboneConfig
from likeness_export.encoders.image_efficientnet_lite import EfficientNetLiteConfig
from likeness_export.encoders.image_local import LocalFeaturesConfig
from likeness_export.encoders.image_small import SmallConvNetConfig
from likeness_export.encoders.image_timm import TimmConfig
from likeness_export.encoders.one_hot import OneHotConfig
from likeness_export.encoders.text_tfidf import TfidfConfig
from likeness_export.encoders.text_transformer import TextTransformerConfig
from likeness_export.encoders.text_word_vectors import WordVectorsConfig
from likeness_export.encoders.video_c3d import C3dConfig
from likeness_export.encoders.video_cnn_lstm import CnnLstmConfig

AnyEncoderConfig = (
    TextTransformerConfig
    | TfidfConfig
    | WordVectorsConfig
    | ImageBackboneConfig
    | SmallConvNetConfig
    | OneHotConfig
    | HashedConfig
    | AlsConfig
    | EfficientNetLiteConfig
    | LocalFeaturesConfig
    | TimmConfig
    | C3dConfig
    | CnnLstmConfig
)

__all__ = ["AnyEncoderConfig", "Encoder", "EncoderConfig"]
