"""The models: a small MLP on the frozen encoder, and the encoder fine-tuned by LoRA (or fully, to compare).

Each gives one score per item that it reads: a song's averaged [CLS] vector, or the hidden states of a chunk's tokens.
"""

import copy
import warnings
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import InstanceOf
from torch import nn

from lyric_utils._checks import Level, Seed, Whole, checked
from lyric_utils._files import LyricsError
from lyric_utils._packed import Packing, packed_copy, to_device, use_fast_dropout
from lyric_utils.chunking import Chunks, average_by_song, batch_by_tokens, check_windows, chunk_lyrics
from lyric_utils.encoders import (
    MPNET_NAMES,
    Encoder,
    pool_tokens,
    position_bias,
    run_layer,
    run_layer_for_first_token,
    self_attention,
)
from lyric_utils.evaluation import conformal_width
from lyric_utils.features import CachedFeatures, EncoderFeatures, Features, OnTheFlyFeatures, embed_chunks, in_passes
from lyric_utils.profiles import Recipe
from lyric_utils.songs import Lyrics, as_sung, count_not_english


class RegressionHead(nn.Module):
    """Linear(hidden, 128) -> ReLU -> Linear(128, 1): (n, hidden) -> (n,)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_size, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.layers(vectors).squeeze(-1)


class Predictor:
    """What all models and blends share: prediction from lyrics, which a subclass makes in `score_lyrics`."""

    residuals: list[float] | None = None  # absolute errors on the validation songs, which intervals are made of

    @checked
    def predict(self, lyrics: Lyrics, interval: Level | None = None) -> np.ndarray:
        """Valence of each song, float array (n_songs,) in [0, 1]; warns of songs that are not in English.

        interval: a probability such as 0.9. It makes the array (n_songs, 3): prediction, and the low and high ends
        between which the truth lies with that probability, see `evaluation.conformal_width`.
        The model stays as it is, so threads can share it. Raises `LyricsError` if a song has no tokens or is no text,
        or an interval is asked of a model without `residuals`.
        """
        if interval is not None and self.residuals is None:
            raise LyricsError("the model has no residuals to make an interval of. Retrain it with train_or_load.")
        if foreign := count_not_english(lyrics):
            warnings.warn(f"{foreign:,} of {len(lyrics):,} songs are not in English", stacklevel=3)
        prediction = self.score_lyrics(as_sung(lyrics)) if lyrics else np.zeros(0)
        if interval is None:
            return prediction
        width = conformal_width(self.residuals, interval)
        return np.stack([prediction, prediction - width, prediction + width], axis=1).clip(0, 1)


class SongRegressor(Predictor, nn.Module):
    """What all models share but blends: the encoder they stand on, and what a checkpoint keeps of them.

    A model says what it reads, `inputs_from_chunks(chunks)` of new songs and `inputs_from(features)` of songs whose
    features are known, and which `parts` (file name -> module) a checkpoint keeps: their `state_files()`.
    """

    adapter_config: LoraConfig | None = None
    seed: int
    start: dict[str, torch.Tensor] = {}  # noqa: RUF012  # the trainable parameters as `build_model` made them, for `fit`

    @checked
    def __init__(self, encoder: InstanceOf[Encoder], recipe: Recipe, max_length: Whole, stride: Whole):
        super().__init__()
        self.encoder, self.recipe, self.max_length, self.stride = encoder, recipe, max_length, stride

    def score_lyrics(self, lyrics: list[str]) -> np.ndarray:
        return score_songs(self, chunk_lyrics(lyrics, self.encoder.tokenizer, self.max_length, self.stride))

    def start_at(self, valence: float) -> None:
        """Let the model predict a constant."""
        nn.init.zeros_(self.output_layer.weight)
        nn.init.constant_(self.output_layer.bias, valence)

    def trainable_parameters(self) -> dict[str, torch.Tensor]:
        """The parameters that training changes, by name."""
        return {name: values for name, values in self.named_parameters() if values.requires_grad}

    def copy_parameters(self, values: dict[str, torch.Tensor]) -> None:
        """Set every trainable parameter; `values` as `trainable_parameters` gives them."""
        self.load_state_dict(values, strict=False)

    def state_files(self) -> dict[str, dict[str, torch.Tensor]]:
        return {name: module.state_dict() for name, module in self.parts.items()}

    def load_state_files(self, files: dict[str, dict[str, torch.Tensor]]) -> None:
        for name, module in self.parts.items():
            module.load_state_dict(files[name])


class BaselineMLP(SongRegressor):
    """The frozen encoder's vector of a song into an MLP: hidden -> 256 -> 128 -> 1, LeakyReLU 0.1, dropout 0.1."""

    @checked
    def __init__(self, encoder: InstanceOf[Encoder], recipe: Recipe, max_length: int = 512, stride: int = 128):
        super().__init__(encoder, recipe, max_length, stride)
        if recipe.init == "kernel":
            raise LyricsError("init='kernel': for fine-tuned encoders; use 'random' or 'mean'.")
        layers = [nn.Linear(encoder.hidden_size, 256), nn.LeakyReLU(0.1), nn.Dropout(0.1)]
        layers += [nn.Linear(256, 128), nn.LeakyReLU(0.1), nn.Dropout(0.1), nn.Linear(128, 1)]
        self.mlp = nn.Sequential(*layers)

    output_layer = property(lambda self: self.mlp[-1])
    parts = property(lambda self: {"model.safetensors": self.mlp})

    def inputs_from_chunks(self, chunks: Chunks) -> CachedFeatures:
        vectors = embed_chunks(self.encoder, chunks, self.recipe.pooling)
        return _one_row_per_song(average_by_song(vectors, chunks.song_index))

    def inputs_from(self, features: EncoderFeatures) -> CachedFeatures:
        return _one_row_per_song(features.pooled(self.recipe.pooling))

    def forward(self, rows: torch.Tensor, packing: Packing, token_weights: None = None) -> torch.Tensor:
        """(n_songs, hidden) -> (n_songs,); every length is 1."""
        return self.mlp(rows.float()).squeeze(-1)


