"""The two models, and how they are saved and loaded.

Both read packed rows and give one score an item: the baseline's item is a song (its averaged [CLS] vector), the LoRA
regressor's a chunk (the states of its tokens, from which the adapted layers go on).
"""

import copy
import hashlib
import json
import platform
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import peft
import safetensors
import torch
import transformers
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import VarianceThreshold
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn
from tqdm import tqdm

from lyric_utils.chunking import Chunks, average_by_song, check_windows, chunk_lyrics
from lyric_utils.encoders import (
    Encoder,
    load_encoder,
    packed_weights,
    pool,
    run_layer,
    run_layer_for_first_token,
    use_fast_dropout,
)
from lyric_utils.frozen import FrozenPass, LiveRows, Rows, StoredRows, embed_chunks, pack, weights_hash
from lyric_utils.profiles import Recipe
from lyric_utils.songs import LyricsError, folder_written_whole, words_key

KERNEL_STEPS = 1_000  # in which a head learns to predict as kernel ridge regression
TFIDF_PENALTIES = np.logspace(-1, 2, 7)
USUAL_LINES = [6.4, 0.73]  # words a line, and share of distinct lines: geometric means of the public subset


def tfidf_ridge(analyzer: str = "word") -> Pipeline:
    """Floor 1: ridge regression on TF-IDF, its penalty chosen by leave-one-out.

    Args:
        analyzer: "word" counts words, "char_wb" runs of two to four letters within words, so that *cry* and *crying*
            have most of them in common (names as in scikit-learn).
    """
    return make_pipeline(_tfidf(analyzer), RidgeCV(alphas=TFIDF_PENALTIES))


def text_ridge(vocabulary: list[str] | None = None) -> Pipeline:
    """Ridge regression on the TF-IDF of a song's runs of letters and on its form, see `measure_form`.

    Args:
        vocabulary: the runs of letters, where they are known before.
    """
    form = make_pipeline(FunctionTransformer(measure_form), StandardScaler(), FunctionTransformer(_bound))
    return make_pipeline(make_union(_tfidf("char_wb", vocabulary), form), RidgeCV(alphas=TFIDF_PENALTIES))


def measure_form(lyrics: Iterable[str]) -> np.ndarray:
    """The form of each song: how long it is and how much of it repeats, shape (n_songs, 4).

    Neither TF-IDF, whose vectors all have length 1, nor a mean over tokens can tell that. The columns are logarithms of
    the number of words, of distinct words, of words a line, and of the share of distinct lines. A song in one line
    tells nothing of its lines and counts as a usual one there. Case and punctuation do not count.
    """
    counts = []
    for song in lyrics:
        lines = [key for line in song.splitlines() if (key := words_key(line))]
        words = " ".join(lines).split()
        by_line = [len(words) / len(lines), len(set(lines)) / len(lines)] if len(lines) > 1 else USUAL_LINES
        counts.append([max(len(words), 1), max(len(set(words)), 1), *by_line])
    return np.log(np.reshape(counts, (-1, 4)))


def _bound(scaled: np.ndarray) -> np.ndarray:
    """At most two standard deviations from the mean, so that unusual line breaks cannot decide a song's score."""
    return scaled.clip(-2, 2)


def _tfidf(analyzer: str, vocabulary: list[str] | None = None) -> TfidfVectorizer:
    counted = {"word": {"min_df": 2}, "char_wb": {"min_df": 5, "ngram_range": (2, 4)}}[analyzer]
    return TfidfVectorizer(
        analyzer=analyzer, sublinear_tf=True, strip_accents="unicode", vocabulary=vocabulary, **counted
    )


def frozen_ridge() -> Pipeline:
    """Floor 2: ridge regression on the frozen encoder's song vectors, its penalty chosen by leave-one-out.

    Dimensions that hardly vary are left out: MiniLM's last layer has three that are zero but for rounding, which
    scaling would blow up to a weight beyond all numbers.
    """
    return make_pipeline(VarianceThreshold(1e-12), StandardScaler(), RidgeCV(alphas=np.logspace(1, 5, 13)))


