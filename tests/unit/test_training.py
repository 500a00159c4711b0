from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from likeness_client.errors import InputError
from likeness_client.locking import locked
from likeness_export.cli import app
from likeness_export.encoders import Encoder, EncoderConfig
from likeness_export.encoders.base import ASSETS
from likeness_export.evaluation.evaluate import OfflineEmbedder, Task, evaluate, read_task_catalogue
from likeness_export.features.tower_inputs import TowerInputs, read_inputs
from likeness_export.preprocessing import image
from likeness_export.product_network import build_network
from likeness_export.products import named_pairs
from likeness_export.products.catalogue import Catalogue, read_catalogue
from likeness_export.products.csv_lines import read_lines
from likeness_export.recipe import Recipe, parse_recipe
from likeness_export.run import Run, load_state
from likeness_export.tensors import TensorSpec
from likeness_export.training import trainer as training
from likeness_export.training.objective import Objective
from likeness_export.training.positives import Judgement, LabelPositives
from likeness_export.training.train import train
from likeness_export.training.trainer import Trainer, _schedule, prepare_towers
from likeness_export.training.training_data import alike_key, read_training_data, records_key, training_pairs
from numpy.typing import NDArray
from transformers import ResNetConfig, ResNetModel
from typer.testing import CliRunner

if TYPE_CHECKING:
    from torch import Tensor

    from tests.unit.conftest import Exported, LittleRoom, Tiny


class MachineStopsError(Exception):
    """Stands for a machine that is switched off."""


def changed(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    raw = recipe.model_dump(mode="json")
    for section, values in sections.items():
        raw[section] |= values
    return parse_recipe(raw, "test")


def weights(run: Run) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(run.weights, weights_only=True)
    return found


def losses(run: Run) -> list[float]:
    return [json.loads(line)["loss"] for line in run.log.read_text(encoding="utf-8").splitlines()]


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def small_resnet(tiny: Tiny) -> dict[str, Any]:
    """A pretrained tower, which stays as it is."""
    network = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"))
    network.save_pretrained(tiny.root / "resnet")
    (tiny.root / "resnet" / "preprocessor_config.json").write_text('{"do_normalize": false}', encoding="utf-8")
    return {"encoder": "vision", "source": "resnet", "image_px": 32}


def trainer_of(recipe: Recipe, tiny: Tiny, folder: Path) -> Trainer:
    return Trainer(recipe, Run(folder / "run"), read_training_data(recipe, tiny.root), tiny.root, torch.device("cpu"))


def train_interrupted(recipe: Recipe, run: Run, root: Path, *, after: int) -> None:
    """Train so many epochs, and end in the middle of the next."""
    one_epoch = Trainer._epoch

    def interrupted(self: Trainer, epoch: int, *args: Any) -> float:
        loss = one_epoch(self, epoch, *args)
        if epoch == after:
            raise MachineStopsError
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_epoch", interrupted)
        with pytest.raises(MachineStopsError):
            train(recipe, run, root)


def test_without_labels_the_modalities_of_a_product_learn_from_each_other(tiny: Tiny, tmp_path: Path) -> None:
    catalogue = read_catalogue(tiny.products)
    task = Task(labels=("product_id",), queries=("train",), gallery=("train",))
    found = []
    for epochs in (1, 40):
        recipe = changed(tiny.recipe, data={"labels": ["product_id"]}, training={"epochs": epochs, "co_learning": 1.0})
        run = Run(tmp_path / str(epochs))
        train(recipe, run, tiny.root)
        rows = evaluate(OfflineEmbedder(run, catalogue), catalogue, recipe.modalities(), task)
        found.append({row.signature: row.figures.mean_average_precision for row in rows})
    before, after = found
    assert after["attributes -> image"] > 1.5 * before["attributes -> image"]
    assert after["image -> attributes"] > 1.5 * before["image -> attributes"]


@pytest.mark.parametrize("settings", [{}, {"head_epochs": 2, "proxies": 1.0, "epochs": 2, "hard_negatives": 0.5}])
def test_an_interrupted_training_goes_on_to_exactly_the_same_weights(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any]
) -> None:
    recipe = changed(tiny.recipe, training=settings)
    straight, resumed = Run(tmp_path / "straight"), Run(tmp_path / "resumed")
    train(recipe, straight, tiny.root)
    for epochs in (0, 1, 1):  # before there is a checkpoint, and with one; with head epochs: in both parts
        train_interrupted(recipe, resumed, tiny.root, after=epochs)
        assert not resumed.weights.exists()
        assert resumed.checkpoint.exists() == (epochs > 0)
    fitted = {path: path.stat().st_mtime_ns for path in resumed.towers.rglob("*")}
    torch.manual_seed(99)  # what happened in the process before does not matter
    half_written = resumed.folder / f".{resumed.checkpoint.name}.0123abcd.partial"
    half_written.touch()  # by a process that was killed
    resumed.log.write_text(resumed.log.read_text()[:-10])  # or so it seems
    train(recipe, resumed, tiny.root)
    assert not half_written.exists()
    assert_same(weights(resumed), weights(straight))
    assert losses(resumed) == losses(straight)
    assert len(losses(straight)) == recipe.training.head_epochs + recipe.training.epochs
    assert not resumed.checkpoint.exists()
    assert {path: path.stat().st_mtime_ns for path in resumed.towers.rglob("*")} == fitted  # it goes with the weights


