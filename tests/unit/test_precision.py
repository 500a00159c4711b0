"""Reduced precision on small networks; no real speed is asked for, because a busy machine has none to show."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from likeness_client.cli import main
from likeness_client.errors import InputError
from likeness_export.encoders.image_local import GeneralisedMean
from likeness_export.exporting import export as exporting
from likeness_export.exporting import network_files
from likeness_export.exporting.export import export_run
from likeness_export.exporting.onnx_export import ExportReport, check_signature, export_network, open_session
from likeness_export.pipeline import StepSpec, encoder_networks
from likeness_export.precision import graph, network, reducing, speed
from likeness_export.precision.fp16 import Fp16
from likeness_export.precision.gate import Drift, JudgedVectors, Limits, RecallLoss, mean_points, measure
from likeness_export.precision.int8 import DynamicInt8, StaticInt8
from likeness_export.precision.network import Outcome, Task, Writer, reduce_network
from likeness_export.precision.pipeline_drift import FusionHeads
from likeness_export.precision.products import PAIRS, Feed, Products, judged_products, some_of
from likeness_export.precision.reducing import Precision, PrecisionChoice, PrecisionReport, Reducer
from likeness_export.precision.speed import speed_ratio
from likeness_export.products.catalogue import read_catalogue
from likeness_export.repository.adapters.session import Sessions
from likeness_export.repository.rendering import cpu_parameters
from likeness_export.tensors import TensorSpec
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.unit.conftest import Exported

ANYTHING = Limits(recall_loss=100, cosine_mean=-1, cosine_min=-1, overlap_at_10=0, batch_distance=2)


def unit(vectors: list[list[float]]) -> NDArray[np.float32]:
    found = np.array(vectors, np.float32)
    return np.divide(found, np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def embedded(vectors: list[list[float]]) -> JudgedVectors:
    return JudgedVectors(together=unit(vectors), alone=unit(vectors))


# --- the gate

FOUR = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]
LABELS = {"group": np.array(["a", "a", "b", "b"])}


def test_the_same_vectors_have_not_moved() -> None:
    drift = measure(embedded(FOUR), embedded(FOUR), LABELS)
    assert (drift.products, drift.overlap_at_10) == (4, 1.0)
    assert drift.cosine_min == pytest.approx(1)
    assert drift.batch_distance == pytest.approx(0, abs=1e-6)
    assert drift.recall_loss == {"group": RecallLoss(points=0, error=0, queries=4)}
    assert Limits().faults(drift) == []


def test_a_product_that_moved_to_the_others_is_counted() -> None:
    moved = [FOUR[0], [0.2, 0.9], *FOUR[2:]]
    drift = measure(embedded(FOUR), embedded(moved), LABELS)
    # The moved product and the last one are now each other's nearest; both are wrong.
    assert drift.recall_loss["group"].points == 50
    assert drift.recall_loss["group"].error == pytest.approx(100 * 2**0.5 / 4)
    assert drift.cosine_min < 0.4 < drift.cosine_mean
    assert drift.batch_distance == pytest.approx(0, abs=1e-6)  # alone it moved as far


def test_a_query_lost_and_another_won_are_no_loss_but_two_that_chance_may_turn() -> None:
    def at(*degrees: float) -> list[list[float]]:
        """Two pairs that are alike, each with a stranger, in planes of their own."""
        angle = np.radians(degrees)
        apart = np.concatenate([np.stack([np.cos(angle), np.sin(angle)], 1), np.zeros((6, 2))], 1)
        return [*apart[:3].tolist(), *np.roll(apart[3:], 2, axis=1).tolist()]

    labels = {"group": np.array(["a", "a", "stranger", "b", "b", "other"])}
    drift = measure(embedded(at(0, 20, 30, 0, 20, 15)), embedded(at(0, 20, 15, 0, 20, 30)), labels)
    loss = drift.recall_loss["group"]
    assert (loss.points, loss.queries) == (0, 4)
    assert loss.error == pytest.approx(100 * 2**0.5 / 4)


def test_a_vector_whose_length_is_a_little_off_has_not_moved() -> None:
    longer = JudgedVectors(together=np.float32(1.01) * unit(FOUR), alone=np.float32(0.99) * unit(FOUR))
    drift = measure(embedded(FOUR), longer, LABELS)
    assert drift.cosine_mean == pytest.approx(1)
    assert drift.batch_distance == pytest.approx(0, abs=1e-6)


def test_products_without_a_vector_and_without_a_label_do_not_count() -> None:
    absent = unit(FOUR)
    absent[0] = np.nan
    before = JudgedVectors(together=absent, alone=absent)
    drift = measure(before, before, {"group": np.array(["a", "b", "b", "b"]), "other": np.array(["", "", "", ""])})
    assert drift.products == 3
    assert {label: loss.queries for label, loss in drift.recall_loss.items()} == {"group": 3}


def test_a_vector_that_depends_on_its_batch_is_seen() -> None:
    before, alone = unit(FOUR), unit([[0.0, 1.0], *FOUR[1:]])
    before[1:] = alone[1:] = np.nan  # only the first was computed alone
    drift = measure(
        JudgedVectors(together=unit(FOUR), alone=before), JudgedVectors(together=unit(FOUR), alone=alone), {}
    )
    assert drift.batch_distance == pytest.approx(1)
    assert [fault.split(" apart")[0] for fault in Limits().faults(drift)] == ["alone and in a batch 1.000"]


def test_a_vector_that_is_no_number_alone_or_none_at_all_is_a_fault() -> None:
    broken = unit(FOUR)
    broken[2] = np.nan
    drifts = [measure(embedded(FOUR), JudgedVectors(together=unit(FOUR), alone=broken), {})]
    nowhere = JudgedVectors(together=unit(FOUR), alone=np.full_like(broken, np.nan))
    drifts.append(measure(nowhere, nowhere, {}))
    for drift in drifts:
        assert Limits().faults(drift) == ["alone and in a batch nan apart > 0.05"]
    overflown = measure(embedded(FOUR), JudgedVectors(together=broken, alone=unit(FOUR)), {})
    assert overflown.products == 4
    assert "smallest cosine to fp32 nan < 0.9" in Limits().faults(overflown)


@pytest.mark.parametrize("most", [1, 3, 64])
def test_every_signature_has_products_that_are_run_alone(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr("likeness_export.precision.products._ALONE", most)
    rows = {"text": [1] * 8 + [0] * 4, "image": [0] * 6 + [1] * 6, "facts": [1] * 5 + [0] * 2 + [1] * 5}
    present: dict[str, Any] = {name: SimpleNamespace(known=np.array(has, bool)) for name, has in rows.items()}
    served = [["text"], ["image"], ["text", "image"], ["image", "facts"]]
    products = Products(split="val", inputs=present, signatures=served, labels={}, batch_size=4)
    samples = {name: set(products._sample(name).tolist()) for name in rows}
    assert all(rows[name][row] for name, sample in samples.items() for row in sample)
    for towers in [*served, ["facts"]]:
        there = [row for row in range(12) if all(rows[name][row] for name in towers)]
        measured = set.intersection(*(samples[name] for name in towers))
        assert len(measured) >= min(most, len(there)) > 0


def test_which_of_equal_neighbours_comes_first_means_nothing() -> None:
    many = [[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 2
    shifted = [[1.0, 0.001 * place] for place in range(30)] + many[30:]
    assert measure(embedded(many), embedded(shifted), {}).overlap_at_10 == pytest.approx(1)
    nearly = [[1.0, 1e-4 * place] for place in range(32)]  # to fp32 sums
    assert measure(embedded(nearly), embedded(nearly[::-1]), {}).overlap_at_10 == pytest.approx(1)
    swapped = [*many[:29], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    assert measure(embedded(many), embedded(swapped), {}).overlap_at_10 < 1


def good(**changes: Any) -> Drift:
    fields = {"products": 9, "cosine_min": 1.0, "cosine_mean": 1.0, "overlap_at_10": 1.0, "batch_distance": 0.0}
    return Drift(**{**fields, **changes})


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        (good(cosine_mean=0.97), "mean cosine to fp32 0.970 < 0.98"),
        (good(cosine_min=0.5), "smallest cosine to fp32 0.500 < 0.9"),
        (good(cosine_min=float("nan")), "smallest cosine to fp32 nan < 0.9"),
        (good(overlap_at_10=0.7), "neighbour overlap@10 0.700 < 0.8"),
        (good(batch_distance=0.2), "alone and in a batch 0.200 apart > 0.05"),
        (good(products=0), "no product to judge it on"),
        (
            good(recall_loss={"group": RecallLoss(points=4, error=1, queries=99)}),
            "recall@1 by group falls 4.00 ± 1.00 points > 0.5",
        ),
        (
            good(mixed_recall_loss={"group": RecallLoss(points=2, error=0, queries=99)}),
            "recall@1 by group, fp32 gallery falls 2.00 ± 0.00 points > 0.5",
        ),
    ],
)
def test_every_limit_refuses(drift: Drift, said: str) -> None:
    assert Limits().faults(drift) == Limits(signature_slack=0).signature_faults(drift) == [said]


def losing(points: float, figure: str = "recall_loss") -> Drift:
    return good(**{figure: {"group": RecallLoss(points=points, error=0.5, queries=99)}})


def test_a_network_may_not_lose_more_than_the_limit_by_itself_whatever_chance_does() -> None:
    assert Limits().faults(losing(0.9)) == ["recall@1 by group falls 0.90 ± 0.50 points > 0.5"]


def test_a_single_signature_may_by_chance_but_not_the_mean_of_all(exported: Exported) -> None:
    def faults(limits: Limits, *points: float) -> list[str]:
        drifts = dict(zip(("image", "attributes"), map(losing, points), strict=True))
        heads = FusionHeads(recipe=exported.recipe, folder=exported.repository, fp32={}, labels={}, limits=limits)
        return heads.faults(drifts)

    assert faults(Limits(), 1.4, -0.8) == []
    assert faults(Limits(signature_slack=0.5), 1.4, -0.8) == [
        "signature image: recall@1 by group falls 1.40 ± 0.50 points > 0.5 + 0.5 standard errors"
    ]
    assert faults(Limits(), 1.6, -0.8) == [
        "signature image: recall@1 by group falls 1.60 ± 0.50 points > 0.5 + 2 standard errors"
    ]
    assert faults(Limits(), 1.4, 1.2) == ["recall@1 by group, mean of signatures, falls 1.30 points > 0.5"]
    assert faults(Limits(recall_loss=2), 1.4, 1.2) == []
    mixed = [losing(points, "mixed_recall_loss") for points in (1.4, 1.2)]
    assert Limits().mean_faults(mixed) == [
        "recall@1 by group, fp32 gallery, mean of signatures, falls 1.30 points > 0.5"
    ]
    assert mean_points([drift.recall_loss for drift in (losing(1.4), losing(1.2))]) == {"group": pytest.approx(1.3)}


@pytest.mark.parametrize("limit", [{"recall_loss": float("inf")}, {"signature_slack": float("nan")}])
def test_limits_that_a_manifest_cannot_hold_are_refused_before_the_export(limit: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"^--(max-recall-loss|recall-slack) (inf|nan): give a finite number"):
        Limits(**limit)


@pytest.mark.parametrize("points", [-25, 25])
def test_a_query_of_a_rare_signature_does_not_outweigh_the_others(points: float) -> None:
    common, rare = (
        good(recall_loss={"group": RecallLoss(points=lost, error=1, queries=queries)})
        for lost, queries in ((1.2, 1000), (points, 4))
    )
    (fault,) = Limits().mean_faults([common, rare])
    assert fault == "recall@1 by group, mean of signatures, falls 1.20 points > 0.5"
    assert Limits().mean_faults([rare]) == Limits().mean_faults([rare, rare])
    assert bool(Limits().mean_faults([rare])) == (points > 0)  # where all are rare, they are all that there is


def test_one_of_two_hundred_queries_is_half_a_point_and_no_more() -> None:
    before = np.repeat(np.eye(100, dtype=np.float32), 2, axis=0)
    after = before.copy()
    after[0, :2] = 0.6, 0.8  # nearer to the second pair than to its own twin, whose nearest it still is
    pairs = np.repeat(np.arange(100), 2).astype(str)
    found = measure(
        JudgedVectors(together=before, alone=before), JudgedVectors(together=after, alone=after), {"pair": pairs}
    ).recall_loss
    assert found == {"pair": RecallLoss(points=0.5, error=0.5, queries=200)}
    assert Limits().faults(good(recall_loss=found)) == []


def test_of_equally_near_products_the_first_counts_however_they_are_rounded() -> None:
    same = [[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]]
    rounded = [*same[:2], [0.6 + 1e-6, 0.8]]
    drift = measure(embedded(same), embedded(rounded), {"group": np.array(["a", "a", "b"])})
    assert drift.recall_loss == drift.mixed_recall_loss == {"group": RecallLoss(points=0, error=0, queries=2)}
    moved = [*same[:2], [0.6 + 2e-4, 0.8]]
    drift = measure(embedded(same), embedded(moved), {"group": np.array(["a", "a", "b"])})
    assert drift.recall_loss == {"group": RecallLoss(points=50, error=50, queries=2)}


# --- forms

TOKENS = StepSpec(
    name="block", inputs=(TensorSpec("tokens", "FP32", (-1, 16)),), outputs=(TensorSpec("vectors", "FP32", (-1, 16)),)
)


class Block(nn.Module):
    """Two matrices, as in a transformer's feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(16, 128), nn.Linear(128, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.narrow(self.wide(tokens).relu()), dim=-1)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("block") / "model.onnx"
    export_network(Block(), TOKENS, path, 4)
    return path


