"""Training on another device than the CPU.

The device is made up, for machines without one: its tensors lie in the CPU's memory, but refuse to meet the CPU's. What
trains there would train on a GPU, as far as the places of tensors go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from likeness_client.errors import InputError
from likeness_export.encoders.sentence_layers import FIRST, LAST, MEAN
from likeness_export.encoders.text_transformer import TextTransformer
from likeness_export.product_network import ProductNetwork
from likeness_export.recipe import parse_recipe
from likeness_export.run import Run
from likeness_export.training.train import train
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import BertConfig, BertModel

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

LABELS: dict[str, Any] = {"training": {"epochs": 2, "head_epochs": 1, "proxies": 0.5, "hard_negatives": 0.3}}
PAIRS: dict[str, Any] = {
    "data": {"labels": [], "pairs": "pairs.csv"},
    "towers": {"text": {"encoder": "word_vectors", "vector_size": 8, "min_count": 1, "freeze": False}},
    "fusion": {"kind": "late"},
    "similarity": {"joint": True},
    "training": {"epochs": 3, "loss": "decoupled", "proxies": 0, "groups_per_batch": 6},
}
DEVICE = torch.device("lazy:0")  # a name that torch knows, for nothing that this build of it has
_CPU = torch.device("cpu")
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXES = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class _There(Tensor):
    """A tensor on the second device; ``held`` is where its numbers really are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _There:
        there: _There = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        there.held = held
        return there

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without the function
        cls, function: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class _MakesTensorsThere(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own gap
    def __torch_dispatch__(self, function: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        asked = (kwargs or {}).get("device")
        if asked is not None and torch.device(asked).type == DEVICE.type:
            return _run(function, args, kwargs or {})
        return function(*args, **(kwargs or {}))


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _There)]
    if there and function not in _COPIES:
        for tensor in tensors:
            indexes = function in _INDEXES and tensor is not args[0] and tensor.dtype in (torch.int64, torch.bool)
            if not (isinstance(tensor, _There) or tensor.dim() == 0 or indexes):  # as CUDA has it
                raise RuntimeError(f"{function}: tensors of two devices")
        if function in _INDEXES and not isinstance(args[0], _There):
            raise RuntimeError(f"{function}: a tensor of the CPU, indexed by one of another device")
    asked = kwargs.get("device")
    stays = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if asked is not None:
        kwargs = {**kwargs, "device": _CPU}
    here_args, here_kwargs = tree_map_only(_There, lambda tensor: tensor.held, (args, kwargs))
    answer = function(*here_args, **here_kwargs)
    in_place = function.__name__.split(".")[0].endswith("_")
    if in_place:
        return args[0]
    return tree_map_only(Tensor, _There, answer) if stays else answer


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Give the device; it is there inside the block."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # parameters of another class cannot be changed
    try:
        with _MakesTensorsThere():  # type: ignore[no-untyped-call]
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def write_texts_and_pairs(root: Path) -> None:
    lines = [json.loads(line) for line in (root / "products.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, product in enumerate(lines):
        product["title"] = f"thing of {product['group']}" + " and more" * (number % 3)
    (root / "products.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    pairs = [f"{g}-0,{g + other}-1,{int(not other)},train" for g in range(11) for other in (0, 1)]
    (root / "pairs.csv").write_text("\n".join(["left_id,right_id,label,split", *pairs]), encoding="utf-8")


def losses(run: Run) -> list[float]:
    return [json.loads(line)["loss"] for line in run.log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("sections", [LABELS, PAIRS], ids=["labels", "pairs"])
def test_another_device_learns_the_same_and_leaves_weights_for_the_cpu(
    tiny: Tiny, tmp_path: Path, sections: dict[str, Any]
) -> None:
    write_texts_and_pairs(tiny.root)
    raw = tiny.recipe.model_dump(mode="json")
    for section, values in sections.items():
        raw[section] = values if section == "fusion" else raw[section] | values
    recipe = parse_recipe(raw, "test")
    here, there = Run(tmp_path / "here"), Run(tmp_path / "there")
    train(recipe, here, tiny.root)
    with second_device() as device:
        train(recipe, there, tiny.root, str(device))
    assert losses(there) == pytest.approx(losses(here), rel=1e-4)
    weights = torch.load(there.weights, weights_only=True)
    for name, expected in torch.load(here.weights, weights_only=True).items():
        torch.testing.assert_close(weights[name], expected, atol=1e-4, rtol=1e-3)


def test_a_tensor_that_is_forgotten_on_the_cpu_is_noticed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = ProductNetwork.fuse
    monkeypatch.setattr(ProductNetwork, "fuse", lambda self, vectors, present: fuse(self, vectors, present.cpu()))
    with second_device() as device, pytest.raises(RuntimeError, match="tensors of two devices"):
        train(tiny.recipe, Run(tmp_path), tiny.root, str(device))


@pytest.mark.parametrize("pooling", [MEAN, FIRST, LAST])
def test_a_text_is_pooled_where_its_tokens_are(pooling: str) -> None:
    """Features are computed outside of what lets training make its tensors there."""
    sizes: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = TextTransformer(BertModel(BertConfig(**sizes, intermediate_size=8)), pooling=pooling).eval()
    tokens, mask = torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    with torch.no_grad():
        expected = encoder(tokens, mask)
        with second_device() as device:
            found = encoder.to(device)(tokens.to(device), mask.to(device)).cpu()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, device: str
) -> None:
    with pytest.raises(
        InputError, match=rf"--device {device}: torch .* cannot use it .*; without --device the CPU trains"
    ):
        train(tiny.recipe, Run(tmp_path / "run"), tiny.root, device)
    assert not (tmp_path / "run").exists()
