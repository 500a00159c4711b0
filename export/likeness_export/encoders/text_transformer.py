"""Text by a pretrained transformer of the Hugging Face library (article, 3.2.1: BERT, XLNet and their kin)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import torch
from likeness_client.contract import MAX_BYTES
from likeness_client.errors import InputError
from pydantic import Field
from tokenizers import Tokenizer, normalizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from likeness_export.encoders.base import ASSETS, BACKBONE, Encoder, EncoderConfig, write_asset
from likeness_export.encoders.halves import OF_TEXTS, TEXT_HALVES, TWO_HALVES, space_of
from likeness_export.encoders.sentence_layers import (
    FIRST,
    LAST,
    MEAN,
    build_layers,
    read_layers,
    read_pooling,
    read_prompt,
    reads_lower_case,
)
from likeness_export.encoders.sources import file_beside, load_network, load_pretrained
from likeness_export.encoders.text_common import length_buckets
from likeness_export.preprocessing import text
from likeness_export.tensors import TensorSpec

log = logging.getLogger(__name__)
# RoBERTa and its kin number positions from behind the id of padding; those before are never used.
_POSITIONS_BEHIND_PADDING = {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta"}
_OF_HALF = "half"  # the text half of a network of two has a pooling of its own


class TextTransformerConfig(EncoderConfig):
    """``encoder = "transformer"``."""

    modality: ClassVar[str] = "text"
    preprocessing: ClassVar[ModuleType] = text
    run_tokens: ClassVar[int | None] = 12  # about 2 ms against 0.1 to 0.26 ms a token: MiniLM, one core

    encoder: Literal["transformer"]
    source: str = Field(description="directory, package or hub name of a Hugging Face encoder")
    prompt: str = Field(
        default="", max_length=500, description="stands before every text, as the network was trained: 'query: ' of E5"
    )
    max_tokens: int = Field(
        default=128, ge=8, le=8192, description="longer texts, with their prompt, are cut at their end"
    )
    token_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the tokens that fine-tuning hides, drawn anew each time"
    )

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Token ids and their mask, of varying length."""
        return (TensorSpec("input_ids", "INT64", (-1,)), TensorSpec("attention_mask", "INT64", (-1,)))

    def shared_space(self, tower: Path) -> str:
        """Of the text half of a network of two: that of both."""
        return space_of(self.source, tower)

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:  # noqa: ARG002 (nothing is fitted)
        """Store the tokenizer for serving and the architecture for building.

        Raises:
            InputError: the network cannot read texts of ``max_tokens``, is of a kind that cannot encode them, or pools
                its tokens otherwise; its tokenizer cannot be served; or the prompt leaves no room for a text.
        """
        config = load_pretrained(AutoConfig, self.source, data_root)
        if config.model_type in TEXT_HALVES:
            raise InputError(
                f"towers.{tower.name}.source: {self.source} ({config.model_type}) is a text half without its step into "
                "the space that it shares with photos: name the whole network"
            )
        is_half = config.model_type in TWO_HALVES
        self._check(config.text_config if is_half else config, tower.name)
        tokenizer = self._load_tokenizer(tower.name, data_root)
        self._check_tokenizer(tokenizer, tower.name, config.model_type)
        if (taken := len(tokenizer(self.prompt).input_ids)) >= self.max_tokens:
            raise InputError(
                f"towers.{tower.name}.max_tokens: the prompt takes {taken} of {self.max_tokens}: give more"
            )
        settings = {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "length_buckets": length_buckets(self.max_tokens),
            "max_bytes": MAX_BYTES["text"],
            "unknown_id": tokenizer.unk_token_id,
        }
        # For `build`; the space's fingerprint covers this file.
        if is_half:
            settings |= {"pooling": _OF_HALF, "padding_id": tokenizer.pad_token_id, "end_id": tokenizer.eos_token_id}
        else:
            settings |= self._behind(tower.name, data_root)
            self._treat_texts(tokenizer.backend_tokenizer, tower.name, data_root)
        write_asset(tower, text.SETTINGS_FILE, settings)
        (tower / ASSETS / text.TOKENIZER_FILE).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        config.save_pretrained(tower / BACKBONE)

    def _check(self, config: PretrainedConfig, name: str) -> None:
        if config.is_encoder_decoder or not hasattr(config, "hidden_size"):
            raise InputError(
                f"towers.{name}.source: {self.source} ({config.model_type}) is more than an encoder of texts, and its "
                "encoder alone cannot be loaded: name a network such as BERT or XLNet"
            )
        longest = int(getattr(config, "max_position_embeddings", None) or -1)  # none: positions are relative
        if config.model_type in _POSITIONS_BEHIND_PADDING:
            if config.pad_token_id is None:
                raise InputError(
                    f"towers.{name}.source: {self.source} ({config.model_type}) numbers positions from behind the id "
                    "of padding, which its config.json does not say: give pad_token_id there, as its tokenizer has it"
                )
            longest -= int(config.pad_token_id) + 1
        if 0 < longest < self.max_tokens:
            raise InputError(f"towers.{name}.max_tokens: {self.source} reads at most {longest} tokens")
        if config.model_type == "xlnet" and (config.attn_type != "bi" or config.bi_data):
            raise InputError(f"towers.{name}.source: of XLNet, only attn_type = 'bi' without bi_data encodes a text")

    def _load_tokenizer(self, name: str, data_root: Path) -> PreTrainedTokenizerBase:
        try:
            tokenizer: PreTrainedTokenizerBase = load_pretrained(AutoTokenizer, self.source, data_root)
        except InputError as error:
            if file_beside(self.source, data_root, text.TOKENIZER_FILE):
                raise
            raise InputError(
                f"towers.{name}.source: {self.source} has no {text.TOKENIZER_FILE}, and transformers cannot make it of "
                "other files here. Where sentencepiece is installed AutoTokenizer reads them, and its save_pretrained "
                f"writes that file ({error})"
            ) from error
        return tokenizer

    def _treat_texts(self, tokenizer: Tokenizer, name: str, data_root: Path) -> None:
        """Let the tokenizer see texts as sentence-transformers shows them to it, and say where the recipe has to."""
        try:
            lower, prompt = reads_lower_case(self.source, data_root), read_prompt(self.source, data_root)
        except InputError as error:
            raise InputError(f"towers.{name}.source: {error}") from error
        if lower:
            usual = [tokenizer.normalizer] if tokenizer.normalizer else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *usual])
        if prompt and not self.prompt:
            log.warning("towers.%s: %s was trained with prompt = %r: give it", name, self.source, prompt)

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, kind: str) -> None:
        fault = ""
        if not tokenizer.is_fast:
            raise InputError(
                f"towers.{name}.source: the tokenizer of {self.source} ({type(tokenizer).__name__}) has no form that "
                "is served, which is a fast one of transformers: name another network"
            )
        if not tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}:  # what transformers makes of no file
            fault = "knows no words: its files are missing"
        elif kind in TWO_HALVES and None in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            fault = "names no token that ends texts (eos_token) or none that fills them up (pad_token)"
        elif kind == "siglip" and tokenizer.padding_side != "right":  # CLIP does not see padding
            fault = "fills texts up on their left (padding_side), which is not done here"
        if fault:
            raise InputError(
                f"towers.{name}.source: the tokenizer of {self.source} {fault}: mend it, or name another network"
            )

    def _behind(self, name: str, data_root: Path) -> dict[str, object]:
        """Return what makes one vector of the tokens'."""
        try:
            pooling = read_pooling(self.source, data_root, prompted=bool(self.prompt))
            layers = read_layers(self.source, data_root)
        except InputError as error:
            raise InputError(f"towers.{name}.source: {error}") from error
        # No layer goes without saying: spaces of before layers were read keep their fingerprints.
        return {"pooling": pooling, "layers": layers} if layers else {"pooling": pooling}

    def build(self, tower: Path, source_root: Path | None) -> Encoder:
        """Load the pretrained transformer, or its bare architecture."""
        if source_root is None:
            config = AutoConfig.from_pretrained(tower / BACKBONE)
            backbone = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]  # transformers' own gap
        else:
            backbone, _ = load_network(self.source, source_root, OF_TEXTS)
        settings = json.loads((tower / ASSETS / text.SETTINGS_FILE).read_text(encoding="utf-8"))
        pooling = settings.get("pooling", MEAN)  # runs of before there was a choice have none
        if pooling == _OF_HALF:
            return TextHalf(backbone, settings["padding_id"], settings["end_id"], self.token_dropout)
        layers = build_layers(settings.get("layers", []), self.source, source_root)
        return TextTransformer(backbone, self.token_dropout, pooling, layers)


