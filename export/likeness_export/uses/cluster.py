"""Clusters of a catalogue: average linkage on cosine, cut at a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from likeness_client.errors import InputError
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, homogeneity_score

from likeness_export.progress import each
from likeness_export.uses.inputs import Vectors, check_vectors

Labels = NDArray[np.intp]
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(19, 1, -1))
"""What ``auto`` tries, 0.95 down to 0.1."""
PART = 4_000
"""The largest part that is linked as a whole; takes memory for its pairs, 130 MB."""
_SAMPLE = 5_000  # products that a silhouette is taken over
_BLOCK_COSINES = 8_000_000  # at a time; 32 MB
_SAME = 1e-6  # the distance of equal vectors is up to this, on either side of zero: their length is 1 in FP32 only
_NEARLY_ALL = 0.9  # of the products: whoever holds more of them has not divided the catalogue


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """A clustering of n products.

    Attributes:
        labels: [n], 0 the largest cluster.
        threshold: the mean cosine between its parts that a cluster has at least.
        silhouette: its silhouette in [-1, 1]; NaN where all products are one cluster, or each is its own.
    """

    labels: Labels
    threshold: float
    silhouette: float

    @property
    def sizes(self) -> NDArray[np.intp]:
        """Products per cluster, falling."""
        return np.bincount(self.labels)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well clusters agree with labels, over the products that have one; 1 is perfect, of the first two 0 is chance.

    Attributes:
        products: how many have a label.
        mutual_information: adjusted for chance.
        rand: the adjusted Rand index.
        homogeneity: whether clusters hold one label each; in [0, 1].
    """

    products: int
    mutual_information: float
    rand: float
    homogeneity: float


def cluster(vectors: Vectors, threshold: float | None) -> Clustering:
    """Cluster products, so that two clusters stay apart when their products' mean cosine is below a threshold.

    Average linkage needs no number of clusters, leaves single products alone, and does not chain as single linkage
    does. A catalogue of more than `PART` products is divided by k-means first, every part is linked and cut, and the
    clusters that are alike across the borders of parts are joined.

    Args:
        vectors: FP32 [n, d], unit length.
        threshold: in [-1, 1]; None: the one of `THRESHOLDS` with the best silhouette, the highest among equals. Those
            that leave nearly all products together come last: seen from a few outliers, all others look alike.

    Raises:
        InputError: the threshold is not in [-1, 1], or a product has no vector.
    """
    check_vectors(vectors)
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise InputError(f"threshold {threshold} is no cosine: it lies between -1 and 1; or leave the choice to 'auto'")
    trees = [(rows, _tree(vectors[rows])) for rows in each(list(_parts(vectors, np.arange(len(vectors)))), "linking")]

    def cut_at(candidate: float) -> Clustering:
        labels = _cut(trees, len(vectors), candidate)
        if len(trees) > 1:
            labels = _joined(vectors, labels, candidate)
        return Clustering(labels=labels, threshold=candidate, silhouette=silhouette(vectors, labels))

    return max(map(cut_at, each(THRESHOLDS if threshold is None else (threshold,), "thresholds")), key=_rank)


def _rank(found: Clustering) -> tuple[bool, float]:
    """Order clusterings by silhouette; those that leave nearly all products together, or have none, come last."""
    together = found.sizes.max(initial=0) > _NEARLY_ALL * len(found.labels)
    return not (together or np.isnan(found.silhouette)), float(np.nan_to_num(found.silhouette, nan=-1.0))


def silhouette(vectors: Vectors, labels: Labels) -> float:
    r"""Return the mean silhouette by cosine distance (Rousseeuw, 1987), over at most 5,000 products drawn at random.

    The mean distance of x to a cluster of unit vectors is :math:`1 - x \cdot c` with c their mean, so that no pair of
    products is ever compared. A product alone in its cluster counts 0, and so does one that is equal to all of its own
    and of another cluster.

    Args:
        vectors: FP32 [n, d], unit length.
        labels: [n], the clusters, numbered from 0.

    Returns:
        A number in [-1, 1]; NaN where all products are one cluster, or each is its own.
    """
    sizes = np.bincount(labels)
    if not 1 < len(sizes) < len(vectors):
        return float("nan")
    sums = _sums(vectors, labels)
    drawn = np.random.default_rng(0).permutation(len(vectors))[:_SAMPLE]
    rows, total = drawn[sizes[labels[drawn]] > 1], 0.0
    for start in range(0, len(rows), 256):
        chosen = rows[start : start + 256]
        own, here = labels[chosen], np.arange(len(chosen))
        dots = vectors[chosen].astype(np.float64) @ sums.T  # (b, clusters)
        inner = 1.0 - (dots[here, own] - 1.0) / (sizes[own] - 1.0)
        outer = 1.0 - dots / sizes
        outer[here, own] = np.inf
        inner, nearest = (np.where(found < _SAME, 0.0, found) for found in (inner, outer.min(1)))
        total += float(((nearest - inner) / np.maximum(np.maximum(nearest, inner), _SAME)).sum())
    return total / len(drawn)


