"""What a quality table is made of: variants that are trained, and measures that are taken of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, TypeAlias

MEASURED = "val"
"""The split that is measured unless another one is asked for; recipes were chosen by looking at it."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train, or to join what others train.

    Attributes:
        name: as it stands in the table; also the name of its folder.
        recipe: a built-in recipe, or the path of one.
        overrides: ``dotted.key=value`` on top of the recipe; see `load_recipe`.
        joins: variants of the same table whose runs are joined, seed by seed; it has no recipe then.
        what: one line for readers.
        joined: whether its seeds, joined into one run, are measured too.
    """

    name: str
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()
    what: str = ""
    joined: bool = False

    def of_joined_seeds(self) -> Variant:
        """Return how its joined seeds stand in the table."""
        what = f"the seeds of `{self.name}` joined into one run: the mean of their similarities"
        return replace(self, name=f"{self.name}-joined", what=what, joined=False)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A ranking of some splits for the products of others, once per set of modalities.

    Attributes:
        name: of the task.
        labels: fields whose equality makes two products alike; figures are given for each.
        queries: splits that the queries come from.
        gallery: splits that are ranked.
    """

    name: str
    labels: tuple[str, ...]
    queries: tuple[str, ...] = ("val",)
    gallery: tuple[str, ...] = ("val",)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are needed."""
        return tuple(dict.fromkeys((*self.queries, *self.gallery)))

    def on(self, split: str) -> Self:
        """Return the same measure of another split than `MEASURED`."""
        return replace(self, queries=_instead(self.queries, split), gallery=_instead(self.gallery, split))


@dataclass(frozen=True, kw_only=True)
class Incomplete(Ranking):
    """The same ranking by queries that lack some modalities, while the gallery is complete."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Find a product by its last photo among the first photos of all products that have at least two.

    Attributes:
        name: of the task.
        splits: the splits that both sides come from.
    """

    name: str
    splits: tuple[str, ...] = ("train", "val")

    def on(self, split: str) -> Self:
        """Return the same measure of another split than `MEASURED`."""
        return replace(self, splits=_instead(self.splits, split))


@dataclass(frozen=True, kw_only=True)
class PairSets:
    """Pairs of products that are the same or not, in several sets.

    Attributes:
        name: of the task that decides pairs (F1).
        search: of the task that ranks the set's products for the left sides of positive pairs.
        pairs: CSV of left_id, right_id, label, split, relative to the data root.
        set_field: the field that names a product's set.
        side_field: the field that says on which side of the pairs a product stands; empty where there are no sides.
        splits: the splits of the products that are needed: those of all pairs. A split of pairs need not have products
            of its own. Decisions are learned from the pairs of the first split and measured on those of the last.
        version: raised when pairs are decided in another way, so that kept figures are not taken for the new ones.
    """

    name: str
    search: str
    pairs: str
    set_field: str = "coarse_label"
    side_field: str = "extra.side"
    splits: tuple[str, ...] = ("train", "val")
    version: int = 2

    def on(self, split: str) -> Self:
        """Return the same measure of another split. Products of `MEASURED` stay: its pairs may name them, too."""
        return replace(self, splits=(*(name for name in self.splits if name != split), split))


Measure: TypeAlias = Ranking | Views | PairSets


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        name: of its command and its files.
        title: its headline.
        products: the catalogue, relative to the data root.
        rendered: whether `likeness render` makes it; its folder is the data root then, and `ALL` leaves it out.
        variants: what is trained.
        measures: what is measured of each.
        baselines: untrained methods that are measured too: ``text`` (TF-IDF), the names of `BACKBONES`, several joined
            with ``+`` (the sum of their similarities), ``masked text`` (without the words of ``masked``).
        masked: the fields whose words ``masked text`` does without.
        sheet: the measure that a run's contact sheet is drawn for; by its first label.
        notes: what a reader has to know, published figures among it.
        notes_of_measured: the same, where the split is `MEASURED`.
        split: the split that is measured.
    """

    name: str
    title: str
    products: str
    variants: tuple[Variant, ...]
    measures: tuple[Measure, ...]
    baselines: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    sheet: Ranking | None = None
    notes: tuple[str, ...] = ()
    notes_of_measured: tuple[str, ...] = ()
    rendered: bool = False
    split: str = MEASURED

    def on(self, split: str) -> Table:
        """Return the same table of another split."""
        if split == self.split:
            return self
        measures = tuple(measure.on(split) for measure in self.measures)
        sheet = self.sheet and self.sheet.on(split)
        return replace(self, split=split, measures=measures, sheet=sheet, notes_of_measured=())

    @property
    def file_stem(self) -> str:
        """The name of its files without their suffixes; figures of several splits can lie side by side."""
        return self.name if self.split == MEASURED else f"{self.name}-{self.split}"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the catalogue that the measures need."""
        return tuple(dict.fromkeys(split for measure in self.measures for split in measure.splits))


def _instead(splits: tuple[str, ...], split: str) -> tuple[str, ...]:
    return tuple(split if name == MEASURED else name for name in splits)
