"""The gate: how far vectors have moved from their fp32 originals, and how far they may."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from likeness_client.errors import InputError
from numpy.typing import NDArray

_NEIGHBOURS = 10
_FEW = 50  # queries; one of fewer is more than two points
_TIE = 1e-5  # cosines that are nearer to each other than fp32 sums are exact


@dataclass(frozen=True, kw_only=True)
class JudgedVectors:
    """What one network, or one signature's chain of networks, makes of the same n products.

    Attributes:
        together: unit vectors FP32 [n, d], computed in batches as a server would; NaN where a product has none.
        alone: the same for some of them, each in a batch of one; NaN where that was not computed.
    """

    together: NDArray[np.float32]
    alone: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RecallLoss:
    """By how much recall@1 is lower than in fp32.

    Attributes:
        points: of a hundred; negative where it is higher.
        error: standard error of ``points``: sqrt(queries that are answered otherwise) / queries, in points. What single
            queries do by chance is of this size.
        queries: products that have another one alike.
    """

    points: float
    error: float
    queries: int


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far the reduced vectors are from the fp32 ones.

    Attributes:
        products: how many were compared.
        cosine_min: smallest cosine of a product's two vectors.
        cosine_mean: mean of those cosines.
        overlap_at_10: share of a product's ten nearest neighbours that stay among its ten nearest, mean.
        batch_distance: largest cosine distance between a product's vector alone and in a batch. Dynamic quantisation
            takes the range of its activations from the whole batch, so that there a product depends on its neighbours.
            NaN, which no limit allows, if a vector alone is no number, or none was computed.
        recall_loss: label -> how far recall@1 falls.
        mixed_recall_loss: the same for reduced queries against an fp32 gallery: an index that stays as it is.
    """

    products: int
    cosine_min: float
    cosine_mean: float
    overlap_at_10: float
    batch_distance: float
    recall_loss: Mapping[str, RecallLoss] = field(default_factory=dict)
    mixed_recall_loss: Mapping[str, RecallLoss] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reduced file may cost.

    Recall is the measure that counts; the others also see what labels do not, and hold where there are none.

    Attributes:
        recall_loss: points of a hundred that the measured recall@1 may fall, for every label: of a network by itself,
            and in the mean of the signatures that it has a part in.
        signature_slack: standard errors by which a single signature may exceed ``recall_loss``. With a few hundred
            queries two or three are a point, and signatures, labels and galleries make dozens of figures: one of them
            exceeds it by chance alone.
        cosine_mean: of reduced to fp32 vectors, at least.
        cosine_min: the same for the worst product.
        overlap_at_10: at least.
        batch_distance: at most.

    Raises:
        InputError: one of the first two is no finite number.
    """

    recall_loss: float = 0.5
    signature_slack: float = 2.0
    cosine_mean: float = 0.98
    cosine_min: float = 0.90
    overlap_at_10: float = 0.80
    batch_distance: float = 0.05

    def __post_init__(self) -> None:
        for option, value in (("--max-recall-loss", self.recall_loss), ("--recall-slack", self.signature_slack)):
            if not isfinite(value):  # the manifest holds the limits, and JSON no such number
                raise InputError(f"{option} {value:g}: give a finite number; no loss is above 100")

    def faults(self, drift: Drift) -> list[str]:
        """Return what is wrong with a network by itself, in words; empty if it passes."""
        return [*self._movements(drift), *self._losses(drift, 0.0)]

    def signature_faults(self, drift: Drift) -> list[str]:
        """Return what is wrong with a single signature, in words; empty if it passes."""
        return [*self._movements(drift), *self._losses(drift, self.signature_slack)]

    def _movements(self, drift: Drift) -> list[str]:
        if not drift.products:
            return ["no product to judge it on"]
        floors = {
            "mean cosine to fp32": (drift.cosine_mean, self.cosine_mean),
            "smallest cosine to fp32": (drift.cosine_min, self.cosine_min),
            "neighbour overlap@10": (drift.overlap_at_10, self.overlap_at_10),
        }
        # Written as "not at least" so that NaN is a fault, too.
        faults = [f"{name} {found:.3f} < {least:g}" for name, (found, least) in floors.items() if not found >= least]
        if not drift.batch_distance <= self.batch_distance:
            faults.append(f"alone and in a batch {drift.batch_distance:.3f} apart > {self.batch_distance:g}")
        return faults

    def _losses(self, drift: Drift, slack: float) -> list[str]:
        limit = f"{self.recall_loss:g} + {slack:g} standard errors" if slack else f"{self.recall_loss:g}"
        return [
            f"recall@1 by {label}{name} falls {loss.points:.2f} ± {loss.error:.2f} points > {limit}"
            for name, losses in (("", drift.recall_loss), (", fp32 gallery", drift.mixed_recall_loss))
            for label, loss in losses.items()
            if not loss.points <= self.recall_loss + slack * loss.error
        ]

    def mean_faults(self, drifts: Collection[Drift]) -> list[str]:
        """Return what is wrong with all signatures taken together, in words; empty if they pass."""
        means = {
            "": mean_points([drift.recall_loss for drift in drifts]),
            ", fp32 gallery": mean_points([drift.mixed_recall_loss for drift in drifts]),
        }
        return [
            f"recall@1 by {label}{name}, mean of signatures, falls {points:.2f} points > {self.recall_loss:g}"
            for name, losses in means.items()
            for label, points in losses.items()
            if not points <= self.recall_loss
        ]


def mean_points(losses: Collection[Mapping[str, RecallLoss]]) -> dict[str, float]:
    """Return label -> loss of recall@1 in points, mean over signatures.

    Of signatures with few queries only where none has more: one query of a rare one would outweigh all that the others
    have lost.
    """
    found: dict[str, list[RecallLoss]] = {}
    for of_labels in losses:
        for label, loss in of_labels.items():
            found.setdefault(label, []).append(loss)
    counted = {label: [loss for loss in every if loss.queries >= _FEW] or every for label, every in found.items()}
    return {label: float(np.mean([loss.points for loss in some])) for label, some in counted.items()}


def measure(before: JudgedVectors, after: JudgedVectors, labels: Mapping[str, NDArray[np.str_]]) -> Drift:
    """Compare reduced vectors with fp32 ones.

    Args:
        before: the fp32 vectors of n products.
        after: the reduced vectors of the same.
        labels: label -> its value per product; products with an equal one are alike, empty is skipped.
    """
    rows = np.flatnonzero(~np.isnan(before.together).any(1))
    old, new, alone = (_unit(vectors[rows]) for vectors in (before.together, after.together, after.alone))
    cosines = np.einsum("nd,nd->n", old, new)
    # The fp32 vectors say which products were run alone: NaN among the reduced ones is a fault, not a product less.
    single = ~np.isnan(before.alone[rows]).any(1)
    distances = 1 - np.einsum("nd,nd->n", alone[single], new[single])
    scores, reduced = (_without_itself(vectors @ vectors.T) for vectors in (old, new))
    mixed = _without_itself(new @ old.T)
    return Drift(
        products=len(rows),
        cosine_min=float(np.min(cosines)) if len(rows) else 1.0,
        cosine_mean=float(np.mean(cosines)) if len(rows) else 1.0,
        overlap_at_10=_overlap(scores, reduced),
        batch_distance=float(np.max(distances)) if len(distances) else float("nan"),
        recall_loss=_losses(scores, reduced, labels, rows),
        mixed_recall_loss=_losses(scores, mixed, labels, rows),
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length one, exactly: reduced ones are a little off, which is no angle."""
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _without_itself(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    np.fill_diagonal(scores, -np.inf)
    return scores


def _losses(
    old: NDArray[np.float32],
    new: NDArray[np.float32],
    labels: Mapping[str, NDArray[np.str_]],
    rows: NDArray[np.intp],
) -> dict[str, RecallLoss]:
    """Return the loss of recall@1 per label; not for labels that no two of the products share."""
    losses = {}
    for label, of_all in labels.items():
        values = of_all[rows]
        distinct, counts = np.unique(values, return_counts=True)
        queries = np.flatnonzero(np.isin(values, distinct[(counts > 1) & (distinct != "")]))
        if not len(queries):
            continue
        before, after = (values[_nearest(scores[queries])] == values[queries] for scores in (old, new))
        losses[label] = RecallLoss(
            # Counted, not a difference of means: 1 of 200 queries is 0.5 points, and no rounding more.
            points=100 * (int(np.sum(before)) - int(np.sum(after))) / len(queries),
            error=100 * float(np.sqrt(np.sum(before != after))) / len(queries),
            queries=len(queries),
        )
    return losses


def _nearest(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the place of the largest score in each row; of equally large ones the first, however they were rounded."""
    found: NDArray[np.intp] = (scores >= scores.max(1, keepdims=True) - _TIE).argmax(1)
    return found


def _overlap(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
    """Return the share of new neighbours that are among the old ones, or as near as the last of those.

    Many products have the same text and so the same vector; which ten of them come first means nothing.
    """
    size = min(_NEIGHBOURS, len(old) - 1)
    if size < 1:
        return 1.0
    last = -np.partition(-old, size - 1, axis=1)[:, size - 1]
    nearest = np.argpartition(-new, size - 1, axis=1)[:, :size]
    return float(np.mean(np.take_along_axis(old, nearest, axis=1) >= last[:, None] - _TIE))
