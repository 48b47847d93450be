"""How good are the predicted valences? Scores, intervals, errors by bin and calibration.

All take lists, arrays or Series of one finite number per song, and raise `LyricsError` where they get anything else.
"""

import math
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from lyric_utils._checks import Level, Seed, Whole, checked
from lyric_utils._files import LyricsError, describe

Resamples = Annotated[Whole, Field(ge=1, le=100_000)]
SMALLEST_VARIANCE = 1e-14  # anything below (a standard deviation of 1e-7) counts as constant


class Interval(NamedTuple):
    """A point estimate and the two ends of its bootstrap interval."""

    value: float
    low: float
    high: float


@checked
def score(truth, prediction) -> dict[str, float]:
    """Score predictions: mse, rmse, mae, r2, pearson and spearman, defined as in scikit-learn and scipy.

    mse, rmse and mae are >= 0 (lower is better); r2 is <= 1, and 0 for the mean of `truth`; the correlations lie in
    [-1, 1]. r2 is nan when `truth` is constant, the correlations when either side is.
    """
    terms = _score_terms(*_columns(truth=truth, prediction=prediction))
    return _scores_from_sums(terms.sum().to_frame().T).iloc[0].to_dict()


@checked
def score_with_intervals(
    truth, prediction, groups=None, resamples: Resamples = 1000, seed: Seed | None = 42, level=0.95
) -> pd.DataFrame:
    """Score predictions with percentile bootstrap intervals (Efron and Tibshirani, 1993, chapter 13).

    groups: one name per song, usually the artist. The songs of one artist are not independent, so whole groups are
    resampled (the cluster bootstrap; Field and Welsh, 2007); without it, single songs are. The ranks behind spearman
    are computed once, on all songs. Returns a DataFrame: index the metrics of `score`, columns value, low, high.
    """
    terms = _score_terms(*_columns(truth=truth, prediction=prediction))
    draws = _scores_from_sums(resample_sums(terms, groups, resamples, seed))
    rows = [percentile_interval(value, draws[metric], level) for metric, value in score(truth, prediction).items()]
    return pd.DataFrame(rows, draws.columns.rename("metric"))


@checked
def paired_difference(
    truth, prediction, reference, groups=None, resamples: Resamples = 1000, seed: Seed | None = 42, level=0.95
) -> Interval:
    """MSE of `prediction` minus MSE of `reference`, with both scored on the same songs in every resample.

    Negative values favour `prediction`; an interval that excludes zero means that the test songs are enough to tell.
    Pairing removes the noise that both share: songs that are hard for every model. groups: see `score_with_intervals`.
    """
    truth, prediction, reference = _columns(truth=truth, prediction=prediction, reference=reference)
    difference = (prediction - truth) ** 2 - (reference - truth) ** 2
    sums = resample_sums(pd.DataFrame({"songs": 1.0, "difference": difference}), groups, resamples, seed)
    return percentile_interval(difference.mean(), sums["difference"] / sums["songs"], level)


@checked
def error_by_bin(truth, prediction, values, bins) -> pd.DataFrame:
    """Show where a model errs: MSE and bias (mean of prediction - truth) by valence, length or number of chunks.

    values: one number per song. bins: increasing edges that cover all values, the last may be np.inf; a bin includes
    its lower edge, and only the last bin its upper one.
    Returns a DataFrame: index bin (its label), columns songs, mse, bias (nan for a bin without songs).
    """
    truth, prediction, values = _columns(truth=truth, prediction=prediction, values=values)
    bins, lowest, highest = np.asarray(bins, dtype=float), values.min(), values.max()
    if len(bins) < 2 or not (np.diff(bins) > 0).all() or lowest < bins[0] or highest > bins[-1]:
        raise LyricsError(f"bins must be two or more increasing edges; {lowest:g} to {highest:g} may not lie outside.")
    whole = (bins == np.round(bins)).all() and (values == np.round(values)).all()  # label whole numbers 2–4, 5, 10+
    tops = [*(bins[1:-1] - 1), bins[-1]] if whole else bins[1:]
    labels = [f"{low:g}" if low == top else f"{low:g}–{top:g}" for low, top in zip(bins[:-1], tops, strict=True)]
    labels = [*labels[:-1], f"{bins[-2]:g}+"] if np.isinf(bins[-1]) else labels
    bin_of_song = pd.Categorical.from_codes(np.minimum(np.digitize(values, bins) - 1, len(labels) - 1), labels)
    table = pd.DataFrame({"bin": bin_of_song, "songs": 1, "mse": (prediction - truth) ** 2, "bias": prediction - truth})
    return table.groupby("bin", observed=False).agg({"songs": "sum", "mse": "mean", "bias": "mean"})


