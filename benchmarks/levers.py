"""How the recipe was chosen: LYRICS_DATA=songs.csv python -m benchmarks.levers [NAME ...]

Everything here is measured on the training and validation songs of the subset profile, in five folds by artist; the
test songs play no part. The linear levers (words, pooling, layers, blend) take minutes for all folds. A lever of LoRA
is one training on one fold, to be read with care. Without names all of them run, some hours on two cores; results go
to results/quality/levers.json, and what stands there is not run again.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold

import lyric_utils as lu
from benchmarks.quality import RESULTS, load_sides, part_of_pass
from lyric_utils.profiles import LORA_TUNED
from lyric_utils.songs import written_whole

FILE = RESULTS / "levers.json"
FOLD_OF_LORA = 1
LORA = {
    "LoRA as shipped": {},
    "hard labels": {"soft_targets": 0.0},
    "start at the mean": {"start": "mean"},
    "plain mean pooling": {"pooling": "mean"},
    "last layer only": {"pooled_layers": 1},
    "loss on chunks": {"loss_on": "chunk"},
    "rank 2": {"rank": 2, "alpha": 4},
    "rank 32": {"rank": 32, "alpha": 64},
    "two adapted layers": {"adapted_layers": 2, "pooled_layers": 2},
    "adapter rate 1e-4": {"learning_rate": 1e-4},
    "adapter rate 1e-3": {"learning_rate": 1e-3},
    "two epochs": {"epochs": 2},
    "four epochs": {"epochs": 4},
    "no adapter dropout": {"adapter_dropout": 0.0},
    "weight decay 0.1": {"weight_decay": 0.1},
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
    """The frozen passes over both sides, one behind the other."""
    passes = [load_sides("artist")[side].frozen(adapted_layers) for side in ("train", "validation")]
    songs_before = len(load_sides("artist")["train"].table)
    return lu.FrozenPass(
        _Joined([one.states for one in passes]),
        np.concatenate([one.cls for one in passes]),
        {pooling: np.concatenate([one.means[pooling] for one in passes], axis=1) for pooling in passes[0].means},
        np.concatenate([passes[0].song_index, passes[1].song_index + songs_before]),
    )


class _Joined:
    """Rows of several passes, one behind the other; items are read one by one."""

    def __init__(self, parts):
        self.parts, self.lengths = parts, np.concatenate([part.lengths for part in parts])
        self.starts = np.cumsum([0, *(len(part.lengths) for part in parts)])

    def read(self, items):
        return torch.cat([self._part(item).read(self._within(item)) for item in items])

    def read_weights(self, items):
        return torch.cat([self._part(item).read_weights(self._within(item)) for item in items])

    def _part(self, item):
        return self.parts[np.searchsorted(self.starts, item, side="right") - 1]

    def _within(self, item) -> np.ndarray:
        return np.array([item - self.starts[np.searchsorted(self.starts, item, side="right") - 1]])


def fit_words(train: np.ndarray, held: np.ndarray, **changes) -> np.ndarray:
    songs, valence, _ = load_folds()
    ridge = lu.tfidf_ridge()
    ridge[0].set_params(**changes)
    return ridge.fit(songs["lyrics"][train], valence[train]).predict(songs["lyrics"][held])


def fit_vectors(train: np.ndarray, held: np.ndarray, pooling: str, layers: int = 1) -> np.ndarray:
    _, valence, _ = load_folds()
    vectors = load_pass().song_vectors(pooling, layers)
    return lu.frozen_ridge().fit(vectors[train], valence[train]).predict(vectors[held])


def fit_constant(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    return np.full(len(held), load_folds()[1][train].mean())


def fit_blend(train: np.ndarray, held: np.ndarray, layers: int = 3) -> np.ndarray:
    return (fit_words(train, held).clip(0, 1) + fit_vectors(train, held, "distinct", layers).clip(0, 1)) / 2


LINEAR: dict[str, Callable] = {
    "constant mean": fit_constant,
    "TF-IDF, words": fit_words,
    "TF-IDF, words and pairs": lambda *fold: fit_words(*fold, ngram_range=(1, 2)),
    "frozen, [CLS]": lambda *fold: fit_vectors(*fold, "cls"),
    "frozen, mean of the last layer": lambda *fold: fit_vectors(*fold, "mean"),
    "frozen, mean of the last three layers": lambda *fold: fit_vectors(*fold, "mean", 3),
    "frozen, distinct tokens of the last layer": lambda *fold: fit_vectors(*fold, "distinct"),
    "frozen, distinct tokens of the last three layers": lambda *fold: fit_vectors(*fold, "distinct", 3),
    "frozen, distinct tokens of the last four layers": lambda *fold: fit_vectors(*fold, "distinct", 4),
    "mean of TF-IDF and the last three layers": fit_blend,
}


def train_lora(changes: dict) -> list[float]:
    """Validation MSE after every epoch of one training on one fold."""
    recipe, (songs, _, folds) = replace(LORA_TUNED, **changes), load_folds()
    parts = dict(zip(("train", "validation"), map(np.sort, folds[FOLD_OF_LORA]), strict=True))
    parts["test"] = parts["validation"]
    split = lu.Split(*(songs.iloc[parts[side]] for side in lu.Split._fields))
    frozen = {side: part_of_pass(load_pass(recipe.adapted_layers), part) for side, part in parts.items()}
    model = lu.build_model(load_sides("artist")["train"].encoder, recipe)
    examples = lu.make_examples(model, split, frozen)
    return [epoch["validation_mse"] for epoch in lu.train(model, examples["train"], examples["validation"])]


def main() -> None:
    results = json.loads(FILE.read_text()) if FILE.is_file() else {}
    _, valence, folds = load_folds()
    for name in sys.argv[1:] or [*LINEAR, *LORA]:
        if name in results:
            continue
        if name in LINEAR:
            errors = [np.mean((LINEAR[name](*fold).clip(0, 1) - valence[fold[1]]) ** 2) for fold in folds]
            results[name] = {"mse_of_folds": np.round(errors, 5).tolist(), "mean": round(float(np.mean(errors)), 5)}
        else:
            results[name] = {f"mse_of_fold_{FOLD_OF_LORA}_by_epoch": np.round(train_lora(LORA[name]), 5).tolist()}
        print(name, results[name], flush=True)
        with written_whole(FILE) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
