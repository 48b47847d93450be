"""One training step, the plain way and ours, on the same chunks.

The plain way is what the original experiment did and most notebooks do: stock transformers, stock peft, every chunk
padded to 512 tokens, all layers run forward in every step, float32, attention dropout of 0.1. `Changes` speed it up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from lyric_utils import training
from lyric_utils._packed import best_device, best_precision
from lyric_utils.chunking import Chunks
from lyric_utils.encoders import Encoder, as_encoder
from lyric_utils.features import CachedFeatures
from lyric_utils.models import LoraRegressor, RegressionHead
from lyric_utils.profiles import LORA_TUNED, Recipe

LENGTH = 512


def random_bert(config: BertConfig | None = None) -> Encoder:
    """A BERT of 12 x 768 with random weights, or of another size; without a tokenizer."""
    torch.manual_seed(0)
    network = BertModel(config or BertConfig(), add_pooling_layer=False)
    return as_encoder("random", None, network.to(best_device()))


@dataclass(frozen=True)
class Changes:
    """What is changed in the plain way."""

    similar_length: bool = False  # a step is done in four passes, chunks padded to the longest of each
    cached: bool = False  # the frozen layers' output is read, not computed
    no_attention_dropout: bool = False  # lets PyTorch use its fused attention kernel
    bf16: bool = False  # layers in mixed precision (autocast)
    first_token_only: bool = False  # the top layer computes query, attention and feed-forward of [CLS] alone


LORA_MEAN = replace(LORA_TUNED, pooling="mean", pooled_layers=1, init="random")  # neither costs time


class PlainRegressor(nn.Module):
    """`BertModel` with peft's LoRA, pooling and head, on padded batches; the network given is changed in place."""

    def __init__(self, network: BertModel, recipe: Recipe):
        super().__init__()
        self.recipe, count = recipe, len(network.encoder.layer)
        adapters = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=list(recipe.target_modules),
            layers_to_transform=list(range(count - recipe.adapted_layers, count)),
            layers_pattern="layer",
        )
        self.adapted = get_peft_model(network, adapters)
        self.head = RegressionHead(network.config.hidden_size).to(network.device)

    @property
    def layers(self) -> nn.ModuleList:
        return self.adapted.base_model.model.encoder.layer

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor, changes: Changes) -> torch.Tensor:
        """Tokens, or with `cached` states, of shape (n_chunks, length) or (n_chunks, length, hidden) -> (n_chunks,)."""
        for layer in self.layers:
            layer.attention.self.dropout.p = 0.0 if changes.no_attention_dropout else 0.1
        if changes.cached or changes.first_token_only:
            hidden = self._run_layers(inputs, mask, changes)
        else:
            hidden = self.adapted(input_ids=inputs, attention_mask=mask).last_hidden_state
        if self.recipe.pooling == "cls":
            return self.head(hidden[:, 0])
        return self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def _run_layers(self, hidden, mask, changes: Changes) -> torch.Tensor:
        visible = mask[:, None, None, :].bool().expand(-1, -1, mask.shape[1], -1)
        *lower, top = self.layers[-self.recipe.adapted_layers :] if changes.cached else self.layers
        if not changes.cached:
            hidden = self.adapted.base_model.model.embeddings(input_ids=hidden)
        for layer in lower:
            hidden = layer(hidden, visible)
        if not changes.first_token_only:
            return top(hidden, visible)
        attention, first = top.attention.self, hidden[:, :1]
        query, key, value = (
            linear(states).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for linear, states in ((attention.query, first), (attention.key, hidden), (attention.value, hidden))
        )
        dropout = attention.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, visible[:, :, :1], dropout)
        attended = top.attention.output(context.transpose(1, 2).flatten(-2), first)
        return top.output(top.intermediate(attended), attended)


