"""The product network: towers, fusion head and learned metric of one recipe, joined."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from likeness_client.contract import modalities_of
from likeness_client.errors import InputError, LikenessError
from torch import Tensor, nn

from likeness_export.encoders import Encoder
from likeness_export.encoders.base import ASSETS
from likeness_export.networks.fusion import Fusion
from likeness_export.networks.similarity import LearnedMetric
from likeness_export.networks.unit import unit
from likeness_export.recipe import Recipe


class Tower(nn.Module):
    """An encoder and its projection into the space."""

    def __init__(self, encoder: Encoder, dimension: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.feature_dim, dimension)
        # Starts as a rotation, as far as the sizes allow: what a pretrained encoder finds alike is alike at once.
        nn.init.orthogonal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def project(self, features: Tensor) -> Tensor:
        """Turn features FP32 [n, f] into unit vectors FP32 [n, d]."""
        return unit(self.projection(features), training=self.training)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Turn the encoder's tensors into unit vectors FP32 [n, d]."""
        return self.project(self.encoder(*tensors))


class ProductNetwork(nn.Module):
    """Everything that a recipe trains.

    Attributes:
        tower_modalities: tower name -> modality, in the recipe's order.
        modalities: the modalities, in the contract's order.
    """

    membership: Tensor

    def __init__(self, towers: Mapping[str, Tower], recipe: Recipe) -> None:
        super().__init__()
        self.tower_modalities = recipe.tower_modalities()
        self.modalities = recipe.modalities()
        self.towers = nn.ModuleDict(dict(towers))
        self.fusion: Fusion = recipe.fusion.build(len(towers), recipe.dimension)
        self.metric = LearnedMetric(recipe.embedding_dimension(), recipe.similarity.hidden)
        membership = torch.tensor([[m == t for m in self.modalities] for t in self.tower_modalities.values()])
        self.register_buffer("membership", membership, persistent=False)  # (t, m): tower belongs to modality

    def tower(self, name: str) -> Tower:
        """Return a tower by name."""
        tower = self.towers[name]
        assert isinstance(tower, Tower)
        return tower

    def fuse(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the towers' vectors.

        Args:
            vectors: FP32 [n, t, d].
            present: BOOL [n, m], the modalities that each product has; [1, m] if all have the same.

        Returns:
            Embedding FP32 [n, d] and modality weights FP32 [n, m].
        """
        towers_present = (present.unsqueeze(1) & self.membership).any(2)  # (n, t)
        embedding, weights = self.fusion(vectors, towers_present)
        return embedding, weights @ self.membership.to(weights.dtype)

    def modality_vector(self, vectors: Tensor, modality: int) -> Tensor:
        """Return the unit vector FP32 [n, d] of the modality at a place in ``modalities``: its towers' mean.

        ``vectors`` are all towers' unit vectors, FP32 [n, t, d].
        """
        return unit(vectors[:, self.membership[:, modality]].mean(1), training=self.training)


class SignatureFusion(nn.Module):
    """The fusion head of one signature, as it is exported: it takes the vectors of the signature's towers."""

    present: Tensor

    def __init__(self, network: ProductNetwork, signature: str) -> None:
        super().__init__()
        self.network = network
        self.towers = [
            name for name, modality in network.tower_modalities.items() if modality in modalities_of(signature)
        ]
        present = torch.tensor([[modality in modalities_of(signature) for modality in network.modalities]])
        self.register_buffer("present", present, persistent=False)
        self.columns = [place for place, there in enumerate(present[0].tolist()) if there]

    def forward(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        """Fuse t' vectors FP32 [n, d] into the embedding FP32 [n, e] and, if several, modality weights FP32 [n, m']."""
        given = dict(zip(self.towers, vectors, strict=True))
        blank = torch.zeros_like(vectors[0])
        stacked = torch.stack([given.get(name, blank) for name in self.network.tower_modalities], 1)  # (n, t, d)
        embedding, weights = self.network.fuse(stacked, self.present)
        return (embedding, weights[:, self.columns]) if len(self.columns) > 1 else (embedding,)


def build_network(recipe: Recipe, towers: Path, source_root: Path | None) -> ProductNetwork:
    """Build the network of a recipe from a folder with one prepared folder per tower.

    ``source_root`` is where to look for pretrained weights; None when a state dict will be loaded.

    Raises:
        InputError: a tower's encoder cannot be built, or its files are damaged; names the tower.
        MissingExtraError: the package of an encoder is not installed.
    """
    built: dict[str, Tower] = {}
    first: dict[str, Tower] = {}  # of each shared space
    for name, config in recipe.towers.items():
        try:
            built[name] = Tower(config.build(towers / name, source_root), recipe.dimension)
            if source_root is None:  # what only the preprocessing reads must not be missed where it is served
                config.preprocessing.Preprocessor(towers / name / ASSETS)
            if space := config.shared_space(towers / name):  # one rotation for all, so that it stays one space
                like = first.setdefault(space, built[name])
                built[name].projection.load_state_dict(like.projection.state_dict())
        except InputError as error:
            raise InputError(f"towers.{name}: {error}") from error
        except Exception as error:  # libraries fail with many types on files that they cannot read
            if source_root is not None or isinstance(error, (LikenessError, ImportError)):
                raise  # in training they were written just now
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"towers.{name}: {towers / name} is damaged ({reason}): copy its folder again, or remove the run and "
                "train anew"
            ) from error
    return ProductNetwork(built, recipe)