def kernel_ridge(n_songs: int, hidden_size: int) -> Pipeline:
    """Ridge regression with a Gaussian kernel on vectors of the frozen encoder: a curve where `frozen_ridge` is a line.

    Width and penalty are the best of twelve pairs on folds of the public subset. From 2,000 songs on, the kernel is
    taken to that many of them, drawn at random, so that time and memory grow with the songs and not with their square.
    Source: Williams & Seeger 2001, "Using the Nyström Method to Speed Up Kernel Machines", as built by scikit-learn.
    """
    kernel = Nystroem(gamma=1 / (4 * hidden_size), n_components=min(n_songs, 2_000), random_state=42)
    return make_pipeline(VarianceThreshold(1e-12), StandardScaler(), kernel, Ridge(alpha=1.0))


def soft_targets(songs: pd.DataFrame, vectors: np.ndarray, share: float) -> np.ndarray:
    """Training targets: each song's valence, moved by `share` towards what two teachers predict for it.

    The mean of `text_ridge` and `kernel_ridge` predicts each song from the songs of other artists (five folds). A label
    that the words do not support is so softened, and a network learns less of the noise; songs to be scored keep their
    own valence. Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; for noisy labels Li et al.
    2017, "Learning from Noisy Labels with Distillation".

    Args:
        songs: the training songs, with artist, lyrics and valence.
        vectors: the frozen encoder's vectors of them, shape (n_songs, hidden).
        share: 0 (the valence itself) to 1 (the teachers' predictions alone).

    Raises:
        LyricsError: there are too few songs or artists to learn from.
    """
    lyrics, valence = songs["lyrics"].to_numpy(), songs["valence"].to_numpy()
    if share == 0:
        return valence
    predicted = np.empty(len(songs))
    try:
        folds = GroupKFold(5).split(lyrics, groups=songs["artist"])
        for others, held in tqdm(folds, desc="soft targets", total=5, unit="fold", leave=False, delay=1):
            kernel = kernel_ridge(*vectors[others].shape)
            words = text_ridge().fit(lyrics[others], valence[others]).predict(lyrics[held])
            encoded = kernel.fit(vectors[others], valence[others]).predict(vectors[held])
            predicted[held] = (words + encoded) / 2
    except ValueError as error:
        found = f"{len(songs)} songs of {songs['artist'].nunique()} artists"
        raise LyricsError(f"soft targets cannot be learned from {found} ({error}): use soft_targets=0.") from error
    return (1 - share) * valence + share * predicted


