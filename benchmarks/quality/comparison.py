"""The measured results of all methods, read back from their saved predictions and put into one table."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.quality.methods import METHODS, RESULTS
from lyric_utils._files import LyricsError
from lyric_utils.evaluation import Interval, paired_difference, score_with_intervals

READERS = {  # how a frozen encoder is read when two of them are compared
    "embedding_ridge_4": "ridge",
    "nystroem_ridge": "Nyström ridge",
    "blend_nystroem": "Nyström ridge + text",
}


class Comparison(NamedTuple):
    """The predictions of several methods for the same songs; every array has shape (n_songs,)."""

    truth: np.ndarray  # valence
    artists: np.ndarray
    predictions: dict[str, list[np.ndarray]]  # label of a method -> one array per training seed


def load_comparison(split_by: str = "artist", songs: int | None = None, folder: Path = RESULTS) -> Comparison:
    """The saved predictions of the methods fitted on all training songs, or on that many.

    Args:
        split_by: "artist" (test songs of artists not trained on), "song" (split at random) or "folds" (five folds by
            artist of the other songs).

    Raises:
        LyricsError: the file is missing or has no such run.
    """
    table = _read(folder / f"{split_by}.csv", "folds" if split_by == "folds" else "measure")
    predictions = {}
    for name, method in METHODS.items():
        run = f"{name}-{songs}" if songs else name
        columns = [column for column in table if re.fullmatch(rf"{run}(-\d\d)?", column)]  # two digits: the seed
        if columns:
            predictions[method.label] = [table[column].to_numpy() for column in columns]
    if not predictions:
        raise LyricsError(f"{folder / split_by}.csv: contains no run on {songs} songs.")
    return Comparison(table["valence"].to_numpy(), table["artist"].to_numpy(), predictions)


def load_encoder_comparison(split_by: str = "artist", folder: Path = RESULTS) -> Comparison:
    """Two frozen encoders of different size, read in the same ways.

    The keys of the predictions are pairs of a reader and an encoder: all-mpnet-base-v2 with its last 4, 8 or 12 layers
    pooled, MiniLM with its last four. Arguments and errors as in `load_comparison`, but there is no random split.
    """
    truth, artists, ours = load_comparison(split_by, folder=folder)
    larger = _read(folder / "larger_encoder.csv", "larger_encoder")
    larger = larger[larger["split"] == split_by]
    predictions = {}
    for name, reader in READERS.items():
        predictions[reader, "MiniLM"] = ours[METHODS[name].label]
        for depth in (4, 8, 12):
            predictions[reader, f"all-mpnet-base-v2, {depth} layers"] = [larger[f"{name}-{depth}"].to_numpy()]
    return Comparison(truth, artists, predictions)


def _read(file: Path, program: str) -> pd.DataFrame:
    if not file.is_file():
        raise LyricsError(f"{file}: no such file. Measure it with: python -m benchmarks.quality.{program}")
    return pd.read_csv(file, keep_default_na=False)


def load_curves(sizes: tuple[int, ...] = (300, 600, 1_200, 2_400), folder: Path = RESULTS) -> dict[str, pd.DataFrame]:
    """R2 of the methods measured on parts of the training songs: label -> DataFrame, index songs, value, low, high."""
    everything = pd.read_json(folder / "runs.json", typ="series")["artist/constant"]["songs"]
    parts = {size: compare(load_comparison(songs=size, folder=folder))["r2"] for size in sizes}
    parts[everything] = compare(load_comparison(folder=folder))["r2"]
    methods = [method for method in parts[everything].index if all(method in part.index for part in parts.values())]
    return {method: pd.DataFrame({size: part.loc[method] for size, part in parts.items()}).T for method in methods}


def compare(comparison: Comparison, reference: str | None = None) -> pd.DataFrame:
    """One line per method: MSE, R2 and Pearson's r with 95% intervals that resample artists.

    For a method with several seeds, values and ends of intervals are means over the seeds.

    Args:
        reference: a method; adds its MSE minus each other method's on the same songs, paired seed by seed.

    Returns:
        A DataFrame: index label, columns (metric, value / low / high), and (mse, smallest / largest) of the seeds.
    """
    truth, artists, predictions = comparison
    rows = {}
    for method, seeds in predictions.items():
        tables = [score_with_intervals(truth, prediction, artists) for prediction in seeds]
        rows[method] = (sum(tables) / len(tables)).loc[["mse", "r2", "pearson"]].stack()
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
