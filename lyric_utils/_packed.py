"""Chunks one behind the other, without padding, in the precision that the machine is fast in: own kernels and choices.

Each gives what PyTorch's or peft's gives, faster by the factor beside it.
"""

import copy
import os
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from lyric_utils._files import LyricsError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_device() -> str:
    """The device that torch finds: "cuda", "mps" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def fast_precisions() -> list[str]:
    """The precisions that the GPU, or else the CPU, has instructions for, the best for this project first."""
    if torch.cuda.is_available():
        half = ["bfloat16", "float16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["float16"]
        return [*half, "float32"]
    on_cpu = best_device() == "cpu" and any(map(_cpu_has, ("avx512_bf16", "amx_bf16", "bf16")))  # the last is Arm's
    return ["bfloat16", "float32"] if on_cpu else ["float32"]


def _cpu_has(instructions: str) -> bool:
    return bool(torch.cpu.get_capabilities().get(instructions))


def best_precision() -> str:
    """What predictions, frozen layers and training run in: `LYRICS_PRECISION`, or else the best that is fast here.

    Raises `LyricsError` if this machine has no instructions for the precision asked for.
    """
    fast = fast_precisions()
    if (asked := os.environ.get("LYRICS_PRECISION") or fast[0]) not in fast:
        raise LyricsError(f"LYRICS_PRECISION={asked}: this machine is fast in {' and '.join(fast)}. Use one of these.")
    return asked


def to_device(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """An array as a tensor of a device; a GPU goes on computing while it is copied."""
    tensor, on_gpu = torch.from_numpy(array), torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor.to(device)


class Packing:
    """Which of the packed tokens belong to which chunk: `lengths`, and on the device what follows from them."""

    position_bias: torch.Tensor | None = None  # added to attention scores, (1, heads, longest, longest), see `encoders`

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu"):
        self.lengths, count = [*map(int, lengths)], len(lengths)
        numbers = np.concatenate([[0], np.cumsum(lengths), np.repeat(np.arange(count), lengths)])
        numbers = to_device(numbers, device)
        self.ends, self.chunk = numbers[: count + 1], numbers[count + 1 :]  # (n_chunks + 1,), (n_tokens,)
        self.first = self.ends[:-1]  # first token of each chunk, (n_chunks,)

    @cached_property
    def position(self) -> torch.Tensor:
        """Place of each token in its chunk, (n_tokens,)."""
        return torch.arange(len(self.chunk), device=self.chunk.device) - self.first[self.chunk]

    @cached_property
    def slot(self) -> torch.Tensor:
        """Place of each token among all, once every chunk is padded to the longest, (n_tokens,)."""
        return self.chunk * max(self.lengths) + self.position

    def mean(self, values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean of each chunk in float32, (n_tokens, ...) -> (n_chunks, ...); weighted by `weights`, (n_tokens,)."""
        weights = torch.ones_like(self.chunk, dtype=torch.float32) if weights is None else weights
        totals = weights.new_zeros(len(self.lengths)).index_add(0, self.chunk, weights)
        values = values.float() * (weights / totals[self.chunk]).view(-1, *[1] * (values.dim() - 1))
        return values.new_zeros(len(self.lengths), *values.shape[1:]).index_add(0, self.chunk, values)


def attend_within_chunks(query, key, value, queries: Packing, keys: Packing, dropout: nn.Dropout) -> torch.Tensor:
    """Softmax attention in which every chunk sees itself only: tensors (n_tokens, heads, head_size), packed.

    Queries stand for the first tokens of their chunk: all of them, or one.

    On a GPU one call does all chunks. On a CPU a chunk at a time is faster: its attention weights fit into the cache.
    """
    p = dropout.p if dropout.training else 0.0
    if query.device.type == "cpu":
        chunks = zip(query.split(queries.lengths), key.split(keys.lengths), value.split(keys.lengths), strict=True)
        return torch.cat([_attend_in_one(*chunk, keys.position_bias, dropout, p) for chunk in chunks])
    if p == 0 and query.dtype != torch.float32 and keys.position_bias is None and _has_varlen():
        ends = queries.ends.int(), keys.ends.int()
        return varlen_attn(query, key, value, *ends, max(queries.lengths), max(keys.lengths))
    return attend_padded(query, key, value, queries, keys, p)