class RegressionHead(nn.Module):
    """Linear(hidden, 128) -> ReLU -> Linear(128, 1): (n, hidden) -> (n,)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_size, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.layers(vectors).squeeze(-1)


class SongRegressor(nn.Module):
    """What all models share: the encoder they stand on, prediction from lyrics, and the last layer's bias."""

    weight_files: tuple[str, ...]
    starts = ("random", "mean")

    def __init__(self, encoder: Encoder, recipe: Recipe, max_length: int = 512, stride: int = 128):
        super().__init__()
        if recipe.pooling not in ("cls", "mean", "distinct"):
            raise LyricsError(f"pooling={recipe.pooling!r}: use 'cls', 'mean' or 'distinct'.")
        if recipe.start not in self.starts:
            raise LyricsError(f"start={recipe.start!r}: use one of {', '.join(self.starts)}.")
        self.encoder, self.recipe, self.max_length, self.stride = encoder, recipe, max_length, stride

    def rows_of(self, chunks: Chunks) -> Rows:
        """What this model reads of chunks seen for the first time."""
        raise NotImplementedError

    def rows_of_pass(self, frozen: FrozenPass) -> Rows:
        """What this model reads of a pass of the frozen encoder."""
        raise NotImplementedError

    def predict(self, lyrics: list[str]) -> np.ndarray:
        """Valence of each song: float array of shape (n_songs,), each in [0, 1].

        Raises:
            LyricsError: a song has no tokens.
        """
        if len(lyrics) == 0:
            return np.zeros(0)
        chunks = chunk_lyrics(lyrics, self.encoder.tokenizer, self.max_length, self.stride)
        return score_songs(self, self.rows_of(chunks))

    def start_at(self, valence: float) -> None:
        """Let the untrained model predict a constant: the output weights start at zero, the bias at `valence`."""
        output = self.output_layer
        nn.init.zeros_(output.weight)
        nn.init.constant_(output.bias, valence)

    def trainable_state(self) -> dict[str, torch.Tensor]:
        """The weights that training changes, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


class BaselineMLP(SongRegressor):
    """The frozen encoder's vector of a song into an MLP: hidden -> 256 -> 128 -> 1, LeakyReLU 0.1, dropout 0.1."""

    weight_files = ("model.safetensors",)

    def __init__(self, encoder: Encoder, recipe: Recipe, max_length: int = 512, stride: int = 128):
        super().__init__(encoder, recipe, max_length, stride)
        self.mlp = nn.Sequential(
            nn.Linear(encoder.hidden_size, 256),
            nn.LeakyReLU(0.1),
            nn.Dropout(0.1),
            nn.Linear(256, 128),
            nn.LeakyReLU(0.1),
            nn.Dropout(0.1),
            nn.Linear(128, 1),
        )

    @property
    def output_layer(self) -> nn.Linear:
        return self.mlp[-1]

    def rows_of(self, chunks: Chunks) -> StoredRows:
        vectors = embed_chunks(self.encoder, chunks, self.recipe.pooling)
        return self._rows_of_songs(average_by_song(vectors, chunks.song_index))

    def rows_of_pass(self, frozen: FrozenPass) -> StoredRows:
        return self._rows_of_songs(frozen.song_vectors(self.recipe.pooling))

    def _rows_of_songs(self, vectors: np.ndarray) -> StoredRows:
        return StoredRows(vectors, np.ones(len(vectors), dtype=int), np.arange(len(vectors)))

    def forward(self, rows: torch.Tensor, lengths: list[int], weights: None = None) -> torch.Tensor:
        """(n_songs, hidden) -> (n_songs,); every length is 1."""
        return self.mlp(rows).squeeze(-1)

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"model.safetensors": self.mlp.state_dict()}

    def load_weights(self, folder: Path) -> None:
        self.mlp.load_state_dict(load_file(folder / "model.safetensors"))