def difference(one: Path, other: Path) -> float:
    tokens = np.random.default_rng(0).normal(size=(3, 5, 16)).astype(np.float32)
    answers = [open_session("block", path).run(None, {"tokens": tokens})[0] for path in (one, other)]
    return float(np.abs(answers[0] - answers[1]).max())


def test_dynamic_int8_changes_the_matrices_but_those_that_stay(block: Path, tmp_path: Path) -> None:
    writer, target = DynamicInt8(block, tmp_path), tmp_path / "int8.onnx"
    assert len(writer.layers) == 2
    for kept, reduced in ((), 2), (writer.layers[:1], 1):
        writer.write(target, kept)
        check_signature(TOKENS, target)
        assert [node.op_type for node in onnx.load(target).graph.node].count("MatMulInteger") == reduced
        assert 0 < difference(block, target) < 0.1


def test_static_int8_for_tensorrt_is_symmetric_and_rounds_weights_in_the_graph(
    exported: Exported, tmp_path: Path
) -> None:
    source, target = exported.repository / "image_encoder/1/model.onnx", tmp_path / "int8.onnx"
    products = judged_products(exported.run, exported.run.folder.parent / "data")
    StaticInt8(source, tmp_path, "image", products, for_tensorrt=True).write(target)
    model = onnx.load(target).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.initializer}
    rounding = [node for node in model.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert rounding
    for node in rounding:
        assert values[node.input[2]].dtype == np.int8
        assert not values[node.input[2]].any()
    weights = {node.input[1] for node in model.node if node.op_type == "Conv"}
    assert weights <= {node.output[0] for node in rounding}
    outputs = {node.output[0] for node in model.node if node.op_type == "Conv"}
    assert not outputs & {node.input[0] for node in rounding}
    assert [node.op_type for node in model.node if "pixels" in node.input] == ["Cast"]
    open_session("image", target)


def test_a_network_of_two_files_is_reduced_like_one_and_to_two_only_where_it_must_be(
    block: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, whole, target = (tmp_path / name / "model.onnx" for name in ("source", "whole", "reduced"))
    for path in (source, whole, target):
        path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(network_files, "LARGEST_BYTES", 3000)
        network_files.save_network(onnx.load(block), source)
    assert [path.name for path in sorted(source.parent.iterdir())] == ["model.onnx", "model.onnx.data"]
    products = SimpleNamespace(feeds=lambda *_: [{"tokens": np.ones((2, 5, 16), np.float32)}])
    makers: list[Callable[[Path], Writer]] = [
        Fp16,
        lambda path: DynamicInt8(path, tmp_path),
        lambda path: StaticInt8(path, tmp_path, "text", cast(Products, products)),
    ]
    for make in makers:
        make(block).write(whole)
        writer = make(source)
        for largest, files in (10**6, ["model.onnx"]), (10, ["model.onnx", "model.onnx.data"]):
            monkeypatch.setattr(network_files, "LARGEST_BYTES", largest)
            for _ in range(2):  # the second in the place of the first, as when another layer stays in fp32
                writer.write(target)
                assert [path.name for path in sorted(target.parent.iterdir())] == files
                assert network_files.megabytes(target) < 1.5 * network_files.megabytes(whole)
                assert difference(whole, target) == 0


def test_fp16_keeps_the_types_of_inputs_and_outputs(block: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.onnx"
    writer = Fp16(block)
    writer.write(target)
    check_signature(TOKENS, target)
    assert 0 < difference(block, target) < 0.01
    assert {tensor.data_type for tensor in onnx.load(target).graph.initializer} >= {onnx.TensorProto.FLOAT16}
    onnx.checker.check_model(target, full_check=True)
    writer.write(target, writer.layers[:2])
    onnx.checker.check_model(target, full_check=True)
    writer.write(target, writer.layers)
    assert difference(block, target) < 0.001


class RootMeanSquare(nn.Module):
    """The normalisation of some transformers, of activations as large as theirs."""

    def forward(self, tokens: Tensor) -> Tensor:
        large = 1000 * tokens
        return F.normalize(large * torch.rsqrt(large.pow(2).mean(-1, keepdim=True) + 1e-6), dim=-1)


class SharpMean(nn.Module):
    """A generalised mean with the largest exponent that it may learn."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = GeneralisedMean()
        nn.init.constant_(self.pool.p, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        pooled = self.pool(20 * tokens.reshape(*tokens.shape[:2], 4, 4))  # (n, length)
        return F.normalize(tokens / pooled.unsqueeze(-1), dim=-1)


@pytest.mark.parametrize("powers", [RootMeanSquare(), SharpMean()])
def test_powers_in_an_fp16_file_stay_in_range(powers: nn.Module, tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "half.onnx"
    export_network(powers, TOKENS, source, 4)
    Fp16(source).write(target)
    onnx.checker.check_model(target)
    tokens = np.random.default_rng(0).normal(size=(3, 5, 16)).astype(np.float32)
    # onnxruntime computes powers in fp32 on a CPU, whatever the file says; the reference does what it says.
    exact, half = (list(ReferenceEvaluator(str(path)).run(None, {"tokens": tokens})) for path in (source, target))
    np.testing.assert_allclose(half, exact, atol=2e-3)


def test_vectors_of_an_fp16_file_have_unit_length(exported: Exported, tmp_path: Path) -> None:
    source, target = exported.repository / "image_encoder/1/model.onnx", tmp_path / "half.onnx"
    Fp16(source).write(target)
    session = open_session("image", target)
    (given,) = session.get_inputs()
    nodes = onnx.load(target).graph.node
    assert [node.op_type for node in nodes if given.name in node.input] == ["Cast"]
    maker = {name: node for node in nodes for name in node.output}
    lengths = [maker[node.input[0]] for node in nodes if node.op_type == "ReduceL2"]
    # A sum of squares leaves the range of fp16 early, which no CPU shows: it computes in fp32 all the same.
    assert [(node.op_type, node.attribute[0].i) for node in lengths] == 2 * [("Cast", onnx.TensorProto.FLOAT)]
    pixels = np.random.default_rng(0).integers(0, 256, (8, *given.shape[1:]), dtype=np.uint8)
    (vectors,) = session.run(None, {given.name: pixels})
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert np.abs(vectors - open_session("image", source).run(None, {given.name: pixels})[0]).max() > 1e-6


def test_a_network_is_known_by_what_it_consists_of(
    block: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: exported.repository / f"{name}/1/model.onnx" for name in ("image_encoder", "attributes_encoder")}
    assert graph.kind_of(onnx.load(block)) == "small"
    monkeypatch.setattr(graph, "_SMALL_BYTES", 0)
    assert graph.kind_of(onnx.load(block)) == "transformer"
    assert graph.kind_of(onnx.load(files["image_encoder"])) == "convolutional"
    assert graph.kind_of(onnx.load(files["attributes_encoder"])) == "small"


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("small", ["MatMul"]),  # behind TF-IDF, say
        ("transformer", ["Conv", "MatMul", "MatMul"]),
        ("convolutional", ["Conv", "Conv", "MatMul", "attention", "attention"]),
    ],
)
def test_products_of_what_was_computed_are_no_layers(kind: str, types: list[str]) -> None:
    """They have no weights, which could be reduced."""
    helper = onnx.helper
    weights = onnx.numpy_helper.from_array(np.zeros((400, 400), np.float32), "weights")  # 0.64 MB
    nodes = [
        helper.make_node("MatMul", ["in", "in"], [f"out{place}"], name)
        if name == "attention"
        else helper.make_node(name, ["in", "weights"], [f"out{place}"], name)
        for place, name in enumerate(types)
    ]
    model = helper.make_model(helper.make_graph(nodes, "made up", [], [], [weights]))
    assert graph.kind_of(model) == kind
    assert graph.layers(model, ("MatMul", "Softmax")) == [name for name in types if name == "MatMul"]


# --- one network: tries


class Spoilt:
    """Writes the fp32 file, turned upside down while one layer is not kept."""

    form = "spoilt"

    def __init__(self, source: Path, sensitive: str, most: float = 9.0) -> None:
        self.source, self.sensitive, self.most = source, sensitive, most
        self.layers = [f"layer {number}" for number in range(12)]
        self.written: list[int] = []

    def write(self, target: Path, kept: Collection[str] = ()) -> None:
        self.written.append(len(kept))
        model = onnx.load(self.source)
        if self.sensitive not in kept:
            bias = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 1 and tensor.dims[0] == 16)
            shifted = onnx.numpy_helper.to_array(bias) + np.linspace(-self.most, self.most, 16, dtype=np.float32)
            bias.CopyFrom(onnx.numpy_helper.from_array(shifted, bias.name))
        onnx.save(model, target)


@pytest.fixture
def task(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(network, "speed_ratio", lambda *_: 2.0)
    products = judged_products(exported.run, exported.run.folder.parent / "data")
    spec = next(spec for spec in encoder_networks(exported.recipe) if spec.tower == "image")
    source = exported.repository / "image_encoder/1/model.onnx"
    return Task(
        spec=spec,
        source=source,
        fp32=products.embed("image", source),
        products=products,
        limits=Limits(),
        signature_faults=lambda _: [],
        served=cpu_parameters(exported.recipe.towers["image"], exported.recipe.serving.of(spec.name)),
    )


@pytest.mark.parametrize("most", [9.0, float("nan")], ids=["drift", "overflow"])
def test_the_most_sensitive_layers_stay_in_fp32(task: Task, tmp_path: Path, most: float) -> None:
    outcome = reduce_network(task, Spoilt(task.source, "layer 5", most), tmp_path / "model.onnx")
    assert (outcome.form, outcome.refused, outcome.layers) == ("spoilt", False, 12)
    assert "layer 5" in outcome.kept_layers
    assert len(outcome.kept_layers) <= 2
    assert outcome.drift is not None
    assert outcome.drift.cosine_min == pytest.approx(1, abs=1e-5)


def test_a_file_whose_layers_all_stay_in_fp32_is_no_reduced_one(task: Task, tmp_path: Path) -> None:
    class NeedsBoth(Spoilt):
        def write(self, target: Path, kept: Collection[str] = ()) -> None:
            super().write(target, ["both"] if len(kept) == 2 else kept)

    writer = NeedsBoth(task.source, "both")
    writer.layers = ["layer 0", "layer 1"]  # a group each: a second try would keep both
    outcome = reduce_network(task, writer, tmp_path / "model.onnx")
    assert (outcome.form, outcome.refused) == ("fp32", True)
    assert writer.written[-1] == 1


def test_a_network_without_a_layer_to_reduce_stays_fp32(task: Task, tmp_path: Path) -> None:
    writer = Spoilt(task.source, "none of them")
    writer.layers = []
    outcome = reduce_network(task, writer, tmp_path / "model.onnx")
    assert (outcome.form, outcome.refused, outcome.layers) == ("fp32", True, 0)


def test_a_network_that_no_try_saves_stays_fp32_after_few_tries(task: Task, tmp_path: Path) -> None:
    writer = Spoilt(task.source, "none of them")
    outcome = reduce_network(task, writer, tmp_path / "model.onnx")
    assert (outcome.form, outcome.refused) == ("fp32", True)
    assert "cosine to fp32" in outcome.reason
    assert len(writer.written) <= 4 + 8  # tries, and an estimate per group of layers


def test_a_signature_that_fails_refuses_the_network(task: Task, tmp_path: Path) -> None:
    failing = Task(**{**vars(task), "signature_faults": lambda _: ["signature image: no"]})
    outcome = reduce_network(failing, Spoilt(task.source, "layer 0"), tmp_path / "model.onnx")
    assert (outcome.form, outcome.refused, outcome.reason) == ("fp32", True, "signature image: no")


@pytest.mark.parametrize(("ratios", "refused"), [([1.01], False), ([1.5, 1.01], True)])
def test_a_file_that_is_not_faster_is_not_offered(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratios: list[float], refused: bool
) -> None:
    measured = iter(ratios)
    monkeypatch.setattr(network, "speed_ratio", lambda *_: next(measured))
    outcome = reduce_network(task, Spoilt(task.source, "layer 0"), tmp_path / "model.onnx")
    # Slow from the start is no fault; slow once enough layers stay in fp32 means that the gate failed.
    assert (outcome.form, outcome.refused) == ("fp32", refused)
    assert "runs 1.01 times as fast here" in outcome.reason


def test_the_speed_is_that_of_the_batch_that_gains_less(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def ratio(_old: object, _new: object, _turn: int, feed: Feed) -> float:
        return 0.9 if len(next(iter(feed.values()))) > 1 else 2.0

    monkeypatch.setattr(speed, "_ratio", ratio)
    assert speed_ratio(task.source, task.source, "image", task.products, {"cpu_threads": "1"}) == 0.9


def test_what_cannot_be_written_stays_fp32(task: Task, tmp_path: Path) -> None:
    class Broken(Spoilt):
        def write(self, target: Path, kept: Collection[str] = ()) -> None:
            raise ValueError(f"unsupported: {target.name}, {kept}")

    outcome = reduce_network(task, Broken(task.source, ""), tmp_path / "model.onnx")
    assert (outcome.form, outcome.refused, outcome.reason) == (
        "fp32",
        True,
        "spoilt cannot be made: unsupported: model.onnx, ()",
    )


def test_a_full_disk_ends_the_export(task: Task, tmp_path: Path) -> None:
    class Full(Spoilt):
        def write(self, target: Path, kept: Collection[str] = ()) -> None:  # noqa: ARG002
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with pytest.raises(OSError, match="No space left"):
        reduce_network(task, Full(task.source, ""), tmp_path / "model.onnx")


def test_what_onnxruntime_cannot_load_stays_fp32(task: Task, tmp_path: Path) -> None:
    class Foreign(Spoilt):
        def write(self, target: Path, kept: Collection[str] = ()) -> None:
            model = onnx.load(self.source)
            model.graph.node[0].op_type = f"Unheard{len(kept)}"
            onnx.save(model, target)

    outcome = reduce_network(task, Foreign(task.source, ""), tmp_path / "model.onnx")
    assert (outcome.form, outcome.refused) == ("fp32", True)
    assert "onnxruntime cannot load the file" in outcome.reason


# --- a whole repository


def already_traced(monkeypatch: pytest.MonkeyPatch, exported: Exported) -> None:
    """Take the fp32 files of the finished export instead of tracing them once more."""

    def copy(*given: Any) -> list[ExportReport]:
        folder: Path = given[-1]
        for path in exported.repository.rglob("*.onnx"):
            shutil.copyfile(path, folder / path.relative_to(exported.repository))
        return exported.reports

    monkeypatch.setattr(exporting, "_export_networks", copy)


def products_of(exported: Exported) -> Path:
    return exported.run.folder.parent / "data" / "products.jsonl"


Export = Callable[..., tuple[Path, PrecisionReport]]


@pytest.fixture
def export(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exports the tiny run with its image network reduced, which otherwise is too small for that."""
    monkeypatch.setattr(graph, "_SMALL_BYTES", 0)
    monkeypatch.setattr(network, "speed_ratio", lambda *_: 2.0)
    monkeypatch.setattr(reducing, "LEAST_PRODUCTS", 20)

    already_traced(monkeypatch, exported)

    def run(precision: Precision, limits: Limits, for_tensorrt: bool = False) -> tuple[Path, PrecisionReport]:
        choice = PrecisionChoice(
            precision=precision,
            data_root=exported.run.folder.parent / "data",
            limits=limits,
            for_tensorrt=for_tensorrt,
        )
        reducer = Reducer(exported.run, choice)
        export_run(exported.run, tmp_path / "repository", [reducer])
        assert reducer.report is not None
        return tmp_path / "repository", reducer.report

    return run


def outcomes(report: PrecisionReport) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in report.networks}


@pytest.mark.parametrize(
    ("precision", "for_tensorrt", "form"),
    [("int8", False, "int8 static"), ("int8", True, "int8 static"), ("fp16", False, "fp16")],
)
def test_a_reduced_network_takes_the_place_of_the_fp32_one(
    exported: Exported, export: Export, precision: Precision, for_tensorrt: bool, form: str
) -> None:
    repository, report = export(precision, ANYTHING, for_tensorrt)
    found = outcomes(report)
    assert {name: outcome.form for name, outcome in found.items()} == {
        "image_encoder": form,
        "attributes_encoder": "fp32",
    }
    # What a GPU is to run is not judged by how fast this machine's CPU runs it.
    assert found["image_encoder"].speed == (None if for_tensorrt or precision == "fp16" else 2.0)
    assert report.refused() == []
    assert report.split == "train"  # this catalogue has no val
    drift = found["image_encoder"].drift
    assert drift is not None
    assert drift.cosine_mean > 0.95
    assert drift.batch_distance < 1e-3  # ranges are fixed
    assert report.signatures.keys() == {"image", "attributes", "image_attributes"}
    assert report.signatures["attributes"].cosine_min == pytest.approx(1)
    before = {path.relative_to(exported.repository): path for path in exported.repository.rglob("*.onnx")}
    changed = [str(name) for name, path in before.items() if (repository / name).read_bytes() != path.read_bytes()]
    assert changed == ["image_encoder/1/model.onnx"]
    assert list(repository.rglob(".*partial*")) == []


def test_a_reduced_network_that_fits_into_a_file_leaves_no_weights_beside_it(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = exporting._export_networks

    def beside(*given: Any) -> list[ExportReport]:
        path = given[-1] / "image_encoder/1/model.onnx"
        with monkeypatch.context() as patch:
            patch.setattr(network_files, "LARGEST_BYTES", 0)
            reports = copied(*given)
            network_files.save_network(onnx.load(path), path)
        assert path.with_name("model.onnx.data").is_file()
        return reports

    monkeypatch.setattr(exporting, "_export_networks", beside)
    repository, report = export("fp16", ANYTHING)
    assert outcomes(report)["image_encoder"].form == "fp16"
    assert list(repository.rglob("*.data")) == []
    manifest = json.loads((repository / "manifest.json").read_text(encoding="utf-8"))
    assert not [name for name in manifest["sha256"] if name.endswith(".data")]


def test_the_manifest_holds_the_figures(export: Export) -> None:
    repository, report = export("int8", ANYTHING)
    section = json.loads((repository / "manifest.json").read_text(encoding="utf-8"))["precision"]
    assert section["precision"] == "int8"
    image = section["networks"][0]
    assert (image["name"], image["form"], image["speed"]) == ("image_encoder", "int8 static", 2.0)
    drift = outcomes(report)["image_encoder"].drift
    assert drift is not None
    assert image["drift"]["cosine_min"] == drift.cosine_min
    assert image["drift"]["recall_loss"].keys() == {"group"}
    assert section["signatures"].keys() == report.signatures.keys()
    assert section["limits"]["cosine_mean"] == -1


def test_what_is_exactly_at_its_limit_passes() -> None:
    loss = RecallLoss(points=0.5, error=0.0, queries=50)
    drift = Drift(
        products=9,
        cosine_min=0.90,
        cosine_mean=0.98,
        overlap_at_10=0.80,
        batch_distance=0.05,
        recall_loss={"group": loss},
        mixed_recall_loss={"group": loss},
    )
    assert Limits().faults(drift) == Limits().signature_faults(drift) == Limits().mean_faults([drift]) == []
    fewer = replace(loss, points=9.0, queries=49)  # which count where no signature has more
    assert mean_points([{"group": loss}, {"group": fewer}]) == {"group": 0.5}


def test_whichever_file_goes_first_the_ratio_is_of_the_same_two() -> None:
    assert [speed._ratio(lambda _: 3.0, lambda _: 1.5, turn, {}) for turn in (0, 1)] == [2.0, 2.0]


def test_files_are_timed_as_a_server_runs_them(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Mapping[str, str]] = []

    def watched(path: Path, parameters: Mapping[str, str]) -> Any:
        opened.append(parameters)
        return Sessions(path, parameters)

    monkeypatch.setattr(speed, "Sessions", watched)
    served = {"cpu_threads": "2", "run_rows": "2"}
    assert speed_ratio(task.source, task.source, "image", task.products, served) > 0
    assert opened == [served] * 2


@pytest.mark.parametrize("purpose", ["judge", "calibrate"])
def test_a_handful_of_products_is_not_enough(
    exported: Exported, export: Export, monkeypatch: pytest.MonkeyPatch, purpose: str
) -> None:
    monkeypatch.setattr(reducing, "LEAST_PRODUCTS", 30)
    count = Products.count
    if purpose == "calibrate":  # enough to judge, but not to calibrate
        monkeypatch.setattr(Products, "count", lambda self, name: 30 if self.split == "val" else count(self, name))
        monkeypatch.setattr(reducing, "judged_products", lambda *given: replace(judged_products(*given), split="val"))
    _, report = export("int8", ANYTHING)
    photos = sum(bool(json.loads(line).get("images")) for line in products_of(exported).read_text().splitlines())
    assert report.refused() == ["image_encoder"]
    assert outcomes(report)["image_encoder"].reason == (
        f"the split train has {photos} products with a usable image to {purpose} it on, 30 are needed: "
        "add some, or stay with fp32"
    )


@pytest.mark.parametrize("split", ["val", "train"])
def test_of_pairs_the_matches_of_val_are_judged(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    ids = [json.loads(line)["product_id"] for line in products_of(exported).read_text().splitlines()]
    lines = [f"{ids[0]},{ids[3]},0,{split}", f"{ids[1]},{ids[2]},1,{split}", f"{ids[4]},{ids[5]},1,{split}"]
    if split == "val":
        lines.append(f"{ids[6]},{ids[7]},1,train")
    (tmp_path / "pairs.csv").write_text("left_id,right_id,label,split\n" + "\n".join(lines))
    data = exported.recipe.data.model_copy(
        update={"products": str(products_of(exported)), "pairs": "pairs.csv", "labels": ()}
    )
    recipe = exported.recipe.model_copy(update={"data": data})
    run: Any = SimpleNamespace(read_recipe=lambda: recipe, towers=exported.run.towers)
    judged = judged_products(run, tmp_path)
    values = judged.labels[PAIRS]
    assert (judged.split, len(values), sum(values != "")) == (split, 6, 4)
    monkeypatch.setattr("likeness_export.precision.products._MOST", 4)
    assert (judged_products(run, tmp_path).labels[PAIRS] != "").all()


def test_products_of_a_rare_modality_are_drawn_as_well(exported: Exported) -> None:
    catalogue = read_catalogue(products_of(exported))
    few = some_of(exported.recipe, catalogue, 4, 0)
    more = some_of(exported.recipe, catalogue, 4, 9)
    everything = some_of(exported.recipe, catalogue, 4, 1000)
    assert [len(few), len(everything)] == [4, len(catalogue)]
    assert {product.product_id for product in few.products} <= {product.product_id for product in more.products}
    assert sum(bool(product.images) for product in more.products) >= 9
    assert sum(bool(product.attributes) for product in more.products) >= 9
    assert 9 <= len(more) <= 4 + 9 + 9


def test_networks_that_fail_together_go_back_to_fp32(
    exported: Exported, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[], ["too much"], []])
    monkeypatch.setattr(FusionHeads, "faults", lambda *_: next(answers))
    repository, report = export("int8", ANYTHING)
    found = outcomes(report)["image_encoder"]
    assert (found.form, found.refused, found.reason) == ("fp32", True, "together with the others: too much")
    name = "image_encoder/1/model.onnx"
    assert (repository / name).read_bytes() == (exported.repository / name).read_bytes()


def test_of_networks_that_fail_together_the_one_that_moved_most_goes_back_alone(tmp_path: Path) -> None:
    moved = {"text": 0.99, "image": 0.95, "video": 0.98}
    found = {name: Outcome(name=name, form="int8", drift=good(cosine_mean=mean)) for name, mean in moved.items()}
    reducer: Any = SimpleNamespace(judged=SimpleNamespace(embed=lambda name, _: name))
    heads: Any = SimpleNamespace(
        drifts=lambda reduced, **_: set(reduced), faults=lambda names: ["too much"] if "image" in names else []
    )
    assert set(Reducer._together(reducer, heads, found, tmp_path)) == {"text", "video"}
    assert [outcome.form for outcome in found.values()] == ["int8", "fp32", "int8"]


def command(monkeypatch: pytest.MonkeyPatch, exported: Exported, repository: Path, *options: str) -> int:
    already_traced(monkeypatch, exported)
    words = ["likeness", "export", str(exported.run.folder), "--repository", str(repository), *options]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command_says_what_was_refused_and_exits_with_1(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "_SMALL_BYTES", 0)
    monkeypatch.setattr(network, "speed_ratio", lambda *_: 2.0)
    monkeypatch.setattr(reducing, "LEAST_PRODUCTS", 20)
    monkeypatch.setattr(Limits, "faults", lambda *_: ["recall@1 falls"])
    root = str(exported.run.folder.parent / "data")
    code = command(monkeypatch, exported, tmp_path / "new", "--precision", "int8", "--data-root", root)
    said = capsys.readouterr()
    assert code == 1
    assert "not int8, because nothing passed the gate: image_encoder" in said.err
    assert "image_encoder stays fp32: recall@1 falls" in said.out
    assert (tmp_path / "new" / "manifest.json").is_file()


def test_the_command_does_not_send_to_a_limit_where_nothing_was_judged(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "_SMALL_BYTES", 0)
    root = str(exported.run.folder.parent / "data")
    assert command(monkeypatch, exported, tmp_path / "new", "--precision", "int8", "--data-root", root) == 1
    said = capsys.readouterr()
    assert "are needed: add some, or stay with fp32" in said.out
    assert said.err.endswith("not int8, because nothing passed the gate: image_encoder\n")


def test_the_command_needs_the_products_and_asks_for_them_first(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"{__name__}.already_traced", lambda *_: None)
    monkeypatch.setattr(exporting, "_export_networks", lambda *_: pytest.fail("networks were exported already"))
    assert command(monkeypatch, exported, tmp_path / "new", "--precision", "fp16") == 1
    assert "products.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_index_that_stays_as_it_is_is_asked_too() -> None:
    old = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    new = old @ np.array([[0, 1], [-1, 0]], dtype=np.float32)  # all of it turned: among themselves nothing has changed
    before, after = (JudgedVectors(together=vectors, alone=vectors) for vectors in (old, new))
    drift = measure(before, after, {"group": np.array(["a", "a", "b", "b"])})
    assert (drift.recall_loss["group"].points, drift.mixed_recall_loss["group"].points) == (0.0, 50.0)
    # Of the reduced queries, not of the fp32 ones among reduced neighbours.
    moved = unit([[1, 0], [3, 1], [0, 1], [-1, 3]]), unit([[-1, 6], [3, 1], [0, 1], [-1, 3]])
    before, after = (JudgedVectors(together=vectors, alone=vectors) for vectors in moved)
    drift = measure(before, after, {"group": np.array(["a", "a", "b", "b"])})
    assert drift.mixed_recall_loss["group"].points == 25.0
