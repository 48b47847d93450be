"""How the recipe was chosen: LYRICS_DATA=songs.csv python -m benchmarks.levers [NAME ...]

Everything here is measured on the training and validation songs of the subset profile, in five folds by artist; the
test songs play no part. The linear levers (words, pooling, layers, blend) take minutes for all folds. A lever of LoRA
is one training on one fold, to be read with care; all but the last were tried on a recipe that started at ridge
regression and learned from teachers without form. Without names all of them run, some hours on two cores; results go to
results/quality/levers.json, and what stands there is not run again.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModel

import lyric_utils as lu
from benchmarks.common import write_json
from benchmarks.quality import RESULTS, load_sides, part_of_pass
from lyric_utils.encoders import quiet_transformers
from lyric_utils.models import LoraRegressor
from lyric_utils.profiles import BLEND, LORA_TUNED

FILE = RESULTS / "levers.json"
FOLD_OF_LORA = 1


class RidgeStart(LoraRegressor):
    """The untrained model predicts as ridge regression on its pooled vectors: two units of the head carry the line."""

    def start_at_kernel(self, vectors, valence):
        varying, scaler, ridge = lu.frozen_ridge().fit(vectors, valence)
        slope, mean = varying.inverse_transform([ridge.coef_ / scaler.scale_, scaler.mean_])  # 0 where left out
        slope, mean = torch.from_numpy(slope).float(), torch.from_numpy(mean).float()
        size = slope.norm().sqrt()
        self.start_at(valence.mean())
        hidden, output = self.head.layers[0], self.output_layer
        with torch.no_grad():
            for unit, sign in enumerate((1.0, -1.0)):
                hidden.weight[unit] = sign * slope / size
                hidden.bias[unit] = -sign * float(slope @ mean) / size
                output.weight[0, unit] = sign * size


class AttentionPooling(RidgeStart):
    """A learned score a token, its softmax over the chunk the weights of the mean; it starts as plain mean pooling."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.head.score = nn.Linear(self.encoder.hidden_size, 1)
        nn.init.zeros_(self.head.score.weight)

    def pool(self, outputs, lengths, weights):
        mixed = sum(outputs[-self.recipe.pooled_layers :]) / self.recipe.pooled_layers
        chunks = zip(mixed.split(lengths), self.head.score(mixed).split(lengths), strict=True)
        return torch.stack([(chunk * score.softmax(0)).sum(0) for chunk, score in chunks])


class LearnedMix(RidgeStart):
    """A learned softmax weight for every adapted layer (as in ELMo); it starts as their plain mean."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.head.mix = nn.Parameter(torch.zeros(self.recipe.adapted_layers))

    def pool(self, outputs, lengths, weights):
        mix = self.head.mix.softmax(0) * self.recipe.adapted_layers
        return super().pool([weight * output for weight, output in zip(mix, outputs, strict=True)], lengths, weights)


class AllMatrices(RidgeStart):
    """Adapters on every matrix of the adapted layers."""

    adapted_matrices = ("query", "key", "value", "dense")


class Lever(NamedTuple):
    """A change to the recipe that most levers were tried on: start at ridge regression, teachers without form."""

    changes: Mapping[str, object] = MappingProxyType({})
    regressor: type = RidgeStart
    teachers: tuple[Callable, Callable] = (lu.tfidf_ridge, lambda *_: lu.frozen_ridge())


SHIPPED_TEACHERS = lu.text_ridge, lu.kernel_ridge
LORA = {
    "no change": Lever(),
    "three pooled layers": Lever({"pooled_layers": 3}),
    "last layer only": Lever({"pooled_layers": 1}),
    "plain mean pooling": Lever({"pooling": "mean"}),
    "[CLS] pooling": Lever({"pooling": "cls", "pooled_layers": 1}),
    "attention pooling": Lever({"pooling": "mean"}, AttentionPooling),
    "learned mix of layers": Lever({}, LearnedMix),
    "hard labels": Lever({"soft_targets": 0.0}),
    "start at the mean": Lever({"start": "mean"}),
    "start at random": Lever({"start": "random"}),
    "two epochs": Lever({"epochs": 2}),
    "loss on chunks": Lever({"loss_on": "chunk"}),
    "adapter rate 1e-4": Lever({"learning_rate": 1e-4}),
    "adapter rate 1e-3": Lever({"learning_rate": 1e-3}),
    "head rate 1e-3": Lever({"head_learning_rate": 1e-3}),
    "adapters on all matrices": Lever({}, AllMatrices),
    "two adapted layers": Lever({"adapted_layers": 2, "pooled_layers": 2}),
    "rank 32": Lever({"rank": 32, "alpha": 64}),
    "alpha 64": Lever({"alpha": 64}),
    "no adapter dropout": Lever({"adapter_dropout": 0.0}),
    "weight decay 0.1": Lever({"weight_decay": 0.1}),
    "better teachers": Lever({}, RidgeStart, SHIPPED_TEACHERS),
    "better teachers, start at the kernel (as shipped)": Lever({}, LoraRegressor, SHIPPED_TEACHERS),
}


@cache
def load_folds():
    """Songs of training and validation side, their valence, the frozen pass over each side, and five folds of songs."""
    sides = load_sides("artist")
    songs = pd.concat([sides[side].table for side in ("train", "validation")], ignore_index=True)
    folds = list(GroupKFold(5, shuffle=True, random_state=0).split(songs, groups=songs["artist"]))
    return songs, songs["valence"].to_numpy(), folds


@cache
def load_pass(adapted_layers: int = 4) -> lu.FrozenPass:
    """The frozen pass over these songs."""
    songs, encoder = load_folds()[0], load_sides("artist")["train"].encoder
    return lu.run_frozen(encoder, lu.chunk_lyrics(songs["lyrics"].tolist(), encoder.tokenizer), adapted_layers)


def fit_words(train: np.ndarray, held: np.ndarray, analyzer: str = "word", **changes) -> np.ndarray:
    songs, valence, _ = load_folds()
    ridge = lu.tfidf_ridge(analyzer)
    ridge[0].set_params(**changes)
    return ridge.fit(songs["lyrics"][train], valence[train]).predict(songs["lyrics"][held])


def fit_text(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    songs, valence, _ = load_folds()
    return lu.text_ridge().fit(songs["lyrics"][train], valence[train]).predict(songs["lyrics"][held])


def fit_form(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Ridge regression on four numbers a song, no word among them."""
    songs, valence, _ = load_folds()
    form = lu.text_ridge()[0].transformer_list[1][1]  # without the letters before it
    model = make_pipeline(form, RidgeCV()).fit(songs["lyrics"][train], valence[train])
    return model.predict(songs["lyrics"][held])


