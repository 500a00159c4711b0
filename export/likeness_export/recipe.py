"""The recipe: one TOML file that names data, towers, fusion, similarity, training and serving choices."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from likeness_client.contract import MODALITIES, InputSchema, all_signatures, modalities_of
from likeness_client.errors import InputError
from likeness_client.records import composed
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from likeness_export.encoders import AnyEncoderConfig
from likeness_export.encoders.base import LearningRate
from likeness_export.encoders.image_common import PhotoConfig
from likeness_export.networks.fusion import AttentionConfig, FusionConfig
from likeness_export.products.named_pairs import fold_count
from likeness_export.recipe_faults import explain
from likeness_export.serving_section import ServingSection, keys_of_steps

BUILT_IN = Path(__file__).parent / "recipes"
OWN_LABEL = "product_id"
"""The label that each product has to itself."""
_LONGEST_NAME = 64  # characters; names become those of files, with something behind them


class RecipeError(InputError):
    """A recipe that cannot be used; the message names every key that is wrong, its value, and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON, which runs keep, has neither


class DataSection(_Section):
    """Which products, how their text is composed, and what makes two of them alike; without that nothing is learned."""

    products: str = Field(description="JSON lines, relative to the data root")
    train_splits: tuple[str, ...] = Field(default=("train",), min_length=1)
    only: dict[str, tuple[str, ...]] = Field(
        default={}, description="field -> the values that a product may have in it; default: all products"
    )
    text_fields: tuple[str, ...] = ("title", "description")
    labels: tuple[str, ...] = Field(
        default=(),
        description="fields whose equality makes two products alike, the coarsest first; a + b means both",
    )
    label_weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="how much each label counts in the loss; default: all the same"
    )
    pairs: str | None = Field(default=None, description="CSV of left_id, right_id, label, split, instead of labels")
    held_out: float = Field(
        default=0.0, ge=0, lt=1, description="share of the pairs that is kept from training, to choose thresholds on"
    )
    fold: int = Field(default=0, ge=0, description="which share of the pairs that is, of 1 / held_out")
    joined_folds: tuple[int, ...] = Field(
        default=(), description="of a joined run, whose parts have different folds: theirs, in order; `join` says"
    )
    source: str | None = Field(
        default=None, description="field that says where a product comes from; the draws of a label take turns over it"
    )
    masked: tuple[str, ...] = Field(
        default=(),
        description="fields whose words are cut from the titles and descriptions, because they are the label",
    )

    @model_validator(mode="after")
    def _one_kind_of_positives(self) -> DataSection:
        if self.labels and self.pairs:
            raise ValueError("give either labels or pairs")
        if self.label_weights and len(self.label_weights) != len(self.labels):
            raise ValueError(f"{len(self.label_weights)} label_weights for {len(self.labels)} labels")
        if self.held_out and not self.pairs:
            raise ValueError("held_out belongs to pairs; labels have splits")
        if not self.held_out and (self.fold or self.joined_folds):
            raise ValueError("fold: nothing is held out; give held_out, too")
        if self.held_out and max([self.fold, *self.joined_folds]) >= (folds := fold_count(self.held_out)):
            raise ValueError(f"fold: with held_out = {self.held_out} there are {folds}, from 0 on")
        if self.source and (self.alike_to_itself or not self.labels):
            raise ValueError("source belongs to a label that products share; others are drawn as they are")
        return self

    @property
    def alike_to_itself(self) -> bool:
        """Whether no two products are alike, so that only the modalities of one can learn from each other."""
        return self.labels == (OWN_LABEL,)


class SimilaritySection(_Section):
    """The learned metric."""

    hidden: int = Field(default=64, ge=1, description="width of the correcting network")
    joint: bool = Field(default=False, description="its error also shapes the space, not only the metric")