class FineTunedRegressor(SongRegressor):
    """What fine-tuned encoders share: a copy of the top layers that learns, pooling, and a RegressionHead.

    The frozen layers below are shared with `encoder` and always in evaluation mode.
    """

    starts = ("random", "mean", "kernel")

    def __init__(self, encoder: Encoder, recipe: Recipe, max_length: int = 512, stride: int = 128):
        super().__init__(encoder, recipe, max_length, stride)
        count = len(encoder.layers)
        self.frozen_layers = count - recipe.adapted_layers
        if not 1 <= recipe.adapted_layers <= count:
            raise LyricsError(f"adapted_layers={recipe.adapted_layers}: encoder {encoder.name!r} has {count} layers.")
        if not 1 <= recipe.pooled_layers <= (1 if recipe.pooling == "cls" else recipe.adapted_layers):
            raise LyricsError(f"pooled_layers={recipe.pooled_layers}: 1 with 'cls', else up to adapted_layers.")
        shared = [encoder.network.embeddings, *encoder.layers[: self.frozen_layers]]
        self.adapted = self.adapt(copy.deepcopy(encoder.network, memo={id(module): module for module in shared}))
        use_fast_dropout(self.adapted_layers)
        self.head = RegressionHead(encoder.hidden_size)

    def adapt(self, network: nn.Module) -> nn.Module:
        """Make the top layers of a frozen network trainable."""
        raise NotImplementedError

    @property
    def output_layer(self) -> nn.Linear:
        return self.head.layers[-1]

    @property
    def adapted_layers(self) -> nn.ModuleList:
        return self.adapted.encoder.layer[self.frozen_layers :]

    def train(self, mode: bool = True) -> "FineTunedRegressor":
        super().train(mode)
        self.encoder.network.eval()
        return self

    def rows_of(self, chunks: Chunks) -> LiveRows:
        return LiveRows(self.encoder, self.frozen_layers, chunks)

    def rows_of_pass(self, frozen: FrozenPass) -> Rows:
        return frozen.states

    def forward(self, rows: torch.Tensor, lengths: list[int], weights: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of the chunks, (n_chunks,).

        Args:
            rows: states of the tokens, (n_tokens, hidden).
            lengths: tokens of each chunk.
            weights: of the tokens in "distinct" pooling, (n_tokens,).
        """
        if torch.is_autocast_enabled(rows.device.type):  # sums and norms of the layers then run in half precision too
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        *lower, top = self.adapted_layers
        outputs = []
        for layer in lower:
            rows = run_layer(layer, rows, lengths)
            outputs.append(rows)
        if self.recipe.pooling == "cls":
            return self.head(run_layer_for_first_token(top, rows, lengths))
        outputs.append(run_layer(top, rows, lengths))
        return self.head(self.pool(outputs, lengths, weights))

    def pool(self, outputs: list[torch.Tensor], lengths: list[int], weights: torch.Tensor | None) -> torch.Tensor:
        """One vector a chunk, (n_chunks, hidden), from what each adapted layer gives, (n_tokens, hidden)."""
        layers = self.recipe.pooled_layers
        return pool(sum(outputs[-layers:]) / layers, lengths, self.recipe.pooling, weights)

    def start_at_kernel(self, vectors: np.ndarray, valence: np.ndarray) -> None:
        """Let a model just built predict nearly as `kernel_ridge` on its pooled vectors of songs, (n_songs, hidden).

        The head learns the kernel's answers to mixtures of two songs each, so that between songs it bends as the kernel
        does. Sources: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution" (first a probe on frozen vectors, then fine-tuning); Hinton et al. 2015, "Distilling the
        Knowledge in a Neural Network"; Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".
        """
        kernel = kernel_ridge(*vectors.shape).fit(vectors, valence)
        self.start_at(valence.mean())
        optimizer = torch.optim.Adam(self.head.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=KERNEL_STEPS)
        device = self.output_layer.weight.device
        for mixtures, answers in ask_kernel(kernel, vectors, batches=KERNEL_STEPS):
            loss = nn.functional.mse_loss(self.head(mixtures.to(device)), answers.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        varying, scaler = kernel[0], kernel[1]
        mean, scale = varying.inverse_transform([scaler.mean_, scaler.scale_])
        scale[scale == 0] = np.inf  # what was left out gets no weight
        mean, scale = (torch.from_numpy(array).float().to(device) for array in (mean, scale))
        hidden = self.head.layers[0]
        with torch.no_grad():  # from scaled vectors, which it learned on, to vectors as they come
            hidden.weight /= scale
            hidden.bias -= hidden.weight @ mean


def ask_kernel(
    kernel: Pipeline, vectors: np.ndarray, batches: int, size: int = 256
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of scaled mixtures of two songs, (size, hidden), and the answers of a fitted `kernel_ridge`, (size,).

    The weights of the two are cosine and sine of an angle, which keeps the variance; mostly one song prevails.
    """
    varying, scaler, nystroem, ridge = kernel.named_steps.values()
    scaled, dual = scaler.transform(varying.transform(vectors)), nystroem.normalization_.T @ ridge.coef_
    draw = np.random.default_rng(42)
    for _ in range(batches):
        first, second = draw.integers(len(scaled), size=(2, size))
        angle = draw.beta(0.4, 0.4, size=(size, 1)) * np.pi / 2
        mixtures = np.cos(angle) * scaled[first] + np.sin(angle) * scaled[second]
        answers = rbf_kernel(mixtures, nystroem.components_, nystroem.gamma) @ dual + ridge.intercept_
        yield torch.from_numpy(varying.inverse_transform(mixtures)).float(), torch.from_numpy(answers).float()


class LoraRegressor(FineTunedRegressor):
    """The encoder with LoRA adapters on query and value of its last layers; exactly the adapters and the head train.

    Source of the method: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", as built by peft.
    """

    weight_files = ("adapter_model.safetensors", "head.safetensors")
    adapted_matrices = ("query", "value")

    def adapt(self, network: nn.Module) -> nn.Module:
        recipe, count, size = self.recipe, len(self.encoder.layers), self.encoder.hidden_size
        if not 1 <= recipe.rank <= size:
            raise LyricsError(f"rank={recipe.rank}: must be 1 to {size}, the encoder's hidden size.")
        adapters = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.adapter_dropout,
            target_modules=list(self.adapted_matrices),
            layers_to_transform=list(range(self.frozen_layers, count)),
            layers_pattern="layer",
        )
        with warnings.catch_warnings():  # peft asks transformers 5 for an attribute by its old name
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(network, adapters)

    @property
    def adapted_layers(self) -> nn.ModuleList:
        return self.adapted.base_model.model.encoder.layer[self.frozen_layers :]

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        adapter = get_peft_model_state_dict(self.adapted, save_embedding_layers=False)
        return {"adapter_model.safetensors": adapter, "head.safetensors": self.head.state_dict()}

    def load_weights(self, folder: Path) -> None:
        adapter = load_file(folder / "adapter_model.safetensors")
        expected = get_peft_model_state_dict(self.adapted, save_embedding_layers=False)
        if {name: w.shape for name, w in adapter.items()} != {name: w.shape for name, w in expected.items()}:
            raise LyricsError(f"{folder / 'adapter_model.safetensors'}: not the adapters that config.json describes.")
        set_peft_model_state_dict(self.adapted, adapter)
        self.head.load_state_dict(load_file(folder / "head.safetensors"))


