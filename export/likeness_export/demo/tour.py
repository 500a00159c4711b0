"""The demo: one walk along the whole path, from a rendered catalogue to answers of a real server."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from likeness_client import Client, Metric
from likeness_client.records import field_value
from rich.table import Table

from likeness_export.console import console, cut
from likeness_export.demo.catalogue import render_catalogue
from likeness_export.evaluation.contact_sheet import card_of, draw_rows, name_of
from likeness_export.evaluation.evaluate import OfflineEmbedder, Row, Task, evaluate, read_task_catalogue
from likeness_export.exporting.export import export_run
from likeness_export.products.catalogue import Catalogue
from likeness_export.recipe import load_recipe
from likeness_export.reports import export_table, retrieval_table
from likeness_export.run import Run
from likeness_export.server.serve import ServeConfig, serving
from likeness_export.training.train import train

log = logging.getLogger(__name__)
_NEIGHBOURS = 4
_LABEL = "group"  # listings of one product


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A product that was found for a query."""

    row: int
    cosine: float
    learned: float
    same: bool


def run_demo(folder: Path) -> None:
    """Render a catalogue, train, evaluate, export, serve, query; what is already there is used again.

    Args:
        folder: where everything goes: ``catalogue/``, ``run/``, ``repository/``, ``neighbours.png``.
    """
    started = time.perf_counter()
    with _step("1/6 render a catalogue"):
        data_root = render_catalogue(folder / "catalogue").parent
    run, repository = Run(folder / "run"), folder / "repository"
    with _step("2/6 train"):
        train(load_recipe(Path("demo")), run, data_root)
    with _step("3/6 evaluate on products that training has not seen"):
        task = Task(labels=(_LABEL,))
        catalogue = read_task_catalogue(run, data_root, task)
        rows = list(evaluate(OfflineEmbedder(run, catalogue), catalogue, run.read_recipe().modalities(), task))
    retrieval_table(rows, "listings of one product among all others")
    _say_gain(rows)
    with _step("4/6 export"):
        reports = export_run(run, repository)
    export_table(reports)
    config = ServeConfig.on_unused_ports(repository, folder / "tritonserver.log")
    with ExitStack() as stack:
        with _step("5/6 start tritonserver"):
            stack.enter_context(serving(config))
        with _step("6/6 ask it"):
            found, weights = _ask(config.address, catalogue)
    _show(catalogue, found, weights)
    picture = folder / "neighbours.png"
    _draw(catalogue, found, weights, picture)
    log.info("picture: %s", picture)
    log.info("serve it yourself: likeness serve %s", repository)
    log.info("the whole path took %.0f s", time.perf_counter() - started)


def _ask(address: str, catalogue: Catalogue) -> tuple[dict[int, list[Neighbour]], Sequence[Mapping[str, float]]]:
    """Return the nearest products of some queries, by the query's row, and every product's modality weights."""
    labels = catalogue.labels(_LABEL)
    with Client(address) as client:
        gallery = client.embed(catalogue.products)
        queries = _choose_queries(catalogue)
        products = [catalogue.products[row] for row in queries]
        cosine = client.similarity_matrix(products, gallery).values
        learned = client.similarity_matrix(products, gallery, metric=Metric.LEARNED).values
    found = {}
    for place, row in enumerate(queries):
        order = [int(other) for other in np.argsort(-cosine[place], kind="stable") if other != row]
        found[row] = [
            Neighbour(
                row=other,
                cosine=float(cosine[place, other]),
                learned=float(learned[place, other]),
                same=bool(labels[other] == labels[row]),
            )
            for other in order[:_NEIGHBOURS]
        ]
    return found, gallery.modality_weights


def _choose_queries(catalogue: Catalogue) -> list[int]:
    """Take one complete listing of each of five kinds, then one without a photo and one without a text."""
    complete: dict[str, int] = {}
    for row, product in enumerate(catalogue.products):
        if product.title and product.images and product.attributes:
            complete.setdefault(field_value(catalogue.records[row], "coarse_label"), row)
    partial = [
        next((row for row, product in enumerate(catalogue.products) if product.title and not product.images), None),
        next((row for row, product in enumerate(catalogue.products) if product.images and not product.title), None),
    ]
    return [*list(complete.values())[:5], *(row for row in partial if row is not None)]


def _show(catalogue: Catalogue, found: Mapping[int, list[Neighbour]], weights: Sequence[Mapping[str, float]]) -> None:
    table = Table(title="queries and their nearest products (* : a listing of the same product)")
    modalities = list(dict.fromkeys(name for shares in weights for name in shares))
    table.add_column("product")
    for column in ("cosine", "learned", *modalities):
        table.add_column(column, justify="right", no_wrap=True)

    def shares(row: int) -> list[str]:
        return [f"{weights[row][name]:.2f}" if name in weights[row] else "-" for name in modalities]

    for row, neighbours in found.items():
        table.add_row(cut(name_of(catalogue.products[row]), "bold"), "", "", *shares(row))
        for place, neighbour in enumerate(neighbours):
            table.add_row(
                cut(f" {'*' if neighbour.same else ' '} {name_of(catalogue.products[neighbour.row])}"),
                f"{neighbour.cosine:.3f}",
                f"{neighbour.learned:.3f}",
                *shares(neighbour.row),
                end_section=place + 1 == len(neighbours),
            )
    console().print(table)


def _draw(
    catalogue: Catalogue,
    found: Mapping[int, list[Neighbour]],
    weights: Sequence[Mapping[str, float]],
    path: Path,
) -> None:
    rows = []
    for row, neighbours in found.items():
        cards = [card_of(catalogue.products[row], _shares(weights[row]), None)]
        for neighbour in neighbours:
            score = f"cosine {neighbour.cosine:.2f}, learned {neighbour.learned:.2f}"
            cards.append(card_of(catalogue.products[neighbour.row], score, neighbour.same))
        rows.append(cards)
    draw_rows(rows, path)


def _shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in weights.items())


def _say_gain(rows: Sequence[Row]) -> None:
    recall = {row.signature: row.figures.recall_at[1] for row in rows}
    single = {name: value for name, value in recall.items() if "_" not in name and " " not in name}
    best = max(single, key=lambda name: single[name])
    fused = recall["_".join(single)]
    log.info(
        "fused recall@1 %.3f, best single modality (%s) %.3f: %+.3f", fused, best, single[best], fused - single[best]
    )


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.perf_counter()
    log.info("%s ...", name)
    yield
    log.info("%s: %.1f s", name, time.perf_counter() - started)
