"""What would keep an encoder from being exported, found before it is trained."""

from __future__ import annotations

import torch
from likeness_client.errors import InputError

from likeness_export.encoders import Encoder, EncoderConfig
from likeness_export.repository.adapters.lengths import used_lengths

_LENGTH = 4  # enough for padding
_TOLERANCE = 1e-3
"""Largest difference, as a share of the largest feature."""


def refuse_unexportable(encoder: Encoder, config: EncoderConfig, longest: int = _LENGTH) -> None:
    """Look at one small batch in eager torch.

    Args:
        encoder: on the CPU; it is left in evaluation mode.
        config: its configuration.
        longest: the largest length, where lengths vary.

    Raises:
        InputError: the network fails, or answers a product otherwise where others, or padding, stand beside it.
    """
    encoder.eval()
    inputs = config.tensors()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():  # the draws of a training are its own
        torch.manual_seed(0)
        batch = encoder.sample(inputs, 2, min(_LENGTH, longest))
        row, length = 0, None
        if any(tensor.varies for tensor in inputs):
            lengths = used_lengths([tensor.numpy() for tensor in batch])
            row, length = int(lengths.argmin()), int(lengths.min())
        alone = [tensor[row : row + 1, :length] if length else tensor[row : row + 1] for tensor in batch]
        try:
            beside, single = encoder(*batch)[row], encoder(*alone)[0]
        except Exception as error:  # networks fail with many types; whichever it is, this one encodes nothing
            raise InputError(f"the network fails on a small batch ({error}): name another") from error
    if not (beside - single).abs().max() <= _TOLERANCE * single.abs().max():  # NaN is refused, too
        raise InputError(
            "the network answers a product otherwise where others, or padding, stand beside it, and could not be "
            "exported: name another"
        )