class FullRegressor(FineTunedRegressor):
    """The encoder with every weight of its last layers trained; to measure what LoRA gives up."""

    weight_files = ("layers.safetensors", "head.safetensors")

    def adapt(self, network: nn.Module) -> nn.Module:
        network.encoder.layer[self.frozen_layers :].requires_grad_(True)
        return network

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"layers.safetensors": self.adapted_layers.state_dict(), "head.safetensors": self.head.state_dict()}

    def load_weights(self, folder: Path) -> None:
        self.adapted_layers.load_state_dict(load_file(folder / "layers.safetensors"))
        self.head.load_state_dict(load_file(folder / "head.safetensors"))


class BlendRegressor(LoraRegressor):
    """A trained LoRA regressor and a fitted `text_ridge`: their weighted mean, moved away from the mean valence.

    Where two models disagree their mean stays in the middle, so it is more timid than either of them:
    `recipe.stretch` makes up for that. Source: Breiman 1996, "Stacked Regressions".
    """

    weight_files = (*LoraRegressor.weight_files, "words.safetensors")
    words: Pipeline
    mean_valence: float

    def predict(self, lyrics: list[str]) -> np.ndarray:
        if len(lyrics) == 0:
            return np.zeros(0)
        return mix(super().predict(lyrics), self.words.predict(lyrics), self.mean_valence, self.recipe)

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        letters, scaler, ridge = parts_of(self.words)
        vocabulary = "\n".join(letters.get_feature_names_out()).encode()
        words = {
            "vocabulary": torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8),  # UTF-8, one a line
            "idf": torch.from_numpy(letters.idf_),
            "form_mean": torch.from_numpy(scaler.mean_),
            "form_scale": torch.from_numpy(scaler.scale_),
            "coefficients": torch.from_numpy(ridge.coef_),
            "intercept": torch.tensor([ridge.intercept_], dtype=torch.float64),
            "mean_valence": torch.tensor([self.mean_valence], dtype=torch.float64),
        }
        return super().weights() | {"words.safetensors": words}

    def load_weights(self, folder: Path) -> None:
        super().load_weights(folder)
        words = load_file(folder / "words.safetensors")
        vocabulary = bytes(words["vocabulary"].tolist()).decode().split("\n")
        self.words = text_ridge(vocabulary)
        letters, scaler, ridge = parts_of(self.words)
        letters.idf_ = words["idf"].numpy()
        scaler.mean_, scaler.scale_ = words["form_mean"].numpy(), words["form_scale"].numpy()
        ridge.coef_, ridge.intercept_ = words["coefficients"].numpy(), words["intercept"].item()
        self.mean_valence = words["mean_valence"].item()