def _one_row_per_song(vectors: np.ndarray) -> CachedFeatures:
    return CachedFeatures(vectors, np.ones(len(vectors), dtype=int), np.arange(len(vectors)))


class FineTunedRegressor(SongRegressor):
    """What fine-tuned encoders share: a copy of the top layers that `adapt` makes trainable, a pooler and a head."""

    @checked
    def __init__(self, encoder: InstanceOf[Encoder], recipe: Recipe, max_length: int = 512, stride: int = 128,
                 pooler: nn.Module | None = None):  # fmt: skip
        super().__init__(encoder, recipe, max_length, stride)
        most = {"adapted_layers": len(encoder.layers), "rank": encoder.hidden_size}
        most["pooled_layers"] = 1 if recipe.pooling == "cls" else recipe.adapted_layers
        for name, limit in most.items():
            if (found := getattr(recipe, name)) > limit:
                raise LyricsError(f"{name}={found}: encoder {encoder.name!r} and the rest of the recipe allow {limit}.")
        self.frozen_layers = len(encoder.layers) - recipe.adapted_layers
        shared = [encoder.network.embeddings, *encoder.layers[: self.frozen_layers]]
        self.adapted = self.adapt(copy.deepcopy(encoder.network, memo={id(module): module for module in shared}))
        for layer in self.adapted_layers:
            self_attention(layer).dropout.p = recipe.attention_dropout
        use_fast_dropout(self.adapted_layers)
        self.head, self.pooler = RegressionHead(encoder.hidden_size), pooler

    output_layer = property(lambda self: self.head.layers[-1])
    adapted_layers = property(lambda self: self.adapted.encoder.layer[self.frozen_layers :])

    def train(self, mode: bool = True) -> "FineTunedRegressor":
        super().train(mode)
        self.encoder.network.eval()
        return self

    def state_files(self) -> dict[str, dict[str, torch.Tensor]]:
        if self.pooler is not None:  # no recipe names it, so another model would be loaded
            raise LyricsError(f"a model with a pooler of its own ({type(self.pooler).__name__}) cannot be saved.")
        return super().state_files()

    def inputs_from_chunks(self, chunks: Chunks) -> OnTheFlyFeatures:
        return OnTheFlyFeatures(replace(self.encoder, network=self.adapted), self.frozen_layers, chunks)

    def inputs_from(self, features: EncoderFeatures) -> Features:
        if features.adapted_layers != (needed := self.recipe.adapted_layers):  # some layers would run twice or never
            raise LyricsError(f"features for other layers: extract them (or prepare) with adapted_layers={needed}.")
        return features.hidden_states

    def forward(self, rows: torch.Tensor, packing: Packing, token_weights: torch.Tensor | None = None):
        """Scores of the chunks, (n_chunks,), from the hidden states of their tokens, (n_tokens, hidden)."""
        device, dtype = rows.device.type, self.adapted_layers[0].output.dense.weight.dtype
        rows = rows.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype)
        packing.position_bias = position_bias(self.adapted, packing, rows.dtype)
        *lower, top = self.adapted_layers
        outputs = [rows]
        for layer in lower:
            outputs.append(run_layer(layer, outputs[-1], packing))
        if self.pooler is None and self.recipe.pooling == "cls":
            return self.head(run_layer_for_first_token(top, outputs[-1], packing).float())
        outputs.append(run_layer(top, outputs[-1], packing))
        if self.pooler is not None:
            return self.head(self.pooler(outputs[1:], packing, token_weights))
        mean = sum(outputs[-self.recipe.pooled_layers :]) / self.recipe.pooled_layers
        return self.head(pool_tokens(mean, packing, self.recipe.pooling, token_weights))