@checked
def calibration(truth, prediction, bins=10) -> pd.DataFrame:
    """Compare predictions with the truth in `bins` equally large groups of songs, from lowest to highest prediction.

    Returns a DataFrame: columns mean_prediction, mean_truth, songs. The two means of a calibrated model agree.
    """
    truth, prediction = _columns(truth=truth, prediction=prediction)
    if not 1 <= bins <= len(truth):
        raise LyricsError(f"bins is {bins}, but must lie between 1 and the number of songs, {len(truth)}.")
    parts = np.array_split(np.argsort(prediction, kind="stable"), bins)
    rows = [(prediction[part].mean(), truth[part].mean(), len(part)) for part in parts]
    return pd.DataFrame(rows, columns=["mean_prediction", "mean_truth", "songs"])


def _columns(**columns):
    """Named columns as float arrays of one length; a `LyricsError` names what is missing, infinite or no number."""
    for name, values in columns.items():
        try:
            columns[name] = values = np.asarray_chkfinite(values, dtype=float)
        except (TypeError, ValueError) as error:
            raise LyricsError(f"{name} must hold finite numbers only ({describe(error)}).") from error
    shapes = {name: values.shape for name, values in columns.items()}
    if len({*shapes.values()}) > 1 or values.ndim != 1 or values.size == 0:
        raise LyricsError(f"lists of equal lengths, not empty, are needed, but the shapes are {shapes}.")
    return columns.values()


def _score_terms(truth, prediction):
    """One row per song, with the terms whose sums give every metric; both sides centred, for precision."""
    error = prediction - truth
    terms = {"songs": np.ones(len(error)), "squared_error": error**2, "absolute_error": np.abs(error)}
    ranks = [pd.Series(side).rank().to_numpy() / len(error) for side in (truth, prediction)]
    for kind, (x, y) in {"value": (truth, prediction), "rank": ranks}.items():
        x, y = x - x.mean(), y - y.mean()
        terms |= {f"{kind}_x": x, f"{kind}_y": y, f"{kind}_x²": x * x, f"{kind}_y²": y * y, f"{kind}_xy": x * y}
    return pd.DataFrame(terms)


def _scores_from_sums(sums):
    """Turn summed terms, one row per resample, into metrics, one column each."""
    mean = sums.div(sums["songs"], axis=0)
    sides = ("value_x", "value_y", "rank_x", "rank_y")
    variance = pd.DataFrame({side: mean[f"{side}²"] - mean[side] ** 2 for side in sides})
    variance, mse = variance.where(variance > SMALLEST_VARIANCE), mean["squared_error"]
    scores = {"mse": mse, "rmse": np.sqrt(mse), "mae": mean["absolute_error"], "r2": 1 - mse / variance["value_x"]}
    for metric, kind in {"pearson": "value", "spearman": "rank"}.items():
        x, y = f"{kind}_x", f"{kind}_y"
        covariance = mean[f"{kind}_xy"] - mean[x] * mean[y]
        scores[metric] = (covariance / np.sqrt(variance[x] * variance[y])).clip(-1, 1)
    return pd.DataFrame(scores)


def resample_sums(terms, groups, resamples, seed):
    """Draw as many groups (rows without groups) as there are, with replacement; sum the terms of each resample."""
    if groups is not None:
        groups = pd.Series([] if isinstance(groups, str) else [*groups], dtype=object)
        if groups.isna().any() or len(groups) != len(terms):
            raise LyricsError(f"groups must hold a name for each of the {len(terms)} songs.")
        terms = terms.groupby(groups, sort=False).sum()
    count, values, random = len(terms), terms.to_numpy(dtype=float), np.random.default_rng(seed)
    if count < 2:
        raise LyricsError(f"a bootstrap needs two songs or groups, but got {count}.")
    weights = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(resamples))
    return pd.DataFrame([weight @ values for weight in weights], columns=terms.columns)


@checked
def percentile_interval(value, draws, level: Level) -> Interval:
    """The percentile interval of the resampled values; those that are undefined (nan) are left out."""
    return Interval(float(value), *draws.quantile([(1 - level) / 2, (1 + level) / 2]))


@checked
def conformal_width(residuals, level: Level) -> float:
    """How far below and above a prediction an interval reaches that holds the truth with at least that probability.

    residuals: absolute errors on songs that were not trained on, and among which the new song could as well have been:
    the guarantee is for songs of the same source. Of n residuals it is the ceil((n + 1) * level)-th smallest, infinite
    if there is none. Sources: Vovk et al. 2005, "Algorithmic Learning in a Random World"; Lei et al. 2018,
    "Distribution-Free Predictive Inference for Regression" (split conformal prediction).
    """
    (residuals,) = _columns(residuals=residuals)
    rank = math.ceil(round((len(residuals) + 1) * level, 9))  # 100 * 0.55 is a little more than 55
    return float(np.sort(residuals)[rank - 1]) if rank <= len(residuals) else math.inf


def format_interval(value: float, low: float, high: float, digits: int = 4) -> str:
    """Text such as "0.0933 [0.0820, 0.1061]"; empty for a score that is undefined."""
    return "" if np.isnan(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
