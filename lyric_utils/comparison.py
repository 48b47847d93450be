"""The measured results of all methods, read back from their saved predictions and put into one table."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lyric_utils.evaluation import Interval, paired_difference, score_with_intervals
from lyric_utils.songs import LyricsError

MEASURED = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "quality"
METHODS = {
    "constant": "constant mean",
    "tfidf_ridge": "TF-IDF + ridge",
    "letters_ridge": "TF-IDF of letters + ridge",
    "text_ridge": "TF-IDF of letters, form + ridge",
    "frozen_ridge": "frozen + ridge",
    "layers_ridge": "frozen, four layers + ridge",
    "kernel_ridge": "frozen, four layers + kernel ridge",
    "baseline": "baseline",
    "lora_paper": "LoRA, paper recipe",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "ridge_blend": "frozen, four layers + TF-IDF, form",
    "kernel_blend": "frozen, four layers, kernel + TF-IDF, form",
    "blend": "LoRA + TF-IDF, form",
}
READINGS = {"layers_ridge": "ridge", "kernel_ridge": "kernel ridge", "kernel_blend": "kernel ridge + TF-IDF, form"}


class Comparison(NamedTuple):
    """The predictions of several methods for the same test songs.

    Attributes:
        truth, artists: valence and artist of each test song, shape (n_songs,).
        predictions: method -> one array of shape (n_songs,) for each seed it was trained with.
    """

    truth: np.ndarray
    artists: np.ndarray
    predictions: dict[str, list[np.ndarray]]


def load_comparison(split_by: str = "artist", songs: int | None = None, folder: Path = MEASURED) -> Comparison:
    """The predictions measured by `benchmarks/quality.py`: those fitted on all training songs, or on that many.

    Args:
        split_by: "artist" (test songs of artists not trained on), "song" (split at random) or "folds" (the songs that
            are not for testing, five folds by artist, by `benchmarks/folds.py`).

    Raises:
        LyricsError: the file is missing or has no such run.
    """
    file = folder / f"{split_by}.csv"
    if not file.is_file():
        raise LyricsError(f"{file}: no such file. Measure it with: python -m benchmarks.quality")
    table = pd.read_csv(file, keep_default_na=False)
    predictions = {}
    for stem, label in METHODS.items():
        run = rf"{stem}-{songs}" if songs else stem
        columns = [name for name in table if re.fullmatch(rf"{run}(-\d\d)?", name)]  # two digits: the seed
        if columns:
            predictions[label] = [table[name].to_numpy() for name in columns]
    if not predictions:
        raise LyricsError(f"{file}: holds no run on {songs} songs.")
    return Comparison(table["valence"].to_numpy(), table["artist"].to_numpy(), predictions)


def load_encoder_comparison(split_by: str = "artist", folder: Path = MEASURED) -> Comparison:
    """Two frozen encoders of different size, read in the same ways, the larger one's measured by `larger_encoder.py`.

    Args:
        split_by: "artist" or "folds", as in `load_comparison`.

    Returns:
        A Comparison whose methods are pairs (reading, encoder).

    Raises:
        LyricsError: a file is missing.
    """
    file = folder / "larger_encoder.csv"
    if not file.is_file():
        raise LyricsError(f"{file}: no such file. Measure it with: python -m benchmarks.larger_encoder")
    minilm, table = load_comparison(split_by, folder=folder), pd.read_csv(file, keep_default_na=False)
    larger, predictions = table[table["split"] == split_by], {}
    for stem, reading in READINGS.items():
        predictions[reading, "MiniLM"] = minilm.predictions[METHODS[stem]]
        for layers in (4, 8, 12):
            predictions[reading, f"all-mpnet-base-v2, {layers} layers"] = [larger[f"{stem}-{layers}"].to_numpy()]
    return minilm._replace(predictions=predictions)


def load_curves(sizes=(300, 600, 1_200, 2_400), folder: Path = MEASURED) -> dict[str, pd.DataFrame]:
    """R2 of the methods measured on parts of the training songs: method -> DataFrame, index songs, value, low, high."""
    everything = pd.read_json(folder / "runs.json", typ="series")["artist/constant"]["songs"]
    parts = {size: compare(load_comparison(songs=size, folder=folder))["r2"] for size in sizes}
    parts[everything] = compare(load_comparison(folder=folder))["r2"]
    methods = [method for method in parts[everything].index if all(method in part.index for part in parts.values())]
    return {method: pd.DataFrame({size: part.loc[method] for size, part in parts.items()}).T for method in methods}


def compare(comparison: Comparison, reference: str | None = None) -> pd.DataFrame:
    """One line a method: MSE, R2 and Pearson's r with 95 % intervals that resample artists.

    Of a method with several seeds, values and ends of intervals are means over the seeds.

    Args:
        reference: a method; adds its MSE minus each other method's on the same songs, paired seed by seed.

    Returns:
        A DataFrame, index method, columns (metric, value / low / high), and (mse, smallest / largest) of the seeds.
    """
    truth, artists, predictions = comparison
    rows = {}
    for method, seeds in predictions.items():
        tables = [score_with_intervals(truth, prediction, artists) for prediction in seeds]
        mean = (sum(tables) / len(tables)).loc[["mse", "r2", "pearson"]]
        rows[method] = mean.stack()
        rows[method]["mse", "smallest"] = min(table.loc["mse", "value"] for table in tables)
        rows[method]["mse", "largest"] = max(table.loc["mse", "value"] for table in tables)
        if reference and method != reference:
            for part, value in difference(comparison, reference, method).items():
                rows[method]["difference", part] = value
    table = pd.DataFrame(rows).T
    parts = [*Interval._fields, "smallest", "largest"]
    columns = pd.MultiIndex.from_product([["mse", "r2", "pearson", "difference"], parts])
    return table[columns.intersection(table.columns, sort=False)]


def difference(comparison: Comparison, method: str, other: str) -> pd.Series:
    """MSE of `method` minus that of `other`: value, low, high; means over the seeds, taken in pairs."""
    truth, artists, predictions = comparison
    ours, theirs = predictions[method], predictions[other]
    pairs = [(ours[seed % len(ours)], theirs[seed % len(theirs)]) for seed in range(max(len(ours), len(theirs)))]
    intervals = [paired_difference(truth, one, two, artists)._asdict() for one, two in pairs]
    return pd.DataFrame(intervals).mean()
