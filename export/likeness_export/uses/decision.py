"""The decision whether scores mean the same product: a probability, and the threshold with the best expected F1.

The threshold that happens to have the best F1 on a hundred positive pairs is a noisy thing. Logistic regression on the
scores (Platt 1999, probabilistic outputs for support vector machines) has few parameters, takes several scores of a
pair at once, and gives probabilities. The F1 that these let expect is highest where everything is matched whose
probability is at least half of that F1 (Lipton et al. 2014, optimal thresholding of classifiers to maximize F1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from likeness_client.errors import InputError
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Features: TypeAlias = NDArray[np.float32]
"""What is known of pairs, [p, f]: a score, or several; NaN where a product has no embedding."""
Probabilities: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.intp]
_TRUST = 10.0  # inverse regularisation: margins by several k are much alike, and their differences tell


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How well the pairs above a threshold are the positive ones.

    Attributes:
        pairs: how many pairs.
        positives: how many of them are positive.
        precision: NaN if nothing was matched.
        recall: NaN if nothing is positive.
        f1: NaN if nothing is positive; 0 if nothing positive was matched.
    """

    pairs: int
    positives: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A probability, ``1 / (1 + exp(-(weights . features + intercept)))``, and the threshold to match from.

    Attributes:
        weights: one per feature.
        intercept: in the same units.
        threshold: pairs with at least this probability are matched.
    """

    weights: tuple[float, ...]
    intercept: float
    threshold: float

    def probabilities(self, features: Features) -> Probabilities:
        """Return FP64 [p], the probability of each pair; NaN where a feature is."""
        logits = features.astype(np.float64) @ np.array(self.weights) + self.intercept
        found: Probabilities = expit(logits)
        return found

    @property
    def is_turned(self) -> bool:
        """Whether the score is the only feature and a higher one does not mean more alike."""
        return len(self.weights) == 1 and self.weights[0] <= 0

    @property
    def score_threshold(self) -> float:
        """The score to match from, where the score is the only feature and a higher one means more alike; else NaN."""
        if len(self.weights) != 1 or self.is_turned:
            return float("nan")
        return float((logit(self.threshold) - self.intercept) / self.weights[0])


def fit_decision(features: Features, labels: Labels) -> Decision:
    """Fit probabilities on labelled pairs, and choose the threshold with the best F1 that they let expect.

    Args:
        features: FP32 [p, f]; pairs with NaN teach nothing and can never be matched: of a positive one F1 is the lower.
        labels: [p], 1 or 0.

    Raises:
        InputError: no positive pair, or no other pair, has its features.
    """
    usable = ~np.isnan(features).any(1)
    for kind, wanted in (("positive", 1), ("negative", 0)):
        if not (labels[usable] == wanted).any():
            raise InputError(
                f"a threshold cannot be chosen: none of the {len(labels)} train pairs is {kind} and has embeddings on "
                "both sides; name their split with --train-split, or look whether left_id and right_id are ids of the "
                "product file"
            )
    scaling, regression = StandardScaler(), LogisticRegression(C=_TRUST)
    model = make_pipeline(scaling, regression).fit(features[usable].astype(np.float64), labels[usable])
    weights = regression.coef_[0] / scaling.scale_
    probabilities = model.predict_proba(features[usable].astype(np.float64))[:, 1]
    return Decision(
        weights=tuple(weights.tolist()),
        intercept=float(regression.intercept_[0] - weights @ scaling.mean_),
        threshold=_expected_best(probabilities, int(labels[~usable].sum())),
    )


def _expected_best(probabilities: Probabilities, lost: int) -> float:
    """Return half of the best expected F1; the expectation is taken in numerator and denominator apart.

    Args:
        probabilities: of the pairs that can be matched.
        lost: positive pairs that cannot.
    """
    falling = np.sort(probabilities)[::-1]
    matched = np.arange(1, len(falling) + 1)
    return float((2 * np.cumsum(falling) / (matched + falling.sum() + lost)).max() / 2)


def best_threshold(scores: NDArray[np.floating[Any]], labels: Labels) -> float:
    """Return the threshold with the best F1 on these very pairs: a ceiling for any other.

    It lies half-way between the lowest score that it accepts and the next lower one. Equal scores are accepted or
    refused together; among equally good thresholds the highest is taken.

    Args:
        scores: [p]; NaN: can never be matched.
        labels: [p], 1 or 0.

    Raises:
        InputError: no positive pair has a score.
    """
    usable = ~np.isnan(scores)
    if not labels[usable].any():
        raise InputError(f"there is no best threshold: none of {len(labels)} pairs is positive and has a score")
    values, inverse = np.unique(-scores[usable].astype(np.float64), return_inverse=True)  # falling scores
    values = -values
    accepted = np.cumsum(np.bincount(inverse))
    right = np.cumsum(np.bincount(inverse, weights=labels[usable]))
    f1 = 2 * right / (accepted + labels.sum())  # = 2 tp / (tp + fp + tp + fn)
    best = int(f1.argmax())
    return float(values[best : best + 2].mean())


def figures(scores: NDArray[np.floating[Any]], labels: Labels, threshold: float) -> Figures:
    """Return precision, recall and F1 of the pairs whose score is at least the threshold; NaN is below any."""
    matched = scores.astype(np.float64) >= threshold  # in FP32 the threshold could round to the next lower score
    right, positives = int((matched & (labels == 1)).sum()), int((labels == 1).sum())
    nothing = float("nan")
    return Figures(
        pairs=len(labels),
        positives=positives,
        precision=right / int(matched.sum()) if matched.any() else nothing,
        recall=right / positives if positives else nothing,
        f1=2 * right / (int(matched.sum()) + positives) if positives else nothing,
    )
