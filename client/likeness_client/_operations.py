"""The logic of both clients, without I/O.

Each operation is a generator: it yields calls that can run at the same time, is sent their answers, and returns the
result. The clients only drive it; so what one of them does, the other does too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from likeness_client import _calls
from likeness_client._calls import Answer, Call, Item, Operation, Vector
from likeness_client._discovery import ServerInfo
from likeness_client._scoring import MATRIX_SCORES, PAIR_SCORES
from likeness_client.contract import BOUNDS, LEFT, RIGHT, Metric, signature_of
from likeness_client.errors import BatchError, InputError, ProductError
from likeness_client.records import Product
from likeness_client.results import Comparison, Embeddings, FloatArray, ScoreMatrix, Scores, require_same_space

R = TypeVar("R")

OnError: TypeAlias = Literal["raise", "return"]
"""What to do when some products of a batch fail: raise `BatchError`, or return NaN for them and list the errors."""
ON_ERROR: tuple[OnError, ...] = ("raise", "return")
Side: TypeAlias = Sequence[Product] | Embeddings
"""One side of a comparison."""
QUERY, CANDIDATE = "query", "candidate"
_BLOCKS_AT_ONCE = 64
"""Blocks of scores that are asked for together: many times what is in flight, little beside the scores."""


def embed(
    products: Sequence[Product], modalities: Collection[str] | None, on_error: OnError, info: ServerInfo
) -> Operation[Embeddings]:
    """Embed products. See `Client.embed`."""
    _check_on_error(on_error)
    (result,) = yield from _embed([(products, "")], _narrow(info, modalities))
    return _settle(result, result.errors, on_error)


def similarity(
    left: Side,
    right: Side,
    metric: Metric,
    on_error: OnError,
    info: ServerInfo | None,
) -> Operation[Scores]:
    """Score pairs. See `Client.similarity`; no ``info`` if not `needs_server`."""
    _check_on_error(on_error)
    metric = _metric(metric)
    if len(left) != len(right):
        raise InputError(f"pairs need two sides of equal length, got {len(left)} and {len(right)}")
    if isinstance(left, Embeddings) or isinstance(right, Embeddings):
        return (yield from _similarity_of_embeddings((left, right), metric, on_error, info))
    assert info
    pairs = yield from _score_pairs(left, right, (metric,), info)
    errors = dict(sorted(pairs.errors.items()))
    result = Scores(values=pairs.scores[metric], metric=metric, space=info.space, errors=errors)
    return _settle(result, errors, on_error)


def _similarity_of_embeddings(
    sides: tuple[Side, Side], metric: Metric, on_error: OnError, info: ServerInfo | None
) -> Operation[Scores]:
    left, right = yield from _embed_missing(sides, (LEFT, RIGHT), metric, info)
    if metric in PAIR_SCORES:
        values = PAIR_SCORES[metric](left.vectors, right.vectors)
    else:
        assert info
        values = yield from _served_pairs(left.vectors, right.vectors, metric, info)
    left_errors, right_errors = (
        {index: error.at(index, name) for index, error in found.errors.items()}
        for found, name in ((left, LEFT), (right, RIGHT))
    )
    errors = dict(sorted((right_errors | left_errors).items()))
    result = Scores(values=values, metric=metric, space=left.space, errors=errors)
    new = ({} if right is sides[1] else right_errors) | ({} if left is sides[0] else left_errors)  # as for a matrix
    return _settle(result, dict(sorted(new.items())), on_error)


def compare(left: Product, right: Product, info: ServerInfo) -> Operation[Comparison]:
    """Score one pair by every metric. See `Client.compare`."""
    pairs = yield from _score_pairs([left], [right], tuple(Metric), info)
    if error := pairs.errors.get(0):
        raise error.at(None, error.side)
    return Comparison(
        cosine=float(pairs.scores[Metric.COSINE][0]),
        euclidean=float(pairs.scores[Metric.EUCLIDEAN][0]),
        learned=float(pairs.scores[Metric.LEARNED][0]),
        left_weights=pairs.weights[LEFT][0],
        right_weights=pairs.weights[RIGHT][0],
        space=info.space,
    )


def similarity_matrix(
    queries: Side,
    candidates: Side,
    metric: Metric,
    on_error: OnError,
    info: ServerInfo | None,
) -> Operation[ScoreMatrix]:
    """Score every query with every candidate. See `Client.similarity_matrix`; no ``info`` if not `needs_server`."""
    _check_on_error(on_error)
    metric = _metric(metric)
    left, right = yield from _embed_missing((queries, candidates), (QUERY, CANDIDATE), metric, info)
    if metric in MATRIX_SCORES:
        values = MATRIX_SCORES[metric](left.vectors, right.vectors)
    else:
        assert info
        values = yield from _served_matrix(left.vectors, right.vectors, metric, info)
    result = ScoreMatrix(
        values=values,
        metric=metric,
        space=left.space,
        query_errors={index: error.at(index, QUERY) for index, error in left.errors.items()},
        candidate_errors={index: error.at(index, CANDIDATE) for index, error in right.errors.items()},
    )
    # Whoever brings embeddings with gaps knows of them; only new failures are raised.
    new = {} if left is queries else dict(result.query_errors)
    if right is not candidates:
        new |= {len(left) + index: error for index, error in result.candidate_errors.items()}
    return _settle(result, new, on_error)


def needs_server(left: Side, right: Side, metric: Metric) -> bool:
    """Say whether scores can only be had from a server: something is to be embedded, or it alone has the metric."""
    return not (isinstance(left, Embeddings) and isinstance(right, Embeddings)) or _metric(metric) not in PAIR_SCORES


def listed(products: Iterable[Product]) -> Sequence[Product]:
    """Return products in a form that can be read twice.

    Raises:
        InputError: these are not several.
    """
    if not isinstance(products, Iterable):
        raise InputError(f"expected several products, found one {type(products).__name__}: put a product into a list")
    return tuple(products)


def held(side: Iterable[Product] | Embeddings) -> Side:
    """Return one side of a comparison in a form that can be read twice; see `listed`."""
    return side if isinstance(side, Embeddings) else listed(side)


def _embed_missing(
    sides: tuple[Side, Side],
    names: tuple[str, str],
    metric: Metric,
    info: ServerInfo | None,
) -> Operation[tuple[Embeddings, Embeddings]]:
    """Return both sides as embeddings: those that are given, and what is still to be embedded as one batch."""
    given = [side for side in sides if isinstance(side, Embeddings)]
    fresh = [(side, name) for side, name in zip(sides, names, strict=True) if not isinstance(side, Embeddings)]
    # Before any work is done for vectors that could not be compared. The learned metric belongs to the server's space.
    own = [(info.space, info.dimension)] if info and needs_server(*sides, metric) else []
    spaces, dimensions = zip(*own, *((side.space, side.vectors.shape[1]) for side in given), strict=True)
    require_same_space(*spaces)
    if len({*dimensions}) > 1:
        raise InputError(
            f"the vectors differ in length ({', '.join(map(str, sorted({*dimensions})))}): give all of them whole, as "
            "`embed` returned them"
        )
    embedded = iter((yield from _embed(fresh, info)) if info else ())
    left, right = (side if isinstance(side, Embeddings) else next(embedded) for side in sides)
    return left, right


def _embed(sides: Sequence[tuple[Sequence[Product], str]], info: ServerInfo) -> Operation[list[Embeddings]]:
    """Embed several lists of products as one batch: what occurs in two of them is computed once."""
    encoded = [_calls.encode(products, info, side) for products, side in sides]
    vectors = yield from _embed_items((item for items, _ in encoded for item in items if item), info)
    return [
        _assemble(products, side, items, errors, vectors, info)
        for (products, side), (items, errors) in zip(sides, encoded, strict=True)
    ]


def _embed_items(items: Iterable[Item], info: ServerInfo) -> Operation[dict[Item, Vector | ProductError]]:
    planned = _calls.embed_calls(items, info)
    answers = yield from _ask([call for call, _ in planned])
    return (yield from _without_unknown(_read_embedded(planned, answers, info), info))


def _without_unknown(
    found: dict[Item, Vector | ProductError], info: ServerInfo
) -> Operation[dict[Item, Vector | ProductError]]:
    """Embed items in one of whose modalities the server knows nothing by what else they have."""
    rests = {item: rest for item, answer in found.items() if (rest := _calls.without_unknown(item, answer, info))}
    again = (yield from _embed_items(rests.values(), info)) if rests else {}
    return found | {item: again[rest] for item, rest in rests.items()}


def _read_embedded(
    planned: Sequence[tuple[Call, list[Item]]], answers: Sequence[Answer], info: ServerInfo
) -> dict[Item, Vector | ProductError]:
    return {
        item: found
        for (call, batch), answer in zip(planned, answers, strict=True)
        for item, found in zip(batch, _calls.read_embeddings(call, answer, batch, info), strict=True)
    }


def _assemble(
    products: Sequence[Product],
    side: str,
    items: Sequence[Item | None],
    local_errors: Mapping[int, ProductError],
    vectors: Mapping[Item, Vector | ProductError],
    info: ServerInfo,
) -> Embeddings:
    """Put the vectors of the items in the order of the products."""
    values = np.full((len(products), info.dimension), np.nan, dtype=np.float32)
    weights: list[Mapping[str, float]] = [{} for _ in products]
    signatures = [""] * len(products)
    errors = dict(local_errors)
    for index, item in enumerate(items):
        if item is None:
            continue
        found = vectors[item]
        if isinstance(found, ProductError):
            errors[index] = found.at(index, side, products[index].product_id)
        else:
            values[index], weights[index], signatures[index] = found.values, found.weights, signature_of(found.weights)
    return Embeddings(
        vectors=values,
        modality_weights=tuple(weights),
        signatures=tuple(signatures),
        product_ids=tuple(str(product.product_id) for product in products),  # one that is no string has failed
        space=info.space,
        errors=dict(sorted(errors.items())),
    )


@dataclass
class _Pairs:
    """Scores of pairs while they come in."""

    left: Sequence[Product]
    right: Sequence[Product]
    scores: dict[Metric, FloatArray]
    weights: dict[str, list[Mapping[str, float]]]
    errors: dict[int, ProductError] = field(default_factory=dict)

    def fail(self, index: int, side: str, error: ProductError) -> None:
        product = (self.left if side == LEFT else self.right)[index]
        self.errors.setdefault(index, error.at(index, side, product.product_id))


def _score_pairs(
    left: Sequence[Product], right: Sequence[Product], metrics: tuple[Metric, ...], info: ServerInfo
) -> Operation[_Pairs]:
    """Score pairs: in one round trip where that saves one, by their embeddings where that saves computing twice."""
    left_items, left_errors = _calls.encode(left, info, LEFT)
    right_items, right_errors = _calls.encode(right, info, RIGHT)
    pairs = _Pairs(
        left,
        right,
        scores={metric: np.full(len(left), np.nan, dtype=np.float32) for metric in metrics},
        weights={side: [{} for _ in left] for side in (LEFT, RIGHT)},
        errors={**right_errors, **left_errors},
    )
    live = [(i, a, b) for i, (a, b) in enumerate(zip(left_items, right_items, strict=True)) if a and b]
    uses = Counter(item for _, a, b in live for item in (a, b))
    # The pair ensembles know one signature, and would embed a product again for each pair that it is in.
    direct = {i: (a, b) for i, a, b in live if a.signature == b.signature and uses[a] == uses[b] == 1}
    apart = [pair for pair in live if pair[0] not in direct]

    pair_plan = _calls.pair_calls([(i, a, b) for i, (a, b) in direct.items()], metrics, info)
    embed_plan = _calls.embed_calls((item for _, a, b in apart for item in (a, b)), info)
    answers = yield from _ask([call for call, _ in pair_plan] + [call for call, _ in embed_plan])
    for (call, rows), answer in zip(pair_plan, answers, strict=False):
        _read_pairs(pairs, call, rows, answer, direct[rows[0]][0].signature, info)
    vectors = yield from _without_unknown(_read_embedded(embed_plan, answers[len(pair_plan) :], info), info)
    # The pair ensembles look at all that a product has; without what is unknown it goes through its embedding. So
    # does a pair whose score is no number, without a reason: the embeddings show which side it is.
    unknown = [i for i, e in pairs.errors.items() if i in direct and _calls.without_unknown(direct[i][0], e, info)]
    unscored = [i for i in direct if i not in pairs.errors and any(np.isnan(of[i]) for of in pairs.scores.values())]
    for index in (*unknown, *unscored):
        pairs.errors.pop(index, None)
        apart.append((index, *direct[index]))
    vectors |= yield from _embed_items((item for i in (*unknown, *unscored) for item in direct[i]), info)
    yield from _score_vectors(pairs, [(i, vectors[a], vectors[b]) for i, a, b in apart], info)
    return pairs


def _read_pairs(
    pairs: _Pairs, call: Call, rows: Sequence[int], answer: Answer, signature: str, info: ServerInfo
) -> None:
    """Take in the answer of a pair ensemble."""
    for side in (LEFT, RIGHT):
        weights = _calls.read_weights(call, answer, signature, len(rows), side)
        errors = _calls.read_errors(call, answer, len(rows), info.error_outputs[signature], side)
        for row, error in enumerate(errors):
            if error:
                pairs.fail(rows[row], side, error)
            else:
                pairs.weights[side][rows[row]] = weights[row]
    _read_scores(pairs, call, rows, answer)


def _read_scores(pairs: _Pairs, call: Call, rows: Sequence[int], answer: Answer) -> None:
    for metric, values in pairs.scores.items():
        scores = _calls.tensor(call, answer, metric, (len(rows), 1))[:, 0]
        scores = scores.clip(*BOUNDS[metric])  # rounding may go a little beyond
        # A score of a side that failed is a number that means nothing.
        values[list(rows)] = [
            np.nan if index in pairs.errors else score for index, score in zip(rows, scores, strict=True)
        ]


def _score_vectors(
    pairs: _Pairs, found: Sequence[tuple[int, Vector | ProductError, Vector | ProductError]], info: ServerInfo
) -> Operation[None]:
    """Score the pairs whose sides were embedded, and take in the failures of the others."""
    ready: list[tuple[int, FloatArray, FloatArray]] = []
    for index, left, right in found:
        for side, vector in ((LEFT, left), (RIGHT, right)):
            if isinstance(vector, ProductError):
                pairs.fail(index, side, vector)
            else:
                pairs.weights[side][index] = vector.weights
        if isinstance(left, Vector) and isinstance(right, Vector):
            ready.append((index, left.values, right.values))
    planned = _calls.vector_pair_calls(ready, tuple(pairs.scores), info)
    answers = yield from _ask([call for call, _ in planned])
    for (call, rows), answer in zip(planned, answers, strict=True):
        _read_scores(pairs, call, rows, answer)


def _served_matrix(left: FloatArray, right: FloatArray, metric: Metric, info: ServerInfo) -> Operation[FloatArray]:
    """Score all rows with all rows on the server; rows of NaN stay at home."""
    values = np.full((len(left), len(right)), np.nan, dtype=np.float32)
    rows, columns = (np.flatnonzero(~np.isnan(vectors).any(axis=1)) for vectors in (left, right))
    planned = _calls.matrix_calls(left[rows], right[columns], metric, info)
    for start in range(0, len(planned), _BLOCKS_AT_ONCE):
        some = planned[start : start + _BLOCKS_AT_ONCE]
        answers = yield from _ask([call for call, _, _ in some])
        for (call, of_rows, of_columns), answer in zip(some, answers, strict=True):
            q, c = rows[of_rows], columns[of_columns]
            values[np.ix_(q, c)] = _calls.tensor(call, answer, metric, (1, len(q), len(c)))[0]
    return values


def _served_pairs(left: FloatArray, right: FloatArray, metric: Metric, info: ServerInfo) -> Operation[FloatArray]:
    """Score each row with its counterpart on the server; rows of NaN stay at home."""
    values = np.full(len(left), np.nan, dtype=np.float32)
    rows = np.flatnonzero(~np.isnan(left).any(axis=1) & ~np.isnan(right).any(axis=1)).tolist()
    together = _BLOCKS_AT_ONCE * info.max_batch_size
    for start in range(0, len(rows), together):
        some = [(row, left[row], right[row]) for row in rows[start : start + together]]
        planned = _calls.vector_pair_calls(some, (metric,), info)
        answers = yield from _ask([call for call, _ in planned])
        for (call, of_rows), answer in zip(planned, answers, strict=True):
            values[of_rows] = _calls.tensor(call, answer, metric, (len(of_rows), 1))[:, 0]
    return values


def _ask(calls: list[Call]) -> Operation[list[Answer]]:
    """Yield calls unless there are none: the drivers never see an empty round."""
    return (yield calls) if calls else []


def _settle(result: R, errors: Mapping[int, ProductError], on_error: OnError) -> R:
    if errors and on_error == "raise":
        raise BatchError(errors, result)
    return result


def _check_on_error(on_error: OnError) -> None:
    if on_error not in ON_ERROR:
        raise InputError(f"on_error must be one of {', '.join(ON_ERROR)}, not {on_error!r}")


def _narrow(info: ServerInfo, modalities: Collection[str] | None) -> ServerInfo:
    """Return what the server would offer if it embedded these modalities only; None means all."""
    if modalities is None:
        return info
    # What can be read only once would be empty when the names are asked for again.
    if not isinstance(modalities, Collection) or not modalities or not set(modalities) <= set(info.modalities):
        raise InputError(f"modalities must be a list of some of {', '.join(info.modalities)}, not {modalities!r}")
    return replace(info, modalities=tuple(name for name in info.modalities if name in modalities))


def _metric(metric: Metric | str) -> Metric:
    try:
        return Metric(metric)
    except ValueError as error:
        raise InputError(f"metric must be one of {', '.join(Metric)}, not {metric!r}") from error
