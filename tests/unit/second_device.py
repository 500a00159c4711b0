"""A second device for machines without one: its tensors lie in the CPU's memory, but refuse to meet the CPU's.

What trains there would train on a GPU, as far as the places of tensors go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

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