def plain_step(
    model: PlainRegressor, chunks: Sequence[np.ndarray], valence: np.ndarray, states=None, most_chunks: int = 32
) -> Callable[..., float]:
    """A function that takes one optimizer step on the mean loss of some chunks, with some `Changes`, and returns it.

    `states` is what enters the adapted layers, one tensor (tokens, hidden) per chunk, for `cached`. Of a step with more
    than `most_chunks`, the gradients are added in several passes.
    """
    device, lengths = next(model.parameters()).device, np.array([len(ids) for ids in chunks])
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, model.recipe.learning_rate, weight_decay=model.recipe.weight_decay)

    def step(changes: Changes = Changes()) -> float:
        groups = np.array_split(np.argsort(lengths), 4) if changes.similar_length else [np.arange(len(lengths))]
        passes = [group[at : at + most_chunks] for group in groups for at in range(0, len(group), most_chunks)]
        loss_of_step = 0.0
        for items in passes:
            width = lengths[items].max() if changes.similar_length else LENGTH
            mask = (torch.arange(width) < torch.from_numpy(lengths[items])[:, None]).to(device)
            real = [states[i] if changes.cached else torch.from_numpy(chunks[i]).long() for i in items]
            inputs = real[0].new_zeros(len(items), width, *real[0].shape[1:])
            for row, values in zip(inputs, real, strict=True):
                row[: len(values)] = values
            with torch.autocast(device.type, torch.bfloat16, enabled=changes.bf16):
                scores = model(inputs.to(device), mask.long(), changes)
            errors = scores.float() - torch.from_numpy(valence[items]).float().to(device)
            loss = errors.square().sum() / len(lengths)
            loss.backward()
            loss_of_step += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return loss_of_step

    return step


def our_step(model: LoraRegressor, examples: training.Examples) -> Callable[..., float]:
    """A function that takes the step of `lyric_utils.training.fit` on all songs of `examples` and returns the loss."""
    accelerator = training.start_accelerator()
    songs = np.arange(len(examples.valence))
    make_trainer = cache(lambda precision: training.make_trainer(accelerator, model, precision))

    def step(precision: str = best_precision()) -> float:
        trainer = make_trainer(precision)
        training.set_learning_rate(trainer.optimizer, model.recipe, 0.5)
        with training.frozen_weights_in(precision, model):
            return float(training.train_step(trainer, examples, songs))

    return step


def random_states(chunks: Chunks, hidden_size: int) -> CachedFeatures:
    """Features as the cache has them, of random numbers: time does not depend on their values."""
    rows = np.random.default_rng(0).standard_normal((int(chunks.lengths.sum()), hidden_size), dtype=np.float32)
    return CachedFeatures(rows.astype(np.float16), chunks.lengths, chunks.song_index, chunks.input_ids)


def queries_and_pairs(lengths, first_token_only: bool) -> tuple[int, int]:
    """Query tokens of a layer, and pairs of a query and a key that attend to each other."""
    tokens, pairs = int(np.sum(lengths)), int(np.sum(np.square(lengths, dtype=int)))
    return (len(lengths), tokens) if first_token_only else (tokens, pairs)


def forward_flops(lengths, hidden: int, feed_forward: int, first_token_only: bool = False) -> int:
    """Floating-point operations of one layer's matrix products on real tokens, adapters aside: see `adapted_flops`."""
    queries, pairs = queries_and_pairs(lengths, first_token_only)
    projections = 4 * (queries + int(np.sum(lengths))) * hidden**2
    return projections + 4 * queries * hidden * feed_forward + 4 * pairs * hidden


def adapted_flops(lengths, hidden: int, feed_forward: int, recipe: Recipe) -> int:
    """Floating-point operations that a training step must do in the adapted layers, on real tokens only.

    Two for each multiplication of a matrix product; sums, norms, softmax and the small head are left out. A layer with
    Q query tokens, N tokens, P pairs that attend to each other, width h, feed-forward f and rank r does

        forward    2 (2Q + 2N) h²  +  4 Q h f  +  4 P h  +  4 (Q + N) h r
        backward   2 Q h²          +  4 Q h f  +  8 P h  +  8 (Q + N) h r  +  2 (Q + 2N) h²

    (projections; feed-forward; attention; adapters on query and value; gradient of the layer's input). No frozen
    parameter needs a gradient. In the lowest adapted layer the input does not need one either: its backward pass lacks
    the last term, and has 6 in place of 8. Q = N and P = sum of squared lengths, except in the top layer with [CLS]
    pooling, where Q is the number of chunks and P = N.
    """
    tokens, rank, total = int(np.sum(lengths)), recipe.rank, 0
    for layer in range(recipe.adapted_layers):
        first_token_only = layer == recipe.adapted_layers - 1 and recipe.pooling == "cls"
        queries, pairs = queries_and_pairs(lengths, first_token_only)
        read = queries + tokens
        forward = forward_flops(lengths, hidden, feed_forward, first_token_only) + 4 * read * hidden * rank
        factor, inner = (6, 0) if layer == 0 else (8, 2 * (queries + 2 * tokens) * hidden**2)
        backward = 2 * queries * hidden**2 + factor * hidden * (pairs + read * rank) + inner
        total += forward + backward + 4 * queries * hidden * feed_forward
    return total
