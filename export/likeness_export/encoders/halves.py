"""Networks of two halves, one of texts and one of photos, that were trained to share a space (CLIP, SigLIP)."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from likeness_export.encoders.base import BACKBONE

TWO_HALVES = frozenset({"clip", "siglip"})
"""What the configurations of whole networks call themselves."""
TEXT_HALVES = frozenset({"clip_text_model", "siglip_text_model"})
"""The same of text halves that were saved alone, without their step into the space."""


OF_TEXTS, OF_PHOTOS = ("text_model.", "text_projection."), ("vision_model.", "visual_projection.")
"""How the names of a half's weights begin."""


def space_of(source: str, tower: Path) -> str:
    """Name the space that both halves of a tower's source share, by the source itself; empty where it has no halves."""
    return source if AutoConfig.from_pretrained(tower / BACKBONE).model_type in TWO_HALVES else ""