def test_every_encoder_learns_at_its_own_rate_and_a_frozen_one_not_at_all(tiny: Tiny, tmp_path: Path) -> None:
    towers = tiny.recipe.model_dump(mode="json")["towers"]
    towers["still"] = small_resnet(tiny)
    towers["image"]["learning_rate"] = 3e-4
    settings = {"learning_rate": 0.02, "weight_decay": 0.3, "proxies": 1.0}
    trainer = trainer_of(changed(tiny.recipe, towers=towers, training=settings), tiny, tmp_path)
    names = {
        id(tensor): name for part in (trainer.network, trainer.objective) for name, tensor in part.named_parameters()
    }
    assert {name.split(".")[0] for name in names.values()} == {"towers", "fusion", "metric", "proxies"}
    found = {
        names[id(tensor)]: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for tensor in group["params"]
    }
    assert not any(tensor.requires_grad for tensor in trainer.network.tower("still").encoder.parameters())
    assert not any(name.startswith("towers.still.encoder.") for name in trainer._trained_state())  # nor kept each time
    assert found == {
        name: (3e-4 if name.startswith("towers.image.encoder.") else 0.02, 0.3)
        for name in names.values()
        if not name.startswith("towers.still.encoder.")
    }


class Plus(Encoder):
    """Training adds one to what it is given, and a batch tells whether it is encoded in less than FP32."""

    def __init__(self) -> None:
        super().__init__()
        self.reduced: list[bool] = []

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor + 1 for tensor in tensors)

    def forward(self, *tensors: Tensor) -> Tensor:
        found = tensors[0] @ torch.eye(3)
        self.reduced.append(found.dtype == torch.bfloat16)
        return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encoders_learn_from_varied_inputs_in_the_precision_that_is_asked_for(
    tiny: Tiny, tmp_path: Path, precision: str
) -> None:
    recipe, encoder = changed(tiny.recipe, training={"precision": precision}), Plus()
    trainer = trainer_of(recipe, tiny, tmp_path)
    torch.testing.assert_close(trainer._encode(encoder, torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert encoder.reduced == [precision == "bf16"]


@pytest.mark.parametrize(("rows", "lacking"), [([4, 8], 0), ([0, 5], 1)], ids=["image", "attributes"])
def test_a_modality_that_nobody_in_a_batch_has_is_left_out(
    tiny: Tiny, tmp_path: Path, rows: list[int], lacking: int
) -> None:
    vectors = trainer_of(tiny.recipe, tiny, tmp_path)._vectors(np.array(rows))
    assert not vectors[:, lacking].any()
    torch.testing.assert_close(vectors[:, 1 - lacking].norm(dim=1), torch.ones(2))


def test_the_learning_rate_rises_for_the_head_and_again_for_all_and_falls_to_nothing() -> None:
    factor = _schedule(100, 200)
    rates = [factor(step) for step in range(301)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert {*rates[6:100]} == {1}
    assert rates[100:112] == pytest.approx([step / 12 for step in range(1, 13)])
    assert rates[112:] == sorted(rates[112:], reverse=True)
    assert (rates[112], rates[112 + 94], rates[300]) == pytest.approx((1, 0.5, 0))
    assert _schedule(0, 1)(0) == 1  # a single step learns


def test_an_interrupted_training_does_not_go_on_with_other_products(tiny: Tiny, tmp_path: Path) -> None:
    run, recipe = Run(tmp_path / "run"), changed(tiny.recipe, data={"source": "shop"})
    edit_catalogue(tiny, "0-0", shop="a")
    train_interrupted(recipe, run, tiny.root, after=1)
    text = tiny.products.read_text(encoding="utf-8")
    first, *others = text.splitlines()
    for changed_text in (
        "\n".join([*others, first]),
        text.replace('"group": "g0"', '"group": "g1"', 1),
        text.replace('"shop": "a"', '"shop": "b"'),
        text.replace('"product_id": "0-1"', '"product_id": "0-x"'),
        text.replace('"kind": "kind 0"', '"kind": "kind 1"', 1),
    ):
        assert changed_text != text
        tiny.products.write_text(changed_text, encoding="utf-8")
        with pytest.raises(InputError, match=r"makes them alike, have changed since .*checkpoint\.pt was written"):
            train(recipe, run, tiny.root)
    run.checkpoint.unlink()
    train(recipe, run, tiny.root)


def test_a_file_is_no_folder_of_a_run(tmp_path: Path) -> None:
    place = tmp_path / "taken"
    place.touch()
    for command in (["train", "demo"], ["join", "a", "b"], ["demo"]):
        answer = CliRunner().invoke(app, [*command, "--out", str(place)])
        assert answer.exit_code == 2
        assert "Invalid value for '--out'" in answer.output


def test_a_folder_that_is_not_of_a_run_is_not_cleared(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "mine.txt").touch()
    with pytest.raises(InputError, match="towers is there, but is not of a run: choose another folder"):
        train(tiny.recipe, Run(tmp_path), tiny.root)
    assert (tmp_path / "towers" / "mine.txt").is_file()


def test_a_file_in_the_place_of_the_folder_is_named(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"^cannot write {folder} "):
            train(tiny.recipe, Run(folder), tiny.root)


def test_a_misspelled_name_is_refused_before_training(tiny: Tiny, tmp_path: Path) -> None:
    for section, message in (
        ({"labels": ["group", "gruop"]}, "no product has the label 'gruop'"),
        ({"source": "knid"}, "no product has the label 'knid'"),
        ({"labels": ["serial"]}, "0 values are shared by several training products"),
        ({"labels": ["serial", "product_id"]}, "0 values are shared by several training products"),
        ({"train_splits": ["train", "trian"]}, "no product has split trian"),
        ({"text_fields": ["title", "attributes.brnd"]}, r"no product .* has attributes\.brnd; attributes are: kind, "),
        ({"only": {"material": ["wood"]}}, r"no product has the label 'material'; products have: .*attributes\.kind"),
        ({"only": {"split": ["train", "trian"]}}, r"data\.only\.split: no product .* has 'trian'"),
    ):
        with pytest.raises(InputError, match=message):
            train(changed(tiny.recipe, data=section), Run(tmp_path / "run"), tiny.root)
        assert not (tmp_path / "run" / "towers").exists()  # nothing was read or fitted for it
    recipe = changed(tiny.recipe, towers={"attributes": {"encoder": "one_hot", "keys": ["kind", "color"]}})
    with pytest.raises(InputError, match=r"towers\.attributes: .* has attributes\.color; attributes are: kind, colour"):
        train(recipe, Run(tmp_path / "run"), tiny.root)
    recipe = changed(tiny.recipe, towers={"attributes": {"encoder": "one_hot", "keys": ["kind", "group"]}})
    with pytest.raises(InputError, match=r"; group: put inside of the object attributes, not beside it$"):
        train(recipe, Run(tmp_path / "run"), tiny.root)
    assert not (tmp_path / "run" / "towers").exists()


def test_gaps_that_became_words_and_html_are_named_once(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny.recipe, Run(tmp_path / "clean"), tiny.root)
    assert "HTML" not in caplog.text
    assert "gap" not in caplog.text
    edit_catalogue(tiny, "0-0", group="nan", title="a<br/>b", serial="nan", attributes={"kind": "None"})
    edit_catalogue(tiny, "0-1", group="nan", title="R&amp;D, 3 < 4 > 2, nan", note="<p>")
    edit_catalogue(tiny, "0-2", title="M&Ms; <XL>")
    recipe, run = changed(tiny.recipe, data={"labels": ["attributes.kind+group"]}), Run(tmp_path / "run")
    train(recipe, run, tiny.root)
    train(recipe, run, tiny.root)  # finished; what else reads the training data again, an export for instance, is no
    read_training_data(recipe, tiny.root)  # place to say it, either
    of = " training products, and read as a word: where it stands for a gap, leave the key out or write null"
    found = [record.getMessage() for record in caplog.records if record.name.endswith(".doubts")]
    assert [re.sub(r"of \d+", "of N", line) for line in found] == [
        f"attributes.kind is 'None' in 1 of N{of}",
        f"group is 'nan' in 2 of N{of}",
        "title holds HTML in 2 of N training products, e.g. '<br/>', and it is read as words: take it out here, and of "
        "what is served later, too",
    ]


def test_a_text_field_may_hold_any_key(tiny: Tiny) -> None:
    lines = [json.loads(line) for line in tiny.products.read_text(encoding="utf-8").splitlines()]
    lines[0].setdefault("attributes", {})["Ram+Rom"] = "8"
    tiny.products.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    recipe = changed(tiny.recipe, data={"text_fields": ["title", "attributes.Ram+Rom"]})
    assert len(read_training_data(recipe, tiny.root).catalogue) == len(lines)


def test_every_epoch_of_every_seed_draws_batches_and_modalities_of_its_own(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, draw, batches, states = LabelPositives.judge, LabelPositives.batches, list[bytes](), list[bytes]()
    lengths = list[NDArray[np.float32]]()

    def noting(positives: LabelPositives, rows: NDArray[np.intp]) -> Judgement:
        batches.append(rows.tobytes())
        states.append(torch.get_rng_state().numpy().tobytes())
        return judge(positives, rows)

    def comparing(
        positives: LabelPositives, random: Any, embeddings: NDArray[np.float32]
    ) -> Iterator[NDArray[np.intp]]:
        before = embeddings.copy()
        lengths.append(np.linalg.norm(embeddings, axis=1))
        yield from draw(positives, random, embeddings)
        np.testing.assert_array_equal(embeddings, before)  # those of the last epoch, to the end of this one

    monkeypatch.setattr(LabelPositives, "judge", noting)
    monkeypatch.setattr(LabelPositives, "batches", comparing)
    for seed in (1, 2):
        recipe = changed(tiny.recipe, training={"epochs": 2}).model_copy(update={"seed": seed})
        train(recipe, Run(tmp_path / str(seed)), tiny.root)
        first, second = lengths[-2:]
        assert not first.any()  # of nothing yet
        assert np.mean(np.isclose(second, 1)) > 0.5  # of all that were in a batch
    assert len(batches) == len(set(batches)) == len(set(states))


def test_an_epoch_s_loss_is_the_mean_of_its_batches_and_one_that_is_no_number_ends_the_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = Run(tmp_path / "run"), iter([1.0, 2.0, 6.0, float("nan")])

    def forward(*_: Any) -> tuple[Tensor, Tensor]:
        return torch.tensor(next(found), requires_grad=True), torch.zeros(1)

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(InputError, match=r"^the loss of epoch 2 is nan: .* lower the learning rates"):
        train(tiny.recipe, run, tiny.root)
    assert losses(run) == [3]
    assert json.loads(run.log.read_text(encoding="utf-8"))["epoch"] == 1


def test_steps_go_as_far_as_the_schedule_says_by_a_gradient_of_at_most_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, norms, rates = torch.optim.AdamW.step, list[float](), list[float]()

    def noting(optimizer: torch.optim.AdamW) -> None:
        gradients = [tensor.grad for group in optimizer.param_groups for tensor in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([found for found in gradients if found is not None])))
        rates.append(optimizer.param_groups[-1]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    recipe = changed(tiny.recipe, training={"epochs": 1, "contrast": 1000.0})
    train(recipe, Run(tmp_path / "run"), tiny.root)
    assert norms == pytest.approx([1.0] * len(norms), rel=1e-3)
    factor = _schedule(0, len(rates))
    assert rates == [factor(place) * recipe.training.learning_rate for place in range(len(rates))]


def test_training_learns(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(changed(tiny.recipe, training={"epochs": 6}), run, tiny.root)
    assert losses(run)[-1] < 0.9 * losses(run)[0]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_a_finished_run_is_left_as_it_is(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "run")
    train(tiny.recipe, run, tiny.root)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.folder.rglob("*") if path.is_file()}
    tiny.products.unlink()  # not even the data is needed any more
    with caplog.at_level(logging.INFO):
        train(changed(tiny.recipe, serving={"max_batch_size": 2}), run, tiny.root)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.folder.rglob("*") if path.is_file()}
    assert after == before
    assert "already trained" in caplog.text
    assert "likeness export --serving RECIPE" in caplog.text


def test_a_resumed_training_takes_the_new_serving_section(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train_interrupted(tiny.recipe, run, tiny.root, after=1)
    train(changed(tiny.recipe, serving={"max_batch_size": 2}), run, tiny.root)
    assert run.read_recipe().serving.max_batch_size == 2


def test_a_folder_of_another_recipe_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run"), changed(tiny.recipe, training={"epochs": 4})
    run.write_recipe(other)
    run.checkpoint.touch()
    with pytest.raises(InputError, match="holds a run of another recipe: choose another folder or remove it"):
        train(tiny.recipe, run, tmp_path / "nowhere")  # found out before the products are read
    assert run.read_recipe() == other


def test_a_training_that_failed_before_its_first_epoch_leaves_the_folder_to_others(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    other = changed(tiny.recipe, towers={"text": {"encoder": "tfidf"}})
    with pytest.raises(InputError, match=r"towers\.text: no training product has text"):
        train(other, run, tiny.root)
    train(tiny.recipe, run, tiny.root)
    assert run.read_recipe() == tiny.recipe


def test_a_training_without_data_leaves_nothing_behind(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match=r"there is no such file. The recipe's paths start from --data-root \(now "):
        train(tiny.recipe, run, tmp_path / "elsewhere")
    assert not run.folder.exists()


def test_two_processes_do_not_train_the_same_run(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.write_recipe(tiny.recipe)
    with locked(run.lock, "it is being trained"), pytest.raises(InputError, match="is being trained by another proc"):
        train(tiny.recipe, run, tiny.root)
    train(tiny.recipe, run, tiny.root)
    assert run.weights.exists()


def test_a_file_system_without_locks_is_trained_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unlocked(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unlocked)
    train(tiny.recipe, Run(tmp_path / "run"), tiny.root)
    assert "run cannot be locked (No locks available): let no other process work there" in caplog.text


def test_a_run_that_is_not_finished_cannot_be_read(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run: it has no recipe\.json"):
        Run(tmp_path).read_network()
    Run(tmp_path).write_recipe(tiny.recipe)
    with pytest.raises(InputError, match="is not trained to its end"):
        Run(tmp_path).read_network()


def test_a_trained_network_is_read_as_it_was_written(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(tiny.recipe, run, tiny.root)
    recipe, network = run.read_network()
    assert recipe == tiny.recipe
    assert not network.training
    assert_same(dict(network.state_dict()), weights(run))


@pytest.mark.parametrize("left", [0, 1000], ids=["empty", "cut off"])  # after a power failure; after a copy
def test_damaged_files_are_named(tiny: Tiny, tmp_path: Path, left: int) -> None:
    run = Run(tmp_path / "run")

    def use() -> None:
        train(tiny.recipe, run, tiny.root)
        run.read_network()

    def refused(place: Path) -> None:
        place.write_bytes(place.read_bytes()[: min(left, place.stat().st_size - 1)])
        with pytest.raises(InputError, match=f"^{place} is damaged .*: copy its folder again, or remove it and train"):
            use()

    train_interrupted(tiny.recipe, run, tiny.root, after=1)
    refused(run.checkpoint)
    run.checkpoint.unlink()
    train(tiny.recipe, run, tiny.root)
    for name in ("weights.pt", "trained_on.json", "recipe.json"):
        refused(run.folder / name)


@pytest.mark.parametrize("held", ["{}", "[]", '{"records": "", "product_ids": 1}'])
def test_a_run_that_does_not_say_what_it_was_trained_on_is_named(tmp_path: Path, held: str) -> None:
    (tmp_path / "trained_on.json").write_text(held, encoding="utf-8")
    with pytest.raises(InputError, match=r"trained_on\.json is damaged \(it does not say what was trained on\): copy"):
        Run(tmp_path).trained_on()


def test_a_checkpoint_of_another_network_is_named(tiny: Tiny, tmp_path: Path) -> None:
    run, wider = Run(tmp_path / "run"), changed(tiny.recipe, similarity={"hidden": 16})
    train_interrupted(tiny.recipe, run, tiny.root, after=1)
    run.write_recipe(wider)
    with pytest.raises(InputError, match=r"checkpoint\.pt does not fit the network of .*recipe\.json, or was written"):
        train(wider, run, tiny.root)
    run.write_recipe(tiny.recipe)
    others: tuple[object, ...] = [], {**torch.load(run.checkpoint), "network": None}
    for held in others:
        torch.save(held, run.checkpoint)
        with pytest.raises(InputError, match=r"checkpoint\.pt does not fit the network of .*recipe\.json, or was"):
            train(tiny.recipe, run, tiny.root)


@pytest.mark.parametrize("held", [b"h\x90.", b"X\x01\x00\x00\x00\xff.", b"version https://git-lfs", bytes(99)])
def test_whatever_stands_in_a_damaged_file_of_weights_it_is_named(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(held)
    with pytest.raises(InputError, match=r"weights\.pt is damaged \(.*\): copy its folder again"):
        load_state(tmp_path / "weights.pt")


def test_damaged_features_are_computed_again(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frozen = changed(tiny.recipe, towers={"attributes": {"encoder": "one_hot", "keys": ["kind"], "freeze": True}})
    first, again = Run(tmp_path / "first"), Run(tmp_path / "again")
    train(frozen, first, tiny.root)
    again.features.mkdir(parents=True)
    for place in first.features.iterdir():
        (again.features / place.name).write_bytes(place.read_bytes()[:-30])
    train(frozen, again, tiny.root)
    assert "is damaged" in caplog.text
    assert_same(weights(first), weights(again))
    for place in first.features.iterdir():
        assert place.read_bytes() == (again.features / place.name).read_bytes()


def edit_catalogue(tiny: Tiny, product_id: str, **values: Any) -> None:
    """Change one record; None removes a key."""
    records = [json.loads(line) for line in tiny.products.read_text(encoding="utf-8").splitlines()]
    for record in records:
        if record["product_id"] == product_id:
            record |= values
    kept = [{key: value for key, value in record.items() if value is not None} for record in records]
    tiny.products.write_text("\n".join(map(json.dumps, kept)) + "\n", encoding="utf-8")


@pytest.mark.parametrize("product_id", ["0-1", "1-2"])
def test_a_product_with_a_broken_image_is_logged_and_left_out(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, product_id: str
) -> None:
    """Whether it has attributes besides (0-1) or nothing else at all (1-2)."""
    (tiny.root / "images" / f"{product_id}.png").write_bytes(b"no image")
    run = Run(tmp_path / "run")
    train(tiny.recipe, run, tiny.root)
    assert f"image of product {product_id} is left out: not an image" in caplog.text
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_a_tower_that_nobody_says_anything_to_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """It would answer, and be served, as it was drawn at random."""
    for photo in (tiny.root / "images").iterdir():
        photo.write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"^towers\.image: no .* of the \d+ .* the first is 0-0: not an image.*leave the"
    ):
        train(tiny.recipe, Run(tmp_path / "run"), tiny.root)


def test_a_product_whose_photo_is_not_there_is_learned_from_without_it(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny.root / "images" / "0-1.png").unlink()
    (tiny.root / "images" / "1-2.png").unlink()  # it has nothing else
    caplog.set_level(logging.INFO)
    train(tiny.recipe, Run(tmp_path / "run"), tiny.root)
    assert re.search(r"left out: product \('0-1'\), image: .*No such file.*; used: attributes", caplog.text)
    assert re.search(r"left out: product \('1-2'\), image: .*No such file[^;]*\n", caplog.text)
    products = len(tiny.products.read_text(encoding="utf-8").splitlines())
    assert f"{products - 1} of {products - 1} usable training products share a label" in caplog.text


def test_a_finished_run_says_that_the_products_are_others_now(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "run")
    train(tiny.recipe, run, tiny.root)
    train(tiny.recipe, run, tiny.root)
    assert "not those of then" not in caplog.text
    for values in ({"group": "g1"}, {"group": "g0", "split": "val"}):  # another label is another lesson
        caplog.clear()
        edit_catalogue(tiny, "0-1", **values)
        train(tiny.recipe, run, tiny.root)
        assert "the training products of products.jsonl are not those of then: train into another folder" in caplog.text
    with pytest.raises(InputError, match="no product of split val has the label 'gruop'"):
        read_task_catalogue(run, tiny.root, Task(labels=("group", "gruop")))
    read_task_catalogue(run, tiny.root, Task(labels=("group",)))
    assert "1 of 1 products of split val were trained on: the figures flatter; was the file split anew?" in caplog.text
    caplog.clear()
    read_task_catalogue(run, tiny.root, Task(labels=("group",), queries=("train",)))
    assert re.search(r"(\d+) of \1 products of split train were trained on: the figures flatter\n", caplog.text)
    tiny.products.unlink()
    train(tiny.recipe, run, tiny.root)  # a finished run needs no products


def test_the_chosen_products_are_trained_on_without_the_masked_words(tiny: Tiny) -> None:
    edit_catalogue(tiny, "0-0", title="a blue vase", shade="blue")
    edit_catalogue(tiny, "0-1", split="val")
    recipe = changed(tiny.recipe, data={"masked": ["shade"], "only": {"group": ["g0"]}})
    found = read_training_data(recipe, tiny.root).catalogue
    assert found.ids == ["0-0", "0-2"]
    title = found.products[0].title
    assert isinstance(title, str)
    assert title.split() == ["a", "vase"]


def test_a_label_that_a_tower_reads_is_named(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    read_training_data(tiny.recipe, tiny.root)
    assert "flatter" not in caplog.text
    read_training_data(changed(tiny.recipe, data={"labels": ["group", "group+attributes.kind"]}), tiny.root)
    assert "data.labels: attributes.kind is also what a tower reads" in caplog.text


def test_photos_are_read_again_and_not_held(exported: Exported) -> None:
    recipe = exported.recipe
    catalogue = read_training_data(recipe, exported.run.folder.parent / "data").catalogue
    for found in catalogue.parts(recipe.input_schema(), recipe.modalities()):
        for name, part in found.items():
            data = part.read()
            assert (part.size, part.digest) == (len(data), hashlib.sha256(data).digest())
            assert (part.read() is data) == (name != "image")


def test_a_product_without_anything_that_a_tower_reads_is_left_out(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_catalogue(tiny, "0-1", attributes=None, images=None)
    run = Run(tmp_path / "run")
    caplog.set_level(logging.INFO)
    train(tiny.recipe, run, tiny.root)
    products = len(tiny.products.read_text(encoding="utf-8").splitlines())
    assert f"{products - 1} of {products - 1} usable training products share a label" in caplog.text
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_a_key_whose_accents_are_written_otherwise_is_not_misspelled(tiny: Tiny) -> None:
    edit_catalogue(tiny, "0-0", attributes={"gro\u0308sse": "L"})
    recipe = changed(tiny.recipe, data={"text_fields": ["title", "attributes.gr\u00f6sse"]})
    read_training_data(recipe, tiny.root)


def test_a_tower_whose_modality_nobody_has_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    towers = {"words": {"encoder": "transformer", "source": "none"}}
    recipe = changed(tiny.recipe, data={"text_fields": ["title"]}, towers=towers)
    with pytest.raises(InputError, match=r"towers\.words: .* has text \(read from: title\): leave the tower out"):
        train(recipe, Run(tmp_path / "run"), tiny.root)
    with tiny.products.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"product_id": "later", "split": "val", "attributes": {"farbe": "rot"}}) + "\n")
    recipe = changed(tiny.recipe, towers={"attributes": {"encoder": "one_hot", "keys": ["farbe"]}})
    with pytest.raises(InputError, match=r"towers\.attributes: .* has attributes \(read from: attributes\.farbe\)"):
        train(recipe, Run(tmp_path / "run"), tiny.root)


@pytest.mark.parametrize("target", ["checkpoint", "weights"])
def test_a_half_written_file_is_never_seen(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    run = Run(tmp_path / "run")
    place: Path = getattr(run, target)
    save = torch.save

    def fails_half_way(state: Any, out: Any) -> None:
        save(state, out)
        if place.name in Path(out.name).name:
            os.truncate(out if isinstance(out, Path) else out.fileno(), 100)
            raise MachineStopsError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fails_half_way)
        with pytest.raises(MachineStopsError):
            train(tiny.recipe, run, tiny.root)
    assert not place.exists()
    assert not list(run.folder.glob("*.partial")) + list(run.folder.glob(".*.partial"))
    run.log.unlink(missing_ok=True)  # whose last lines may be missing, too
    train(tiny.recipe, run, tiny.root)
    assert len(losses(run)) == tiny.recipe.training.epochs
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


@pytest.mark.parametrize(("size", "unwritten"), [(100, "recipe.json"), (20_000, "checkpoint.pt")])
def test_a_full_disk_is_named_and_the_training_goes_on_when_there_is_room(
    tiny: Tiny, tmp_path: Path, little_room: LittleRoom, size: int, unwritten: str
) -> None:
    run, undisturbed = Run(tmp_path / "run"), Run(tmp_path / "undisturbed")
    with little_room(size), pytest.raises(InputError, match=f"^cannot write {run.folder / unwritten} .*: make room"):
        train(tiny.recipe, run, tiny.root)
    for other in (run, undisturbed):
        train(tiny.recipe, other, tiny.root)
    assert run.weights.read_bytes() == undisturbed.weights.read_bytes()


def test_a_tower_for_which_there_is_no_room_is_named(tiny: Tiny, tmp_path: Path, little_room: LittleRoom) -> None:
    run = Run(tmp_path / "run")
    catalogue = read_training_data(tiny.recipe, tiny.root).catalogue
    parts = catalogue.parts(tiny.recipe.input_schema(), tiny.recipe.modalities())
    with little_room(10), pytest.raises(InputError, match=f"^cannot write {run.towers / 'image'} .*: make room there"):
        prepare_towers(tiny.recipe, run, parts, tiny.root)


def test_a_tower_may_need_no_files_and_says_how_it_pads_before_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain(EncoderConfig):
        modality: ClassVar[str] = "image"
        preprocessing: ClassVar[ModuleType] = image
        sizes: tuple[int, ...] = (3,)

        def tensors(self) -> tuple[TensorSpec, ...]:
            return (TensorSpec("colours", "UINT8", self.sizes),)

        def prepare(self, *_: Any) -> None:
            pass

        def build(self, tower: Path, source_root: Path | None) -> Encoder:
            raise NotImplementedError

    monkeypatch.setattr(image, "Preprocessor", lambda _assets: None)
    run = Run(tmp_path / "run")
    catalogue = read_training_data(tiny.recipe, tiny.root).catalogue
    parts = catalogue.parts(tiny.recipe.input_schema(), tiny.recipe.modalities())
    prepare_towers(tiny.recipe.model_copy(update={"towers": {"image": Plain()}}), run, parts, tiny.root)
    assert (run.towers / "image" / ASSETS).is_dir()  # the export copies it
    for sizes, expected in (
        ((-1,), "needs `buckets`"),
        ((3, -1), "the only one that does, which it is not of colours: give"),
        ((-1, 3), "says how long each row is, and colours have others: add"),
    ):
        varying = tiny.recipe.model_copy(update={"towers": {"image": Plain(sizes=sizes)}})
        with pytest.raises(InputError, match=f"^towers.image: .*{expected}"):
            prepare_towers(varying, run, parts, tiny.root)


def test_a_frozen_encoder_keeps_its_weights_and_its_features_are_cached(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"head_epochs": 1, "epochs": 1}
    frozen = changed(tiny.recipe, towers={"image": small_resnet(tiny)}, training=settings)
    run, inputs = Run(tmp_path / "run"), list[TowerInputs]()

    def noting(*given: Any, **keys: Any) -> dict[str, TowerInputs]:
        found = read_inputs(*given, **keys)
        inputs.extend(found.values())
        return found

    encode = Trainer._encode

    def learning(trainer: Trainer, encoder: Encoder, *tensors: Tensor) -> Tensor:
        assert encoder is not trainer.network.tower("image").encoder
        return encode(trainer, encoder, *tensors)

    monkeypatch.setattr(Trainer, "_encode", learning)
    monkeypatch.setattr("likeness_export.training.trainer.read_inputs", noting)
    train(frozen, run, tiny.root)
    assert [found._fixed for found in inputs] == [{}, {}]  # decoded photos are not kept
    assert len(list(run.features.iterdir())) == 2
    torch.manual_seed(frozen.seed)
    untrained = build_network(frozen, run.towers, tiny.root).state_dict()
    same = {name for name, tensor in weights(run).items() if torch.equal(tensor, untrained[name])}
    assert {name for name in untrained if name.startswith("towers.image.encoder.")} <= same
    assert "towers.image.projection.weight" not in same


def test_a_tower_that_cannot_be_built_is_named(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise InputError("no such weights")

    monkeypatch.setattr(type(tiny.recipe.towers["image"]), "build", build)
    with pytest.raises(InputError, match=r"towers\.image: no such weights"):
        train(tiny.recipe, Run(tmp_path / "run"), tiny.root)


def test_in_head_epochs_no_encoder_changes(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []

    def noting(*given: int) -> Any:
        steps.append((given[0], given[1]))
        return _schedule(*given)

    monkeypatch.setattr("likeness_export.training.trainer._schedule", noting)
    recipe, run = changed(tiny.recipe, training={"head_epochs": 2, "epochs": 1}), Run(tmp_path / "run")
    train_interrupted(recipe, run, tiny.root, after=2)
    torch.manual_seed(recipe.seed)
    untrained = build_network(recipe, run.towers, tiny.root).state_dict()
    state = torch.load(run.checkpoint, weights_only=True)["network"]
    encoder = {name for name in untrained if name.startswith("towers.image.encoder.")}
    assert all(torch.equal(state[name], untrained[name]) for name in encoder)
    assert not torch.equal(state["towers.image.projection.weight"], untrained["towers.image.projection.weight"])
    straight = Run(tmp_path / "straight")
    train(recipe, straight, tiny.root)
    assert any(not torch.equal(weights(straight)[name], untrained[name]) for name in encoder)
    assert {head / rest for head, rest in steps} == {2}


def test_training_on_pairs_reads_the_products_that_they_name(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{group}-0,{group}-1,1,train\n{group}-0,{(group + 1) % 12}-2,0,train" for group in range(6)]
    (tiny.root / "pairs.csv").write_text("\n".join(["left_id,right_id,label,split", *lines]), encoding="utf-8")
    raw = tiny.recipe.model_dump(mode="json")
    raw["data"] |= {"labels": [], "pairs": "pairs.csv"}
    raw["similarity"]["joint"] = True
    recipe = parse_recipe(raw, "test")
    data = read_training_data(recipe, tiny.root)
    assert len(data.catalogue) == 6 * 3
    assert alike_key(recipe, data) != alike_key(recipe, replace(data, pairs=data.pairs[1:]))
    folds = [
        training_pairs(recipe.data.model_copy(update={"held_out": 0.5, "fold": fold}), tiny.root) for fold in (0, 1)
    ]
    assert sorted(map(repr, [*folds[0], *folds[1]])) == sorted(map(repr, data.pairs))
    run, read = Run(tmp_path / "run"), list[Path]()

    def noting(path: Path, *given: Any) -> Iterator[tuple[str, dict[str, str]]]:
        read.append(path)
        return read_lines(path, *given)

    monkeypatch.setattr(named_pairs, "read_lines", noting)
    train(recipe, run, tiny.root)
    assert len(read) == 1  # a file that changes meanwhile gives no batch of other pairs
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    missing = parse_recipe(raw | {"data": raw["data"] | {"train_splits": ["other"]}}, "test")
    with pytest.raises(InputError, match=r"data\.train_splits: .*pairs\.csv has no pair of split 'other'"):
        read_training_data(missing, tiny.root)


def test_pairs_that_contradict_each_other_are_told_before_training(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny.root / "pairs.csv").write_text(
        "left_id,right_id,label,split\n0-0,0-1,1,train\n0-1,0-0,0,train\n", encoding="utf-8"
    )
    read_training_data(changed(tiny.recipe, data={"labels": [], "pairs": "pairs.csv"}), tiny.root)
    assert "data.pairs: 1 pairs are labelled both 1 and 0, the first is 0-0 and 0-1" in caplog.text


def test_labels_that_join_nobody_are_refused_before_anything_is_read_or_fitted(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("prepare_towers", "read_inputs"):
        monkeypatch.setattr(training, work, lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(InputError, match=r"title"):
        train(changed(tiny.recipe, data={"labels": ["title"]}), Run(tmp_path / "run"), tiny.root)


def test_texts_are_encoded_in_chunks_of_like_length_and_keep_their_order() -> None:
    inputs = TowerInputs.__new__(TowerInputs)
    inputs._costly = False
    inputs._sizes = [1 + row * 37 % 101 for row in range(100)]
    inputs.batch = lambda rows: (torch.tensor([[inputs._sizes[row]] for row in rows]),)  # type: ignore[method-assign]
    shapes = []

    def encode(lengths: torch.Tensor) -> torch.Tensor:
        shapes.append(len(lengths))
        return lengths.float()

    rows = np.arange(99, -1, -1)
    found = inputs.map(rows, encode).flatten().tolist()
    assert found == [float(inputs._sizes[row]) for row in rows]
    assert shapes == [32, 32, 32, 4]


def test_the_key_of_a_large_catalogue_takes_no_memory_of_its_size() -> None:
    records = tuple({"title": "long " * 200, "product_id": f"p{row}", "a": None} for row in range(1000))
    tracemalloc.start()
    found = records_key(Catalogue(products=(), records=records))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
    assert peak < 100_000  # of a file of a megabyte
