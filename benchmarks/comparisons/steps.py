"""What single decisions gain, each in one process without a server: with and without it, in alternation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from likeness_client import InputError

from comparisons.contenders import read_some
from comparisons.image_steps import enlarged, image_model, measure_photos, rendered_views
from comparisons.measured import Measurement, measure_all
from comparisons.report import ComparisonReport, machine
from comparisons.text_steps import lengths_name, measure_texts, text_model, texts_of


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """What to measure.

    Attributes:
        products: file with products whose texts are computed.
        count: how many of them to use.
        repository: the model repository.
        batch_sizes: texts of a batch, each measured by itself.
        batches: of texts in a turn.
        photo_px: long sides of photos, each measured by itself.
        photos: of a batch.
        rounds: turns of each way.
        turn_s: how long a batch of photos is repeated in its turn.
        seed: of what is rendered.
    """

    products: Path
    count: int
    repository: Path
    batch_sizes: tuple[int, ...]
    batches: int
    photo_px: tuple[int, ...]
    photos: int
    rounds: int
    turn_s: float
    seed: int


def compare_steps(config: StepsConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: something that is needed is missing, or two ways do not do the same work.
    """
    facts = machine() | {"repository": str(config.repository)}
    planned: list[Callable[[], Measurement]] = []
    if model := text_model(config.repository):
        texts = texts_of(read_some(config.products, config.count), config.repository, model)
        facts["texts"] = lengths_name(model, texts)
        for size in config.batch_sizes:
            planned.append(partial(measure_texts, model, texts, size, config.batches, config.rounds))
    if images := image_model(config.repository):
        views = list(islice(cycle(rendered_views(config.seed)), config.photos))
        for px in config.photo_px:
            photos = [enlarged(view, px) for view in views]
            planned.append(partial(measure_photos, images, photos, px, config.rounds, config.turn_s))
    if not planned:
        raise InputError(f"{config.repository} embeds neither photos nor texts of different length: give another one")
    sections = measure_all(planned)
    said = (
        "texts: the network alone, tokens are made before; grouped as the server does it within one batch",
        "photos: rendered, enlarged, with grain, JPEG; full decode is the served code without its call of `draft`",
        "photos: the served code decodes a batch in a pool with one thread per core",
    )
    return ComparisonReport(title="What single decisions gain", settings=tuple(sections), facts=facts, notes=said)