def _attend_in_one(query, key, value, bias: torch.Tensor | None, dropout: nn.Dropout, p: float) -> torch.Tensor:
    """Attention of one chunk: by PyTorch's fused kernel, or where that is slower by the textbook's steps.

    In the backward pass, and in bfloat16 without AMX, the steps are two to four times as fast.
    """
    bias = None if bias is None else bias[..., : len(query), : len(key)]
    query, key, value = (states.transpose(0, 1) for states in (query, key, value))
    if p == 0 and not query.requires_grad and (query.dtype == torch.float32 or _cpu_has("amx_bf16")):
        context = F.scaled_dot_product_attention(query[None], key[None], value[None], bias)[0]
    else:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()  # a sixth faster
        query, key = query * query.shape[-1] ** -0.5, key.transpose(-1, -2)
        scores = query @ key if bias is None else torch.baddbmm(bias[0], query, key)
        context = dropout(scores.softmax(-1)) @ value
    return context.transpose(0, 1)


def attend_padded(query, key, value, queries: Packing, keys: Packing, p: float = 0.0) -> torch.Tensor:
    """The same in one call on chunks padded to the longest, for GPUs without `varlen_attn`, and what it does not do."""

    def pad(states: torch.Tensor, packing: Packing) -> torch.Tensor:
        padded = states.new_zeros(len(packing.lengths) * max(packing.lengths), *states.shape[1:])
        return padded.index_copy(0, packing.slot, states).unflatten(0, (len(packing.lengths), -1)).transpose(1, 2)

    mask = (torch.arange(max(keys.lengths), device=key.device) < keys.ends.diff()[:, None])[:, None, None]
    if keys.position_bias is not None:
        mask = keys.position_bias[..., : max(queries.lengths), :].masked_fill(~mask, -torch.inf)
    padded = pad(query, queries), pad(key, keys), pad(value, keys)
    context = F.scaled_dot_product_attention(*padded, mask, p)
    return context.transpose(1, 2).flatten(0, 1)[queries.slot]


@cache
def _has_varlen() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def project(linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """A linear layer, with its LoRA update where peft has put one: as peft's forward, in the states' own precision.

    Without autocast around it, forward and backward pass are 1.4 times as fast.
    """
    if not isinstance(linear, LoraLinear):
        return linear(states)
    down, up = (factors["default"].weight.to(states.dtype) for factors in (linear.lora_A, linear.lora_B))
    inner = F.linear(linear.lora_dropout["default"](states), down)
    return torch.addmm(linear.base_layer(states), inner, up.T, alpha=linear.scaling["default"])


def packed_copy(network: nn.Module, *shared: object) -> nn.Module:
    """A copy for prediction: in evaluation mode, transformers in it in `best_precision()` and with LoRA merged.

    It shares the parameters that stay as they are and the `shared` objects; the network does not change, and threads
    can use it meanwhile. On a CPU, linear layers pack their weights once and compute the GELU that follows, which saves
    a tenth of the time in float32 and a thirtieth in bfloat16. The operation has an internal name in PyTorch; where it
    is missing, all is computed as usual.
    """
    kept = {id(item): item for item in (*network.parameters(), *network.buffers(), *shared)}
    network, dtype = copy.deepcopy(network, kept).eval(), PRECISIONS[best_precision()]
    for transformer in [module for module in network.modules() if isinstance(module, PreTrainedModel)]:
        for name, module in [*transformer.named_modules()]:
            if isinstance(module, LoraLinear):
                module.base_layer.weight = nn.Parameter(module.base_layer.weight + module.get_delta_weight("default"))
                transformer.set_submodule(name, module.base_layer)
        packs = transformer.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        for module in transformer.modules():
            for name, values in [*module.named_parameters(recurse=False)]:
                setattr(module, name, nn.Parameter(values.detach().to(dtype), requires_grad=False))
            if packs:
                has_gelu = type(getattr(module, "intermediate_act_fn", None)) is GELUActivation
                linear, activation = (module.dense, "gelu") if has_gelu else (module, "none")
                if type(linear) is nn.Linear:
                    module.forward = _pack(linear, activation)
    return network


def _pack(linear: nn.Linear, activation: str) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = cache(lambda: torch.ops.mkldnn._reorder_linear_weight(linear.weight, None))
    return lambda states: torch.ops.mkldnn._linear_pointwise(states, weight(), linear.bias, activation, [], "none")


class FastDropout(nn.Dropout):
    """Dropout from a random byte per value, p in steps of 1/256: 2.8 times as fast as PyTorch, which draws floats."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        dropped = round(self.p * 256)
        if not self.training or dropped == 0 or states.device.type != "cpu":
            return super().forward(states)
        words = torch.empty(states.numel() // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: states.numel()].view_as(states) >= dropped
        return states * kept.to(states.dtype).mul_(256 / (256 - dropped))


def use_fast_dropout(network: nn.Module) -> None:
    """Replace every dropout of a network by `FastDropout`."""
    for name, module in [*network.named_modules()]:
        if type(module) is nn.Dropout:
            network.set_submodule(name, FastDropout(module.p).train(module.training))