class LoraRegressor(FineTunedRegressor):
    """The encoder with LoRA adapters in its top layers; exactly the adapters and the head train.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", as built by peft.
    """

    def adapt(self, network: nn.Module) -> nn.Module:
        recipe, layers = self.recipe, list(range(self.frozen_layers, len(self.encoder.layers)))
        names = MPNET_NAMES if network.config.model_type == "mpnet" else {}
        targets = [names.get(name, name) for name in recipe.target_modules]
        where = {"target_modules": targets, "layers_to_transform": layers, "layers_pattern": "layer"}
        adapters = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.lora_dropout, **where)
        with warnings.catch_warnings():  # peft asks transformers 5 for an attribute by its old name
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(network, adapters)

    adapter_config = property(lambda self: self.adapted.peft_config["default"])
    parts = property(lambda self: {"head.safetensors": self.head})

    def state_files(self) -> dict[str, dict[str, torch.Tensor]]:
        adapter = get_peft_model_state_dict(self.adapted, save_embedding_layers=False)
        return {"adapter_model.safetensors": adapter} | super().state_files()

    def load_state_files(self, files: dict[str, dict[str, torch.Tensor]]) -> None:
        set_peft_model_state_dict(self.adapted, files["adapter_model.safetensors"])
        super().load_state_files(files)


class FullRegressor(FineTunedRegressor):
    """The encoder with every parameter of its top layers trained, to measure what LoRA gives up."""

    parts = property(lambda self: {"layers.safetensors": self.adapted_layers, "head.safetensors": self.head})

    def adapt(self, network: nn.Module) -> nn.Module:
        network.encoder.layer[self.frozen_layers :].requires_grad_(True)
        return network


MODELS = {"baseline": BaselineMLP, "lora": LoraRegressor, "full": FullRegressor}


@checked
def build_model(encoder: InstanceOf[Encoder], recipe: Recipe, seed: Seed = 42, max_length: Whole = 512,
                stride: Whole = 128, pooler: nn.Module | None = None) -> SongRegressor:  # fmt: skip
    """An untrained model; the same seed gives the same start, and the same training.

    pooler: a module, trained with the head, that replaces the recipe's pooling in a fine-tuned encoder: outputs of the
    adapted layers, each (n_tokens, hidden), their `Packing` and token weights -> (n_chunks, hidden).
    Raises `LyricsError` if the recipe does not fit the encoder, or asks for a blend.
    """
    if recipe.model == "blend":
        raise LyricsError("model='blend': compose it of fitted models with lyric_utils.blend.fit_blend.")
    if encoder.tokenizer:
        check_windows(encoder.tokenizer, max_length, stride)
    torch.manual_seed(seed)
    options = {} if pooler is None else {"pooler": pooler}
    model = MODELS[recipe.model](encoder, recipe, max_length, stride, **options).to(encoder.network.device)
    model.seed = seed
    model.start = {name: values.detach().clone() for name, values in model.trainable_parameters().items()}
    return model


def read_batch(model: SongRegressor, inputs: Features, indices: np.ndarray) -> tuple:
    """What a model's `forward` takes, of some items."""
    device = model.output_layer.weight.device
    rows, packing = inputs.read(indices, device)
    weighted = model.recipe.pooling == "distinct" and inputs.input_ids is not None
    return rows, packing, to_device(inputs.read_token_weights(indices), device) if weighted else None


def score_songs(model: SongRegressor, inputs: Features | Chunks, accelerator: Accelerator | None = None) -> np.ndarray:
    """Score every song: mean over its items, in [0, 1], (n_songs,). The processes of an accelerator share the work."""
    model = packed_copy(model, model.encoder, model.start)
    inputs = model.inputs_from_chunks(inputs) if isinstance(inputs, Chunks) else inputs
    scores = torch.zeros(len(inputs.lengths), device=model.output_layer.weight.device)
    batches = list(batch_by_tokens(inputs.lengths))
    if accelerator:
        batches = batches[accelerator.process_index :: accelerator.num_processes]
    passes = in_passes(lambda items: model(*read_batch(model, inputs, items)), inputs.lengths, "predict", batches)
    for items, found in passes:
        scores[items[0] : items[-1] + 1] = found
    scores = accelerator.reduce(scores) if accelerator else scores
    if not scores.isfinite().all():
        raise LyricsError("the model's scores are not numbers: its parameters are too large. Copy it again or retrain.")
    return average_by_song(scores.cpu(), inputs.song_index).clamp(0, 1).double().numpy()