def parts_of(words: Pipeline) -> tuple[TfidfVectorizer, StandardScaler, RidgeCV]:
    """What a `text_ridge` has learned: letters, the scale of the form, coefficients."""
    (_, letters), (_, form) = words[0].transformer_list
    return letters, form["standardscaler"], words[-1]


def mix(encoded: np.ndarray, words: np.ndarray, mean_valence: float, recipe: Recipe) -> np.ndarray:
    """The scores of a blend, from those of its two models: shape (n_songs,), each in [0, 1].

    Args:
        mean_valence: of the training songs.
    """
    mean = (1 - recipe.words_share) * encoded + recipe.words_share * words.clip(0, 1)
    return (mean_valence + recipe.stretch * (mean - mean_valence)).clip(0, 1)


def blend(lora: LoraRegressor, words: Pipeline, mean_valence: float, recipe: Recipe) -> BlendRegressor:
    """Put a trained LoRA regressor and a fitted `text_ridge` together, by a recipe for a blend of them."""
    blended = build_model(lora.encoder, recipe, max_length=lora.max_length, stride=lora.stride)
    blended.load_state_dict(lora.state_dict())
    blended.words, blended.mean_valence = words, mean_valence
    return blended.eval()


MODELS = {"baseline": BaselineMLP, "lora": LoraRegressor, "full": FullRegressor, "blend": BlendRegressor}


def build_model(
    encoder: Encoder, recipe: Recipe, seed: int = 42, max_length: int = 512, stride: int = 128
) -> SongRegressor:
    """An untrained model; the same seed gives the same start."""
    torch.manual_seed(seed)
    return MODELS[recipe.model](encoder, recipe, max_length, stride).to(encoder.network.device)


def read_batch(rows: Rows, items: np.ndarray, device) -> tuple[torch.Tensor, list[int], torch.Tensor | None]:
    """What a model's `forward` takes, of some items."""
    weights = rows.read_weights(items)
    return rows.read(items).to(device), rows.lengths[items].tolist(), weights if weights is None else weights.to(device)