def agreement(labels: Labels, truth: NDArray[np.str_]) -> Agreement:
    """Compare the clusters of products [n], ``labels``, with their ``truth`` [n]; empty truths are left out.

    Raises:
        InputError: no product has a label.
    """
    known = truth != ""
    if not known.any():
        raise InputError("no product has this label; name a key of the products, e.g. group or attributes.colour")
    pair = truth[known], labels[known]
    return Agreement(
        products=int(known.sum()),
        mutual_information=float(adjusted_mutual_info_score(*pair)),
        rand=float(adjusted_rand_score(*pair)),
        homogeneity=float(homogeneity_score(*pair)),
    )


def _parts(vectors: Vectors, rows: Labels) -> Iterator[Labels]:
    """Divide rows until every part has at most `PART` of them."""
    if len(rows) <= PART:
        yield rows
        return
    count = -(-2 * len(rows) // PART)  # so that most parts are small enough at once
    labels = MiniBatchKMeans(count, batch_size=4096, n_init=1, random_state=0).fit_predict(vectors[rows])
    parts = [rows[labels == label] for label in np.unique(labels)]
    if len(parts) == 1:  # all vectors are the same
        parts = np.array_split(rows, count)
    for part in parts:
        yield from _parts(vectors, part)


def _tree(vectors: Vectors) -> NDArray[np.float64]:
    """Return the tree of average linkage by cosine distance [n - 1, 4], as SciPy writes it."""
    if len(vectors) < 2:
        return np.empty((0, 4))
    distances = np.maximum(1.0 - vectors @ vectors.T, 0.0)
    tree: NDArray[np.float64] = linkage(squareform(distances, checks=False), "average")
    return tree


def _cut(trees: list[tuple[Labels, NDArray[np.float64]]], count: int, threshold: float) -> Labels:
    """Cut all trees at a mean cosine; for the numbers of clusters see `_by_size`."""
    labels, used = np.empty(count, dtype=np.intp), 0
    for rows, tree in trees if count else ():
        # A distance of 1 - 0.8 is a little above 0.2; a pair with just the threshold's cosine belongs together.
        labels[rows] = used + (fcluster(tree, 1.0 - threshold + 1e-6, "distance") - 1 if len(tree) else 0)
        used = int(labels[rows].max()) + 1
    return _by_size(labels)


def _joined(vectors: Vectors, labels: Labels, threshold: float) -> Labels:
    """Join clusters that the borders of parts have cut.

    Average linkage ends with the same clusters in whatever order it joins those that are each other's nearest, and the
    mean cosine between two clusters is the product of their means: no pair of products is compared. A joined cluster is
    to nobody nearer than the nearer one of its two. So who is below the threshold to all others stays so, and of the
    rest only those look around again whose nearest was joined and has become no nearer than their second was.
    """
    sums, sizes = _sums(vectors, labels), np.bincount(labels)
    means = (sums / sizes[:, None]).astype(np.float32)
    heirs = np.arange(len(means))
    nearest, best, second = np.zeros_like(heirs), np.zeros(len(means), np.float32), np.zeros(len(means), np.float32)
    waiting = asking = heirs.copy()
    while len(waiting):
        nearest[asking], best[asking], second[asking] = _look_around(means, asking, waiting)
        waiting = waiting[best[waiting] >= threshold - _SAME]
        kept = waiting[(nearest[nearest[waiting]] == waiting) & (waiting < nearest[waiting])]
        if not len(kept):  # all are equally near, but for rounding
            kept = waiting[best[waiting].argsort()[-1:]]
        gone = nearest[kept]
        sums[kept] += sums[gone]
        sizes[kept] += sizes[gone]
        means[kept] = sums[kept] / sizes[kept, None]
        heirs[gone] = kept
        waiting = np.setdiff1d(waiting, gone)
        moved = waiting[np.isin(nearest[waiting], [*kept, *gone])]
        nearest[moved] = heirs[nearest[moved]]
        best[moved] = np.einsum("cd,cd->c", means[moved], means[nearest[moved]])
        asking = moved[(best[moved] < second[moved]) | (nearest[moved] == moved)]
    while (heirs != heirs[heirs]).any():
        heirs = heirs[heirs]
    return _by_size(heirs[labels])


def _look_around(means: Vectors, asking: Labels, others: Labels) -> tuple[Labels, Vectors, Vectors]:
    """Return the nearest of the others to each that asks, the product of both, and that with the second; or -inf."""
    nearest, products = np.zeros_like(asking), np.full((2, len(asking)), -np.inf, np.float32)
    columns = np.ascontiguousarray(means[others].T)
    size = max(1, _BLOCK_COSINES // len(others))
    for start in range(0, len(asking), size):
        block = slice(start, start + size)
        found = means[asking[block]] @ columns
        rows = np.arange(len(found))
        found[rows, np.searchsorted(others, asking[block])] = -np.inf  # itself
        first = found.argmax(1)
        nearest[block], products[0, block] = others[first], found[rows, first]
        found[rows, first] = -np.inf
        products[1, block] = found.max(1)
    return nearest, products[0], products[1]


def _sums(vectors: Vectors, labels: Labels) -> NDArray[np.float64]:
    """Return the sum of each cluster's vectors, FP64 [clusters, d]."""
    sums = np.zeros((labels.max() + 1, vectors.shape[1]), dtype=np.float64)
    np.add.at(sums, labels, vectors)
    return sums


def _by_size(labels: Labels) -> Labels:
    """Number clusters by falling size, equal ones as the catalogue shows them."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.lexsort((first, -sizes))] = np.arange(len(first))
    ordered: Labels = rank[inverse]
    return ordered
