"""Every method on five folds by artist: LYRICS_DATA=songs.csv python -m benchmarks.folds [METHOD ...]

The songs are those of training and validation of the subset profile, the folds those of `benchmarks.levers`; the test
songs play no part. Each song is predicted by a model that has seen no song of its artist, which makes four times the
songs and artists of the test set to compare methods on, and it is where recipes and the blend's weights are chosen.
The baseline picks its best epoch on the held fold itself, which flatters it. Predictions go to
results/quality/folds.csv, fold by fold (no lyrics); what stands there is not run again.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

import lyric_utils as lu
from benchmarks.levers import (
    LORA,
    Lever,
    fit_constant,
    fit_four_layers,
    fit_kernel,
    fit_letters,
    fit_text,
    fit_vectors,
    fit_words,
    load_folds,
    load_pass,
    with_lever,
)
from benchmarks.quality import RESULTS, load_sides, part_of_pass
from lyric_utils.profiles import BASELINE, BLEND, LORA_TUNED, Recipe
from lyric_utils.songs import written_whole

FILE = RESULTS / "folds.csv"


def fit_recipe(train: np.ndarray, held: np.ndarray, recipe: Recipe, seed: int = 42) -> np.ndarray:
    """Train by a recipe on some songs, predict others."""
    songs = load_folds()[0]
    split = lu.Split(train=songs.iloc[train], validation=songs.iloc[held], test=songs.iloc[held])
    learned, scored = (part_of_pass(load_pass(recipe.adapted_layers), part) for part in (train, held))
    model = lu.build_model(load_sides("artist")["train"].encoder, recipe, seed)
    examples = lu.make_examples(model, split, {"train": learned, "validation": scored, "test": scored})
    lu.train(model, examples["train"], examples["validation"], seed)
    return lu.score_songs(model, examples["test"].rows)


def fit_lever(train: np.ndarray, held: np.ndarray, lever: Lever) -> np.ndarray:
    """A change to the recipe that most levers were tried on."""
    with with_lever(lever):
        return fit_recipe(train, held, replace(LORA_TUNED, **lever.changes))


def fit_blend(train: np.ndarray, held: np.ndarray, encoded: str = "lora-42") -> np.ndarray:
    """What stands in two columns, put together as in the shipped blend."""
    table, mean = load_predictions(), load_folds()[1][train].mean()
    return lu.models.mix(table.loc[held, encoded], table.loc[held, "text_ridge"], mean, BLEND).to_numpy()


METHODS: dict[str, Callable] = {
    "constant": fit_constant,
    "tfidf_ridge": fit_words,
    "letters_ridge": fit_letters,
    "text_ridge": fit_text,
    "frozen_ridge": lambda *fold: fit_vectors(*fold, "mean"),
    "layers_ridge": fit_four_layers,
    **{f"baseline-{seed}": lambda *fold, seed=seed: fit_recipe(*fold, BASELINE, seed) for seed in (42, 43, 44)},
    "lora-42": lambda *fold: fit_recipe(*fold, LORA_TUNED),
    "lora, earlier recipe": partial(fit_lever, lever=LORA["no change"]),
    "lora, earlier recipe, hard labels": partial(fit_lever, lever=LORA["hard labels"]),
    "lora, earlier recipe, better teachers": partial(fit_lever, lever=LORA["better teachers"]),
    "blend-42": fit_blend,
    "ridge_blend": partial(fit_blend, encoded="layers_ridge"),
    "kernel_ridge": fit_kernel,
    "kernel_blend": partial(fit_blend, encoded="kernel_ridge"),
}


def load_predictions() -> pd.DataFrame:
    """One song a line: row, artist, valence, fold, and the predictions that stand so far."""
    if FILE.is_file():
        return pd.read_csv(FILE, keep_default_na=False, na_values=[""])  # an artist may be called NA
    songs, _, folds = load_folds()
    table = songs[["row", "artist", "valence"]].assign(fold=0)
    for fold, (_, held) in enumerate(folds):
        table.loc[held, "fold"] = fold
    return table


def main() -> None:
    _, _, folds = load_folds()
    for name in sys.argv[1:] or METHODS:
        for fold, (train, held) in enumerate(folds):
            table = load_predictions()
            if name in table and table.loc[held, name].notna().all():
                continue
            prediction = METHODS[name](train, held).clip(0, 1).round(5)
            table = load_predictions()
            table.loc[held, name] = prediction
            with written_whole(FILE) as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g")
            error = ((table.loc[held, name] - table.loc[held, "valence"]) ** 2).mean()
            print(f"{name}, fold {fold}: MSE {error:.5f}", flush=True)


if __name__ == "__main__":
    main()