def fit_vectors(train: np.ndarray, held: np.ndarray, pooling: str, layers: int = 1) -> np.ndarray:
    _, valence, _ = load_folds()
    vectors = load_pass().song_vectors(pooling, layers)
    return lu.frozen_ridge().fit(vectors[train], valence[train]).predict(vectors[held])


def fit_kernel(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Kernel ridge regression with a Gaussian kernel on the vectors of four layers: what a line through them misses."""
    _, valence, _ = load_folds()
    vectors = load_pass().song_vectors("distinct", 4)
    return lu.kernel_ridge(*vectors[train].shape).fit(vectors[train], valence[train]).predict(vectors[held])


def fit_constant(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    return np.full(len(held), load_folds()[1][train].mean())


def fit_blend(train, held, words: Callable, encoded: Callable, share: float = 0.5) -> np.ndarray:
    """The weighted mean of two of these methods, that on words with this share."""
    recipe = replace(BLEND, words_share=share, stretch=1)
    mean = load_folds()[1][train].mean()
    return lu.models.mix(encoded(train, held).clip(0, 1), words(train, held), mean, recipe)


def fit_pooler(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Ridge regression on BERT's own pooler, as the reported regressor read it: a layer with tanh on top of [CLS]."""
    frozen, valence = load_pass(), load_folds()[1]
    with quiet_transformers():
        pooler = AutoModel.from_pretrained(lu.encoders._minilm_folder()).pooler.dense
    states = frozen.cls @ pooler.weight.detach().numpy().T + pooler.bias.detach().numpy()
    vectors = lu.chunking.average_by_song(np.tanh(states), frozen.song_index)
    return lu.frozen_ridge().fit(vectors[train], valence[train]).predict(vectors[held])


def fit_stacked(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Words and vectors in one ridge regression; the vectors' scale lets both have about the same say."""
    songs, valence, _ = load_folds()
    table = pd.DataFrame(load_pass().song_vectors("distinct", 4)).add_prefix("vector_").assign(lyrics=songs["lyrics"])
    words, ridge = lu.tfidf_ridge()
    parts = [("words", words, "lyrics"), ("vectors", StandardScaler(), table.columns[:-1])]
    both = make_pipeline(ColumnTransformer(parts, transformer_weights={"words": 1, "vectors": 0.01}), ridge)
    return both.fit(table.iloc[train], valence[train]).predict(table.iloc[held])


fit_letters = partial(fit_words, analyzer="char_wb")
fit_three_layers = partial(fit_vectors, pooling="distinct", layers=3)
fit_four_layers = partial(fit_vectors, pooling="distinct", layers=4)
LINEAR: dict[str, Callable] = {
    "constant mean": fit_constant,
    "TF-IDF, words": fit_words,
    "TF-IDF, words and pairs": lambda *fold: fit_words(*fold, ngram_range=(1, 2)),
    "TF-IDF, runs of two to four letters": fit_letters,
    "form: words, distinct words, words a line, share of distinct lines": fit_form,
    "TF-IDF of letters, and form": fit_text,
    "frozen, [CLS]": lambda *fold: fit_vectors(*fold, "cls"),
    "frozen, mean of the last layer": lambda *fold: fit_vectors(*fold, "mean"),
    "frozen, mean of the last three layers": lambda *fold: fit_vectors(*fold, "mean", 3),
    "frozen, distinct tokens of the last layer": lambda *fold: fit_vectors(*fold, "distinct"),
    "frozen, distinct tokens of the last three layers": fit_three_layers,
    "frozen, distinct tokens of the last four layers": fit_four_layers,
    "frozen, distinct tokens of the last four layers, Gaussian kernel": fit_kernel,
    "frozen, the encoder's own pooler": fit_pooler,
    "mean of TF-IDF and the last three layers": partial(fit_blend, words=fit_words, encoded=fit_three_layers),
    "mean of TF-IDF and the last four layers": partial(fit_blend, words=fit_words, encoded=fit_four_layers),
    "0.4 TF-IDF of letters, 0.6 the last four layers": partial(
        fit_blend, words=fit_letters, encoded=fit_four_layers, share=0.4
    ),
    "mean of letters with form, and the last four layers": partial(fit_blend, words=fit_text, encoded=fit_four_layers),
    "mean of letters with form, and the Gaussian kernel": partial(fit_blend, words=fit_text, encoded=fit_kernel),
    "one ridge on TF-IDF and the last four layers": fit_stacked,
}


@contextmanager
def with_lever(lever: Lever) -> Iterator[None]:
    """Its teachers and its model in place of those of lyric_utils."""
    words, encoded = lever.teachers
    with (
        patch.multiple(lu.models, text_ridge=words, kernel_ridge=encoded),
        patch.dict(lu.models.MODELS, lora=lever.regressor),
    ):
        yield


@cache
def load_targets(teachers: tuple[Callable, Callable], pooling: str, pooled_layers: int, share: float) -> np.ndarray:
    """The training targets of the fold that LoRA is trained on, from these teachers."""
    songs, _, folds = load_folds()
    train = folds[FOLD_OF_LORA][0]
    vectors = load_pass().song_vectors(pooling, pooled_layers)[train]
    with with_lever(Lever(teachers=teachers)):
        return lu.models.soft_targets(songs.iloc[train], vectors, share)


def train_lora(lever: Lever) -> dict[str, object]:
    """Validation MSE of one training on one fold: after every epoch, and of the running average of its weights."""
    recipe, (_, valence, folds) = replace(LORA_TUNED, **lever.changes), load_folds()
    train, held = folds[FOLD_OF_LORA]
    targets = load_targets(lever.teachers, recipe.pooling, recipe.pooled_layers, recipe.soft_targets)
    with with_lever(lever):
        model = lu.build_model(load_sides("artist")["train"].encoder, recipe)

    def read(part: np.ndarray, valence: np.ndarray) -> lu.Examples:
        frozen = part_of_pass(load_pass(recipe.adapted_layers), part)
        vectors = frozen.song_vectors(recipe.pooling, recipe.pooled_layers)
        return lu.Examples(model.rows_of_pass(frozen), valence, vectors)

    validation = read(held, valence[held])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    hook = register_optimizer_step_post_hook(lambda *_: average.update_parameters(model))
    history = lu.train(model, read(train, targets), validation)
    hook.remove()
    averaged = lu.score(validation.valence, lu.score_songs(average.module, validation.rows))["mse"]
    return {"mse_by_epoch": [round(line["validation_mse"], 5) for line in history], "averaged": round(averaged, 5)}


def load_results() -> dict[str, dict]:
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


def main() -> None:
    _, valence, folds = load_folds()
    for name in sys.argv[1:] or [*LINEAR, *LORA]:
        if name in load_results():
            continue
        if name in LINEAR:
            errors = [np.mean((LINEAR[name](*fold).clip(0, 1) - valence[fold[1]]) ** 2) for fold in folds]
            result = {"mse_of_folds": np.round(errors, 5).tolist(), "mean": round(float(np.mean(errors)), 5)}
        else:
            result = train_lora(LORA[name])
        print(name, result, flush=True)
        write_json(FILE, load_results() | {name: result})


if __name__ == "__main__":
    main()