class TextTransformer(Encoder):
    """The last layer's vectors pooled: the mean of all tokens', the first or the last one's; and layers behind that.

    Args:
        backbone: the network.
        token_dropout: share of the tokens that training hides.
        pooling: `MEAN`, `FIRST` or `LAST`.
        layers: what the pooled vector goes through, see `build_layers`; None: nothing.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        token_dropout: float = 0.0,
        pooling: str = MEAN,
        layers: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        self.token_dropout, self.pooling = token_dropout, pooling
        # The plain product of matrices: what torch's fused attention becomes in ONNX has twice the nodes and is slower.
        backbone.set_attn_implementation("eager")
        self.backbone = backbone
        self.layers = layers or nn.Sequential()
        widths = [layer.out_features for layer in self.layers if isinstance(layer, nn.Linear)]
        self.feature_dim = [int(backbone.config.hidden_size), *widths][-1]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``input_ids`` and ``attention_mask``, both INT64 [n, length]."""
        input_ids, attention_mask = tensors
        hidden: Tensor = self.backbone(input_ids=input_ids, **self._hiding(attention_mask)).last_hidden_state
        features: Tensor = self.layers(self._pooled(hidden, attention_mask))
        return features  # (n, f)

    def _pooled(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == FIRST:
            return hidden[:, 0]
        if self.pooling == LAST:
            return hidden[torch.arange(hidden.shape[0]), _last(attention_mask)]  # len() would fix the size of batches
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (n, length, 1)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Hide some tokens, so that a product cannot be known by heart.

        Never the first, or nothing might be left, nor the last where the vector is that one's.
        """
        input_ids, attention_mask = tensors
        kept = torch.rand(attention_mask.shape) >= self.token_dropout
        kept[:, 0] = True
        if self.pooling == LAST:
            kept[torch.arange(len(kept)), _last(attention_mask)] = True
        return input_ids, attention_mask * kept

    def _hiding(self, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return the argument by which the network is told what is padding."""
        if self.backbone.config.model_type == "xlnet":
            # Its own argument, 1.0 where a token is hidden. Given the usual mask of integers, XLNet subtracts it from
            # 1.0, and that promotion of types is what the ONNX exporter's decomposition fails at.
            return {"input_mask": 1.0 - attention_mask.to(torch.float32)}
        return {"attention_mask": attention_mask}

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:  # noqa: ARG002 (both have one shape)
        """Draw token ids with padding of different length in every row."""
        vocabulary = int(self.backbone.config.vocab_size)
        lengths = torch.randint(1, length + 1, (batch, 1))
        mask = (torch.arange(length) < lengths).to(torch.int64)
        return torch.randint(1, vocabulary, (batch, length)) * mask, mask


def _last(attention_mask: Tensor) -> Tensor:
    """Return the place of each text's last token: INT64 [n]. Some before it may be hidden."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (places * attention_mask).amax(1)


class TextHalf(TextTransformer):
    """The text half of a network of two: pooled in its own way, and projected into the space of its photos.

    Args:
        whole: the network.
        padding_id: of the token that its texts are filled up with.
        end_id: of the token that its texts end with.
        token_dropout: see `TextTransformer`.
    """

    def __init__(self, whole: PreTrainedModel, padding_id: int, end_id: int, token_dropout: float = 0.0) -> None:
        half = whole.text_model
        assert isinstance(half, PreTrainedModel)
        super().__init__(half, token_dropout)
        self.padding_id, self.end_id = padding_id, end_id
        of_clip = whole.config.model_type == "clip"
        self.places = 0 if of_clip else int(half.config.max_position_embeddings)
        # SigLIP's step into the space is the last one of its pooling.
        self.projection: nn.Module = getattr(whole, "text_projection", nn.Identity())
        self.feature_dim = int(whole.config.projection_dim if of_clip else half.config.projection_size)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``input_ids`` and ``attention_mask``, both INT64 [n, length]."""
        input_ids, attention_mask = tensors
        if self.places:
            # SigLIP sees padding, and what it says of a text stands in the last of its places, padding or not.
            known = torch.where(attention_mask.bool(), input_ids, self.padding_id)
            padding = input_ids.new_full((input_ids.shape[0], self.places), self.padding_id)
            answer = self.backbone(input_ids=torch.cat([known, padding], 1)[:, : self.places])
        else:
            answer = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        features: Tensor = self.projection(answer.pooler_output)  # (n, f)
        return features

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:
        """Draw token ids with an end, where CLIP pools them, and padding of different length in every row."""
        input_ids, attention_mask = super().sample(specs, batch, length)
        return input_ids.scatter(1, attention_mask.sum(1, keepdim=True) - 1, self.end_id), attention_mask