@torch.inference_mode()
def score_songs(model: SongRegressor, rows: Rows, accelerator: Accelerator | None = None) -> np.ndarray:
    """Score every song of `rows` in evaluation mode: mean over its items, clipped to [0, 1], shape (n_songs,).

    Given an accelerator, its processes share the passes, and each of them gets the scores of all songs.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    passes = list(pack(rows.lengths))
    if accelerator:
        passes = passes[accelerator.process_index :: accelerator.num_processes]
    scores = torch.zeros(len(rows.lengths), device=device)
    with packed_weights(model):
        for items in passes:
            scores[items] = model(*read_batch(rows, items, device)).float()
    if accelerator:
        scores = accelerator.reduce(scores)
    model.train(was_training)
    return average_by_song(scores.cpu(), rows.song_index).clamp(0, 1).double().numpy()


# ---------------------------------------------------------------- checkpoints

FORMAT_VERSION = 1
PREDICTION_COLUMNS = {
    **{"row": int, "artist": str, "title": str, "words": int, "chunks": int},
    **{"valence": float, "prediction": float},
}
HISTORY_KEYS = ("epoch", "train_loss", "validation_mse")


class Results(NamedTuple):
    """What a checkpoint tells without its weights: enough to redraw every figure.

    Attributes:
        config: recipe, profile, seed, encoder and versions.
        history: one dict an epoch, with `epoch`, `train_loss`, `validation_mse` and `seconds`.
        predictions: one test song a line, see `PREDICTION_COLUMNS`; no lyrics.
        metrics: metric -> value on the test songs.
    """

    config: dict
    history: list[dict]
    predictions: pd.DataFrame
    metrics: dict


def tabulate_predictions(songs: pd.DataFrame, chunks_per_song: np.ndarray, prediction: np.ndarray) -> pd.DataFrame:
    """The predictions of some songs with what is needed to judge them, see `PREDICTION_COLUMNS`; no lyrics.

    Titles are cut after seven words: a long one may be a whole line of its song.
    """
    words = songs["lyrics"].str.split().str.len()
    title = songs["title"].str.replace(r"^((?:\S+\s+){6}\S+)\s.*$", r"\1 ...", regex=True)
    columns = {"title": title, "words": words, "chunks": chunks_per_song, "prediction": prediction}
    return songs.assign(**columns)[[*PREDICTION_COLUMNS]]


def save_model(model: SongRegressor, folder: str | Path, **results) -> None:
    """Write a checkpoint folder, all or nothing: weights as safetensors, everything else as JSON, CSV and Markdown.

    A LoRA checkpoint is a standard PEFT adapter folder, with the head beside it.

    Args:
        results: `profile` and `seed` (kept in config.json), `history`, `predictions`, `metrics`; see `Results`.

    Raises:
        LyricsError: the folder cannot be written, or holds something else than a checkpoint.
    """
    folder = Path(folder)
    is_ours = folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))
    if folder.exists() and not is_ours:
        raise LyricsError(f"{folder}: stands there already and is no checkpoint. Remove it, or give another name.")
    config = {
        "version": FORMAT_VERSION,
        "recipe": asdict(model.recipe),
        "encoder": model.encoder.name,
        "encoder_sha256": weights_hash(model.encoder),
        "max_length": model.max_length,
        "stride": model.stride,
        "profile": results["profile"],
        "seed": results["seed"],
        "versions": versions(),
    }
    with folder_written_whole(folder) as temporary:
        if isinstance(model, LoraRegressor):
            model.adapted.peft_config["default"].save_pretrained(temporary)
        for name, weights in model.weights().items():
            _write_weights(weights, temporary / name)
        config["sha256"] = {name: _sha256(temporary / name) for name in model.weights()}
        for name, content in (("config", config), ("history", results["history"]), ("metrics", results["metrics"])):
            (temporary / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        predictions = results["predictions"]
        predictions.to_csv(temporary / "predictions.csv", index=False, float_format="%.5g")
        (temporary / "README.md").write_text(model_card(model, config, results["metrics"], len(predictions)))


def load_model(folder: str | Path, encoder: Encoder | None = None) -> SongRegressor:
    """Load a checkpoint folder that `save_model` wrote, ready to `predict`.

    Args:
        encoder: the encoder it was trained on, where it is at hand; otherwise it is loaded by the name in config.json.

    Raises:
        LyricsError: a file is missing or damaged, or the encoder is not the one the checkpoint was trained on.
    """
    folder = Path(folder)
    config = _read_json(folder, "config.json")
    try:
        if config["version"] != FORMAT_VERSION:
            raise LyricsError(f"version {config['version']} is not {FORMAT_VERSION}, the one this lyric_utils reads.")
        encoder = encoder or load_encoder(config["encoder"])
        if weights_hash(encoder) != config["encoder_sha256"]:
            raise LyricsError(f"trained on encoder {config['encoder']!r}; {encoder.name!r} has other weights.")
        windows = {name: config[name] for name in ("max_length", "stride")}
        check_windows(encoder.tokenizer, **windows)
        model = build_model(encoder, Recipe(**config["recipe"]), **windows)
        sha256 = {name: config["sha256"][name] for name in model.weight_files}
    except LyricsError as error:
        raise LyricsError(f"{folder / 'config.json'}: {error}") from error
    except Exception as error:  # whatever a value of the wrong kind sets off
        reason = f"{type(error).__name__}: {error}"
        raise LyricsError(f"{folder / 'config.json'}: not as save_model wrote it ({reason}). Copy it again.") from error
    for name, expected in sha256.items():
        if not (folder / name).is_file():
            raise LyricsError(f"{folder / name}: no such file. Copy the whole checkpoint again or retrain.")
        if _sha256(folder / name) != expected:
            raise LyricsError(f"{folder / name}: damaged, or of another checkpoint. Copy it again or retrain.")
    try:
        model.load_weights(folder)
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        raise LyricsError(f"{folder}: weights of another model ({error}). Copy it again or retrain.") from error
    if not all(weight.isfinite().all() for weights in model.weights().values() for weight in weights.values()):
        raise LyricsError(f"{folder}: the weights hold values that are no numbers. Retrain at a lower learning rate.")
    return model.eval()


def load_results(folder: str | Path) -> Results:
    """Read what a checkpoint tells beside its weights.

    Raises:
        LyricsError: a file is missing or damaged.
    """
    folder = Path(folder)
    config, history, metrics = (_read_json(folder, f"{name}.json") for name in ("config", "history", "metrics"))
    sound = {
        "config": isinstance(config, dict) and isinstance(config.get("recipe"), dict),
        "history": isinstance(history, list) and all(_are_numbers(line, HISTORY_KEYS) for line in history),
        "metrics": _are_numbers(metrics),
    }
    if damaged := [name for name in sound if not sound[name]]:
        raise LyricsError(f"{folder / damaged[0]}.json: not as save_model wrote it. Copy it again or retrain.")
    try:
        predictions = pd.read_csv(folder / "predictions.csv", keep_default_na=False, dtype=PREDICTION_COLUMNS)
        predictions = predictions[[*PREDICTION_COLUMNS]]
        if not np.isfinite(predictions[["valence", "prediction"]]).all(axis=None):
            raise ValueError("a valence or a prediction is no number")
    except (OSError, ValueError, KeyError) as error:
        raise LyricsError(f"{folder / 'predictions.csv'}: missing or damaged ({error}).") from error
    return Results(config, history, predictions, metrics)


def _are_numbers(content: object, names: tuple[str, ...] = ()) -> bool:
    """Whether `content` is a dict of numbers with at least these names."""
    return (
        isinstance(content, dict)
        and all(isinstance(value, int | float) for value in content.values())
        and set(names) <= set(content)
    )


def _write_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, path)
    except SafetensorError as error:  # its word for a full disk
        raise OSError(str(error)) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries a result depends on."""
    libraries = (np, pd, torch, transformers, peft, safetensors)
    return {"python": platform.python_version()} | {library.__name__: library.__version__ for library in libraries}


