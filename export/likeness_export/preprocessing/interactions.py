"""A JSON object of counts per user to the product's factors, folded into a factorisation of the training products."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SETTINGS_FILE = "interactions.json"
USERS_FILE = "users.json"
FACTORS_FILE = "user_factors.npy"
NOTHING_KNOWN = "nothing in it is known from training: leave the modality out"
LARGEST_COUNT = 1e6
"""Larger counts say no more: somebody's robot. It also keeps all that follows finite."""


class Preprocessor:
    """Fold products into stored user factors, as one half-step of alternating least squares does.

    With Y the factors of the users, one row each, and of one product the preferences ``p_u`` (1 for a user with a
    count, else 0) and the confidences ``c_u = 1 + alpha * count_u`` (C their diagonal matrix), the product's factors
    are ``x = (Y^T C Y + lambda I)^-1 Y^T C p`` (Hu, Koren, Volinsky 2008, formula 5). Users who did nothing have
    confidence 1, so ``Y^T C Y = Y^T Y + Y^T (C - I) Y`` needs the rows of the others only. A product of the training
    gets what the training gave it; a new one gets its own from its first interaction on.

    Args:
        assets: folder with ``interactions.json`` (``alpha``, ``regularization``, ``max_bytes``), ``users.json`` (the
            users' names) and ``user_factors.npy`` (FP32 [users, f]).
    """

    def __init__(self, assets: Path) -> None:
        settings = json.loads((assets / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.alpha: float = settings["alpha"]
        self.max_bytes: int = settings["max_bytes"]
        users = json.loads((assets / USERS_FILE).read_text(encoding="utf-8"))
        self.places = {user: place for place, user in enumerate(users)}
        self.factors: NDArray[np.float32] = np.load(assets / FACTORS_FILE)
        wide = self.factors.astype(np.float64)
        self.idle = wide.T @ wide + settings["regularization"] * np.eye(wide.shape[1])  # Y^T Y + lambda I

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn JSON objects into tensors.

        Args:
            items: UTF-8 JSON objects, user name -> how often that user viewed or bought; unknown users are skipped.

        Returns:
            ``item_factors``, FP32 [n, f], and the reasons of failed items.
        """
        factors = np.zeros((len(items), self.factors.shape[1]), dtype=np.float32)
        errors = []
        for row, item in enumerate(items):
            try:
                factors[row] = self.fold_in(read_counts(item, self.max_bytes))
            except ValueError as error:
                errors.append(str(error))
            else:
                errors.append("")
        return {"item_factors": factors}, errors

    def fold_in(self, counts: dict[str, float]) -> NDArray[np.float64]:
        """Return the factors of one product, FP64 [f].

        Raises:
            ValueError: none of the users is known.
        """
        known = {self.places[user]: count for user, count in counts.items() if user in self.places}
        if not known:
            raise ValueError(NOTHING_KNOWN)
        users = self.factors[list(known)].astype(np.float64)  # (k, f)
        surplus = self.alpha * np.fromiter(known.values(), dtype=np.float64)  # (k,), c_u - 1
        return np.linalg.solve(self.idle + (users.T * surplus) @ users, users.T @ (1 + surplus))


def read_counts(item: bytes, max_bytes: int) -> dict[str, float]:
    """Read the counts per user of one product, each cut at `LARGEST_COUNT`.

    Raises:
        ValueError: the bytes are something else; the message says what to send.
    """
    if len(item) > max_bytes:
        raise ValueError(
            f"the interactions have {len(item)} bytes, {max_bytes} are allowed: leave the rarest users out"
        )
    try:
        counts = json.loads(item.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:  # not only JSONDecodeError: a number may have too many digits
        raise ValueError(f"the interactions are not JSON ({error}): send an object of counts per user") from error
    if not isinstance(counts, dict):
        raise ValueError("the interactions are JSON, but not an object: send an object of counts per user")
    for user, count in counts.items():
        # The comparison is false for NaN; an integer may have more digits than a float, so nothing is converted here.
        if isinstance(count, bool) or not isinstance(count, int | float) or not count > 0:
            raise ValueError(f"the count of user {user!r:.80} is {count!r:.80}: send a number above 0")
    return {user: float(min(count, LARGEST_COUNT)) for user, count in counts.items()}
