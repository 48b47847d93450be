"""The measured results of all methods, read back from their saved predictions and put into tables."""

import re
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.quality import methods
from benchmarks.quality.methods import METHODS, TABLES
from lyric_utils._files import LyricsError
from lyric_utils.evaluation import Interval, paired_difference, score, score_with_intervals


class Comparison(NamedTuple):
    """The predictions of several methods for the same songs; every array has shape (n_songs,)."""

    truth: np.ndarray  # valence
    artists: np.ndarray
    predictions: dict[str, list[np.ndarray]]  # label of a method -> one array per training seed


def load_comparison(protocol: str = "test", table: str = "billboard", trained_on: str | None = None) -> Comparison:
    """The saved predictions of the methods measured so far, for the songs of one table.

    Args:
        protocol: "test", "folds", "song" or "time", see `methods.problems`.
        table: "billboard" or "subset"; "time" and "song" are of "billboard".
        trained_on: "billboard", "subset" or "both"; None: that table.

    Raises:
        LyricsError: the file is missing or has no such run.
    """
    file, trained_on = methods.RESULTS / f"{protocol}.csv", trained_on or table
    if not file.is_file():
        raise LyricsError(f"{file}: no such file. Measure it with: python -m benchmarks.quality.measure {protocol}")
    songs, predictions = methods.read_predictions(protocol).query("table == @table"), {}
    for name, method in METHODS.items():
        columns = [column for column in sorted(songs) if re.fullmatch(rf"{name}@{trained_on}(-\d+)?", column)]
        if seeds := [songs[column].to_numpy() for column in columns if songs[column].notna().all()]:
            predictions[method.label] = seeds
    if songs.empty or not predictions:
        raise LyricsError(f"{file}: no method was trained on {trained_on!r} and tested on {table!r}.")
    return Comparison(songs["valence"].to_numpy(), songs["artist"].to_numpy(), predictions)


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
        if reference in predictions and method != reference:
            for part, value in difference(comparison, reference, method).items():
                rows[method]["difference", part] = value
    columns = [*product(["mse", "r2", "pearson", *["difference"] * bool(reference)], Interval._fields)]
    columns[3:3] = product(["mse"], ["smallest", "largest"])
    return pd.DataFrame(rows).T.reindex(columns=pd.MultiIndex.from_tuples(columns))


def difference(comparison: Comparison, method: str, other: str) -> pd.Series:
    """MSE of `method` minus that of `other`: value, low, high; means over the seeds, taken in pairs."""
    truth, artists, predictions = comparison
    ours, theirs = predictions[method], predictions[other]
    pairs = [(ours[seed % len(ours)], theirs[seed % len(theirs)]) for seed in range(max(len(ours), len(theirs)))]
    intervals = [paired_difference(truth, one, two, artists)._asdict() for one, two in pairs]
    return pd.DataFrame(intervals).mean()


def transfer_table(labels: list[str]) -> pd.DataFrame:
    """What is learned from one table and tested on another, means over the seeds.

    Returns:
        A DataFrame: index (label, trained on), columns ("r2" / "pearson", tested on, "test" / "folds").
    """
    rows = {}
    for trained_on, table, protocol in product([*TABLES, "both"], TABLES, ("test", "folds")):
        truth, _, predictions = load_comparison(protocol, table, trained_on)
        for label in filter(predictions.get, labels):
            means = pd.DataFrame([score(truth, prediction) for prediction in predictions[label]]).mean()
            row = rows.setdefault((label, trained_on), {})
            row |= {(metric, table, protocol): means[metric] for metric in ("r2", "pearson")}
    found = pd.DataFrame(rows).T.sort_index(axis=1, level=0, ascending=False, sort_remaining=False)
    return found.reindex(labels, level=0)


def time_table(trained_on: str = "billboard") -> pd.DataFrame:
    """Songs of later years, predicted by what earlier ones taught: their order, and their level; of the first seed.

    Returns:
        A DataFrame: index label, columns r2, pearson, mean_prediction, mean_truth, slope (of the truth by prediction).
    """
    truth, _, predictions = load_comparison("time", "billboard", trained_on)
    rows = {}
    for label, [prediction, *_] in predictions.items():
        found = score(truth, prediction)
        means = {"mean_prediction": prediction.mean(), "mean_truth": truth.mean()}
        slope = found["pearson"] * truth.std() / prediction.std()
        rows[label] = {"r2": found["r2"], "pearson": found["pearson"], **means, "slope": slope}
    return pd.DataFrame(rows).T
