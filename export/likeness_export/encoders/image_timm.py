"""Images by any network of the timm library, by its name there (article, 3.2.2: Inception v3 among a thousand)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from likeness_client.errors import InputError, MissingExtraError
from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder
from likeness_export.encoders.image_common import Normalise, PhotoConfig, PhotoEncoder, seen_at


class TimmConfig(PhotoConfig):
    """``encoder = "timm"``."""

    encoder: Literal["timm"]
    model: str = Field(description="name in timm, e.g. inception_v3 or resnet50.a1_in1k")
    weights: str = Field(
        default="", description="file of its weights, under the data root; default: timm's own, online"
    )
    image_px: int = Field(default=224, ge=32, le=1024, description="side of the square that photos are squashed to")

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:
        """Store the decoder's settings; the name is all that building needs."""
        if not import_timm().is_model(self.model):
            raise InputError(f"timm has no model '{self.model}': timm.list_models() names all")
        super().prepare(items, tower, data_root)

    def build_one(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (timm knows the architecture)
        """Load the pretrained network, or its bare architecture."""
        # timm's documented way to local weights is an entry of the pretrained configuration.
        overlay = {"file": str(source_root / self.weights)} if source_root and self.weights else None
        network = import_timm().create_model(
            self.model, pretrained=source_root is not None, pretrained_cfg_overlay=overlay, num_classes=0
        )
        return TimmNetwork(network, self.image_px)


class TimmNetwork(PhotoEncoder):
    """The network's pooled output, which timm gives when there are no classes.

    Raises:
        InputError: the network does not take photos of ``image_px``.
    """

    def __init__(self, network: nn.Module, image_px: int) -> None:
        super().__init__()
        self.network = network
        trained: dict[str, Any] = vars(network)["pretrained_cfg"]
        self.normalise = Normalise(tuple(trained["mean"]), tuple(trained["std"]))
        self.feature_dim = seen_at(image_px, self.eval()).shape[1]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``pixels``, UINT8 [n, px, px, 3]."""
        features: Tensor = self.network(self.normalise(tensors[0]))
        return features  # (n, f)


def import_timm() -> ModuleType:
    """Import timm.

    Raises:
        MissingExtraError: timm is not installed, or its torchvision does not fit the installed build of torch.
    """
    try:
        import timm
    # RuntimeError: torchvision from PyPI beside a CPU-only torch ("operator torchvision::nms does not exist").
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError("timm", f"timm, with a torchvision that fits torch ({error}),") from error
    module: ModuleType = timm
    return module
