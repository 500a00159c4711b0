"""What single decisions gain, each in one process without a server: with and without it, in alternation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle, islice

from likeness_client import InputError

from comparisons.configs import StepsConfig, numbers_of
from comparisons.contenders import read_some
from comparisons.image_steps import enlarged, image_model, measure_photos, rendered_views
from comparisons.measured import Measurement, measure_all
from comparisons.report import ComparisonReport, machine
from comparisons.text_steps import lengths_name, measure_texts, text_model, texts_of


def compare_steps(config: StepsConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: something that is needed is missing, or two ways do not do the same work.
    """
    sizes, lengths_px = numbers_of(config.batch_sizes, "--batch-sizes"), numbers_of(config.photo_px, "--photo-px")
    facts = machine() | {"repository": str(config.repository)}
    planned: list[Callable[[], Measurement]] = []
    if model := text_model(config.repository):
        texts = texts_of(read_some(config.file, config.products), config.repository, model)
        facts["texts"] = lengths_name(model, texts)
        for size in sizes:
            planned.append(partial(measure_texts, model, texts, size, config.batches, config.rounds))
    if images := image_model(config.repository):
        views = list(islice(cycle(rendered_views(config.seed)), config.photos))
        for px in lengths_px:
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