def _read_json(folder: Path, name: str):
    path = folder / name
    if not path.is_file():
        raise LyricsError(f"{path}: no such file. Give a folder that save_model wrote, with all its files.")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise LyricsError(f"{path}: not valid JSON ({error}). Copy it again or retrain.") from error


def model_card(model: SongRegressor, config: dict, metrics: dict, songs: int) -> str:
    """A README.md for a checkpoint: what it is, how it was made, how good it is, and its limits."""
    trainable = sum(weight.numel() for weight in model.trainable_state().values())
    words = ""
    if isinstance(model, BlendRegressor):
        letters, recipe = len(parts_of(model.words)[0].get_feature_names_out()), model.recipe
        words = (
            f"\n\nA ridge regression has a share of {recipe.words_share:g} in each score. It reads {letters:,} runs of "
            "letters\nand the song's form: words, distinct words, words a line, share of distinct lines."
        )
    recipe = "\n".join(f"| {name} | {value} |" for name, value in config["recipe"].items())
    scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    return f"""# {type(model).__name__} on {config["encoder"]}

Predicts the valence of a song (0 to 1, Spotify's label) from its English lyrics. {trainable:,} weights were trained, on
the `{config["profile"]}` profile with seed {config["seed"]}; the encoder itself is not in this folder.{words}

```python
import lyric_utils as lu
model = lu.load_model("path/of/this/folder")
model.predict(["the lyrics of one song", "the lyrics of another"])
```

## Scores on {songs:,} test songs

| metric | value |
|---|---|
{scores}

One training run with one seed; the comparison notebook gives intervals and the simple methods beside it.
`predictions.csv` holds every test song's row number, truth and prediction, `history.json` the course of the training.

## Recipe

| setting | value |
|---|---|
{recipe}

Chunks of {config["max_length"]} tokens, neighbours sharing {config["stride"]}; a song's score is the mean over them.

## Limits

Words are only a part of what a listener, or Spotify's audio analysis, hears as positive: the same words sung by two
artists often carry very different labels. Do not use a score to judge a person, nor where a wrong one does harm.
English lyrics only. Lyrics of the training songs are not included.
"""