class TrainingSection(_Section):
    """How the space is learned."""

    epochs: int = Field(default=30, ge=1)
    head_epochs: int = Field(
        default=0, ge=0, description="epochs before those, in which all encoders are still frozen (and cached)"
    )
    groups_per_batch: int = Field(default=32, ge=2, description="labels, or left sides of pairs, drawn into a batch")
    group_size: int = Field(default=4, ge=2, description="products drawn per label")
    learning_rate: LearningRate = Field(default=2e-3, description="of projections, fusion head and learned metric")
    weight_decay: float = Field(default=0.01, ge=0)
    loss: Literal["contrastive", "decoupled"] = Field(
        default="contrastive", description="InfoNCE (article, 4.1), or with the positives left out of the denominator"
    )
    contrast: float = Field(default=1.0, ge=0, description="weight of that loss")
    temperature: float = Field(default=0.07, gt=0, description="tau of that loss")
    proxies: float = Field(default=0.0, ge=0, description="weight of classification by one learned vector per label")
    hard_negatives: float = Field(
        default=0.0, ge=0, lt=1, description="share of a batch that is drawn because it is hard to tell from the rest"
    )
    co_learning: float = Field(
        default=0.0, ge=0, description="how much each modality is also contrasted with each other one"
    )
    modality_dropout: float = Field(
        default=0.5, ge=0, lt=1, description="probability that a product is reduced to a random part of its modalities"
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of encoders while they are fine-tuned")


class Recipe(_Section):
    """All of it. Immutable; checked once, here."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=_LONGEST_NAME)
    dimension: int = Field(default=128, ge=8, le=4096, description="length of every tower's vector")
    seed: int = Field(default=7, ge=0, lt=2**32, description="of all random draws")
    data: DataSection
    towers: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$", max_length=_LONGEST_NAME)],
        Annotated[AnyEncoderConfig, Field(discriminator="encoder")],
    ] = Field(min_length=1)
    fusion: FusionConfig = AttentionConfig()
    similarity: SimilaritySection = SimilaritySection()
    training: TrainingSection = TrainingSection()
    serving: ServingSection = ServingSection()

    @model_validator(mode="after")
    def _modalities_can_teach_each_other(self) -> Recipe:
        if not self.data.alike_to_itself:
            return self
        if len(self.modalities()) < 2:
            raise ValueError(
                f"data.labels: {OWN_LABEL} lets the modalities of a product learn from each other, and "
                f"{self.modalities()[0]} is the only one; give a label that products share, or another modality's tower"
            )
        if useless := [key for key in ("proxies", "hard_negatives") if getattr(self.training, key)]:
            raise ValueError(
                f"training.{useless[0]}: needs a label that products share; by {OWN_LABEL} no two are alike"
            )
        if not self.training.modality_dropout:
            raise ValueError(
                "training.modality_dropout: at 0 a product is never compared with a part of itself, and by "
                f"{OWN_LABEL} it is alike to nothing else"
            )
        if self.fusion.kind == "late":
            raise ValueError(
                f"fusion.kind: late keeps the towers apart, and {OWN_LABEL} lets their modalities learn from each "
                "other; choose attention or concatenation"
            )
        return self

    @model_validator(mode="after")
    def _proxies_have_classes(self) -> Recipe:
        if self.training.proxies and not self.data.labels:
            raise ValueError("training.proxies: needs data.labels; nothing else has classes")
        return self

    @property
    def learns(self) -> bool:
        """Whether there is something to learn from; else encoders that are pretrained or fitted answer as they are."""
        return bool(self.data.labels or self.data.pairs)

    @model_validator(mode="after")
    def _who_learns_has_something_to_learn_from(self) -> Recipe:
        learning = [f"towers.{name}" for name, tower in self.towers.items() if not tower.freeze]
        if learning and not self.learns:
            raise ValueError(
                f"data.labels: {', '.join(learning)} cannot learn without labels or pairs; give either, or "
                f'["{OWN_LABEL}"], by which modalities learn from each other'
            )
        return self

    @model_validator(mode="after")
    def _something_shapes_the_space(self) -> Recipe:
        losses = self.training
        if not (losses.contrast or losses.proxies or losses.co_learning or self.similarity.joint):
            raise ValueError(
                "training.contrast: at 0 nothing shapes the space; give it a weight, or training.proxies, "
                "training.co_learning or similarity.joint"
            )
        if not (losses.contrast or losses.proxies or self.similarity.joint) and len(self.modalities()) < 2:
            raise ValueError(
                f"training.co_learning: contrasts modalities with each other, and {self.modalities()[0]} is the only "
                "one, so nothing shapes the space; give training.contrast, training.proxies or similarity.joint, or a "
                "tower of another modality"
            )
        return self

    @model_validator(mode="after")
    def _nothing_reads_what_is_masked(self) -> Recipe:
        if both := self.read_of(self.data.masked):
            raise ValueError(f"data.masked: {', '.join(both)} is also read, in data.text_fields or by a tower's keys")
        return self

    @model_validator(mode="after")
    def _towers_are_no_ensembles(self) -> Recipe:
        if taken := self.towers.keys() & {"embed", "fusion", "similarity"}:
            raise ValueError(f"towers.{min(taken)}: models of that name are other steps; choose another name")
        return self

    @model_validator(mode="after")
    def _signatures_exist(self) -> Recipe:
        known = all_signatures(self.modalities())
        if unknown := [name for name in self.serving.signatures if name not in known]:
            raise ValueError(f"serving.signatures: there is no {', '.join(unknown)}; allowed are: {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _shared_preprocessing_fits(self) -> Recipe:
        for name, other in self.serving.shared_preprocessing.items():
            towers = [self.towers.get(name), self.towers.get(other)]
            kinds = {(tower.modality, tower.preprocessing, tower.tensors()) for tower in towers if tower}
            if name == other or None in towers or len(kinds) > 1 or other in self.serving.shared_preprocessing:
                raise ValueError(
                    f"serving.shared_preprocessing.{name}: must be another tower that reads the same and has a step of "
                    f"its own; leave the section out, the export fills it in (given: {other!r})"
                )
        return self

    @model_validator(mode="after")
    def _steps_exist(self) -> Recipe:
        if faults := self.serving.faults(self.step_keys()):
            raise ValueError("\n  ".join(faults))
        return self

    def signatures(self) -> list[str]:
        """Return every signature that is served, small sets first."""
        chosen = self.serving.signatures
        return [name for name in all_signatures(self.modalities()) if not chosen or name in chosen]

    def fused_signatures(self) -> list[str]:
        """Return the served signatures that have a fusion head; the embedding of the others is their only vector."""
        towers = list(self.tower_modalities().values())
        counts = {name: sum(modality in modalities_of(name) for modality in towers) for name in self.signatures()}
        return [name for name, count in counts.items() if not self.fusion.keeps(count, len(towers))]

    def step_keys(self) -> dict[str, tuple[str, ...]]:
        """Return the models that compute something -> the keys that ``serving.steps`` may give them."""
        return keys_of_steps(self.preprocessed_towers(), self.towers, self.fused_signatures())

    def preprocessed_towers(self) -> list[str]:
        """Return the towers that have a preprocessing step of their own, in the recipe's order."""
        return [name for name in self.towers if name not in self.serving.shared_preprocessing]

    def embedding_dimension(self) -> int:
        """Return the length of the embedding."""
        return self.fusion.embedding_dimension(len(self.towers), self.dimension)

    def tower_modalities(self) -> dict[str, str]:
        """Return tower name -> modality, in the recipe's order."""
        return {name: tower.modality for name, tower in self.towers.items()}

    def modalities(self) -> tuple[str, ...]:
        """Return the modalities that have a tower, in the contract's order."""
        return tuple(name for name in MODALITIES if name in self.tower_modalities().values())

    def input_schema(self) -> InputSchema:
        """Return how a product's record becomes the input of this recipe's towers."""
        keys = [key for tower in self.towers.values() for key in tower.attribute_keys()]
        photos = [tower.max_photos for tower in self.towers.values() if isinstance(tower, PhotoConfig)]
        return InputSchema(
            text_fields=self.data.text_fields,
            attribute_keys=tuple(dict.fromkeys(keys)),
            max_photos=max(photos, default=1),
        )

    def read_fields(self) -> list[str]:
        """Return the fields that make up the text, and the attributes that towers read."""
        schema = self.input_schema()
        return [*schema.text_fields, *(f"attributes.{key}" for key in schema.attribute_keys)]

    def read_of(self, fields: Iterable[str]) -> list[str]:
        """Return which of some fields, of which ``a + b`` means both, are also read, as text or as attributes."""
        named = {part for field in fields for part in (field, *map(str.strip, field.split("+")))}
        return sorted({*map(composed, self.read_fields())} & {*map(composed, named)})

    def digest(self) -> str:
        """Return a SHA-256 of everything that shapes the trained weights (serving choices do not)."""
        content = self.model_dump(mode="json", exclude={"serving"})
        # Not sorted: the order of the towers is the order of the fusion head's parameters.
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file, or the name of a built-in recipe (``demo``).
        overrides: ``dotted.key=value`` with a TOML value (a bare word is taken as a string), applied on top;
            ``dotted.key=`` takes a key or a section of the file out.

    Raises:
        RecipeError: the file is missing, is not TOML, or says something that is not allowed.
    """
    path = Path(path)
    built_in = BUILT_IN / f"{path}.toml"
    place = built_in if not path.is_file() and built_in.is_file() else path
    try:
        raw = tomllib.loads(place.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError) as error:
        names = ", ".join(sorted(recipe.stem for recipe in BUILT_IN.glob("*.toml")))
        raise RecipeError(f"no recipe {path}: give a TOML file or one of the built-in recipes: {names}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{place} cannot be read as a recipe: {error}") from error
    for override in overrides:
        _apply(raw, override)
    return parse_recipe(raw, str(place))


def parse_recipe(raw: dict[str, Any], origin: str) -> Recipe:
    """Check a recipe that was read from ``origin``.

    Raises:
        RecipeError: names each wrong key, its value and what is allowed.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [explain(problem, Recipe) for problem in error.errors()]
        raise RecipeError("\n".join([f"{origin} is not a valid recipe:", *lines])) from error


def with_serving(recipe: Recipe, serving: ServingSection) -> Recipe:
    """Return a recipe with another ``[serving]`` section; its digest stays what it was.

    Raises:
        RecipeError: the section names steps or signatures that the recipe does not have.
    """
    raw = recipe.model_dump(mode="json") | {"serving": serving.model_dump(mode="json")}
    return parse_recipe(raw, f"{recipe.name} with this [serving] section")


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise RecipeError(f"--set {override!r}: write dotted.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {override!r}: {section} is not a section")
    if text.strip():
        place[last] = value
    elif place.pop(last, None) is None:
        raise RecipeError(f"--set {override!r}: the recipe does not set {key.strip()}, so there is nothing to take out")
