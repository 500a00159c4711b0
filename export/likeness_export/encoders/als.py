"""Interactions by collaborative filtering: implicit-feedback matrix factorisation (article, 2.1.2).

After Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (2008).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from joblib import cpu_count
from likeness_client.contract import MAX_BYTES
from likeness_client.errors import InputError
from likeness_client.writing import write_array
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from likeness_export.encoders.base import ASSETS, Encoder, EncoderConfig, write_asset
from likeness_export.preprocessing import interactions
from likeness_export.tensors import TensorSpec

_VANISHED = 1e-6  # the length of a user's factors; where there is something to tell, they are some tenths long


class AlsConfig(EncoderConfig):
    """``encoder = "als"``."""

    modality: ClassVar[str] = "interactions"
    preprocessing: ClassVar[ModuleType] = interactions

    encoder: Literal["als"]
    factors: int = Field(default=64, ge=2, le=1024, description="length of the users' and products' vectors")
    regularization: float = Field(default=1.0, gt=0, description="lambda of Hu et al., formula 3")
    iterations: int = Field(default=15, ge=1, description="how often users and products take turns")
    # Hu et al. found 40, for hours of television. With the small counts of the demo's shoppers 56 % of the nearest
    # neighbours are of the same design at 1, and 40 % at 40.
    alpha: float = Field(default=1.0, gt=0, le=1e6, description="confidence = 1 + alpha * count")
    min_interactions: int = Field(
        default=2, ge=1, description="users of fewer training products are left out: one product ties nothing together"
    )
    seed: int = Field(default=7, ge=0, lt=2**32, description="of the factors' random start")

    def tensors(self) -> tuple[TensorSpec, ...]:
        """The product's factors."""
        return (TensorSpec("item_factors", "FP32", (self.factors,)),)

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:  # noqa: ARG002 (no pretrained part)
        """Factorise the training products' interactions; keep the users' half, which new products are folded into."""
        limit = MAX_BYTES["interactions"]
        products = [interactions.read_counts(item, limit) for item in items]
        active = Counter(user for counts in products for user in counts)
        users = sorted(user for user, count in active.items() if count >= self.min_interactions)
        if not users:
            raise InputError(
                f"towers.{tower.name}: no user has interacted with {self.min_interactions} of the {len(items)} "
                "training products: lower min_interactions or give more interactions"
            )
        try:
            factors = self.factorise(users, products)
        except ValueError as error:  # of a matrix that is singular in FP32, which implicit computes in
            raise InputError(
                f"towers.{tower.name}: the factors of {len(users)} users cannot be computed ({error}): raise "
                "regularization, or lower alpha or factors"
            ) from error
        if np.linalg.norm(factors, axis=1).max() < _VANISHED:  # a product's would be too short to have a direction
            raise InputError(
                f"towers.{tower.name}: regularization {self.regularization:g} leaves nothing of the factors of "
                f"{len(users)} users: lower it, or give more interactions"
            )
        settings = {"alpha": self.alpha, "regularization": self.regularization, "max_bytes": limit}
        write_asset(tower, interactions.SETTINGS_FILE, settings)
        write_asset(tower, interactions.USERS_FILE, users)
        write_array(tower / ASSETS / interactions.FACTORS_FILE, factors)

    def factorise(self, users: Sequence[str], products: Sequence[dict[str, float]]) -> NDArray[np.float32]:
        """Return the users' factors, FP32 [users, f]; the same numbers every time, as a resumed training needs."""
        # Here, because only this needs them, and loading them takes longer than all the rest of this module.
        from implicit.cpu.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        confidences = csr_matrix(self.confidences(users, products), shape=(len(users), len(products)))
        with threadpool_limits(limits=1, user_api="blas"):  # several threads would add up in another order every time
            model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularization,
                iterations=self.iterations,
                alpha=1.0,  # the values are confidences already; implicit's own are alpha * count, without the 1
                use_cg=False,  # exact, so that folding in is the very step that training took
                num_threads=min(torch.get_num_threads(), cpu_count()),  # each user's are solved for by themselves
                random_state=self.seed,
            )
            model.fit(confidences, show_progress=False)
        factors: NDArray[np.float32] = model.user_factors
        return factors

    def confidences(
        self, users: Sequence[str], products: Sequence[dict[str, float]]
    ) -> tuple[NDArray[np.float32], tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Return ``1 + alpha * count`` of every known user and product, and where: (rows of users, of products)."""
        places = {user: place for place, user in enumerate(users)}
        found = [
            (places[user], column, 1 + self.alpha * count)
            for column, counts in enumerate(products)
            for user, count in counts.items()
            if user in places
        ]
        rows, columns, values = (np.array(part) for part in zip(*found, strict=True))
        return values.astype(np.float32), (rows.astype(np.int32), columns.astype(np.int32))

    def build(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (there are no pretrained weights)
        """Build it; the factors are the preprocessing's."""
        return Als(self.factors)


class Als(Encoder):
    """The product's factors at unit length: what kind of users, not how many. The projection learns the rest."""

    def __init__(self, factors: int) -> None:
        super().__init__()
        self.feature_dim = factors

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``item_factors``, FP32 [n, f]."""
        return F.normalize(tensors[0], dim=1)
