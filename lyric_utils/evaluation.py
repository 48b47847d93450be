"""How good are the predicted valences? Scores, bootstrap intervals, the noise ceiling and mood classes.

Every function takes plain sequences (lists, arrays or Series) with one value per song, and raises `LyricsError`
when they are empty, differ in length or contain a missing value.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from lyric_utils._files import LyricsError

SMALLEST_VARIANCE = 1e-14  # anything below (a standard deviation of 1e-7) counts as constant


class Interval(NamedTuple):
    """A point estimate and the two ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def score(truth, prediction) -> dict[str, float]:
    """Score predictions: mse, rmse, mae, r2, pearson and spearman, defined as in scikit-learn and scipy.

    mse, rmse and mae are >= 0 (lower is better); r2 is <= 1, and 0 for the mean of `truth`; the correlations lie in
    [-1, 1]. r2 is nan when `truth` is constant, the correlations when either side is.
    """
    terms = _score_terms(*_columns(truth=truth, prediction=prediction))
    return _scores_from_sums(terms.sum().to_frame().T).iloc[0].to_dict()


def score_with_intervals(truth, prediction, groups=None, resamples=1000, seed=42, level=0.95) -> pd.DataFrame:
    """Score predictions with percentile bootstrap intervals (Efron and Tibshirani, 1993, chapter 13).

    groups: one name per song, usually the artist. The songs of one artist are not independent, so whole groups are
    resampled (the cluster bootstrap; Field and Welsh, 2007); without it, single songs are. The ranks behind spearman
    are computed once, on all songs.

    Returns a DataFrame: index the metrics of `score`, columns value, low, high.
    """
    terms = _score_terms(*_columns(truth=truth, prediction=prediction))
    draws = _scores_from_sums(_resampled_sums(terms, groups, resamples, seed))
    rows = {metric: _interval(value, draws[metric], level) for metric, value in score(truth, prediction).items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=Interval._fields).rename_axis("metric")


def paired_difference(truth, prediction, reference, groups=None, resamples=1000, seed=42, level=0.95) -> Interval:
    """MSE of `prediction` minus MSE of `reference`, with both scored on the same songs in every resample.

    Negative values favour `prediction`; an interval that excludes zero means that the test songs are enough to tell.
    Pairing removes the noise that both share: songs that are hard for every model. groups: see `score_with_intervals`.
    """
    truth, prediction, reference = _columns(truth=truth, prediction=prediction, reference=reference)
    difference = (prediction - truth) ** 2 - (reference - truth) ** 2
    terms = pd.DataFrame({"songs": 1.0, "difference": difference})
    sums = _resampled_sums(terms, groups, resamples, seed)
    return _interval(difference.mean(), sums["difference"] / sums["songs"], level)


def noise_ceiling(valences, artists=None, resamples=1000, seed=42, level=0.95) -> Interval:
    """Estimate the highest R2 that a model can reach when all it reads is the words; the interval resamples texts.

    valences: for every text, the list of valences of the recordings with these very words (most texts have one).
    artists: the same lists with each recording's artist. An artist's recordings of one text are averaged and count
    as one, so that only different artists show how much valence varies when the words are the same.

    The ceiling is 1 - (pooled variance within texts recorded more than once, as in one-way analysis of variance) /
    (variance of all recordings), and the least possible MSE is (1 - ceiling) * variance of the truth. It assumes that
    texts recorded once would vary as much. A target averaged over k recordings has 1/k of the noise, and so a somewhat
    higher ceiling. Raises `LyricsError` when no text has two recordings to compare.
    """
    if not len(valences) or any(np.ndim(values) != 1 or len(values) == 0 for values in valences):
        raise LyricsError("valences must be a non-empty list of non-empty lists.")
    counts = [len(values) for values in valences]
    (flat,) = _columns(valences=np.concatenate(valences))
    table = pd.DataFrame({"text": np.repeat(np.arange(len(counts)), counts), "valence": flat - flat.mean()})
    if artists is not None:
        if [len(names) for names in artists] != counts:
            raise LyricsError("artists must name one artist for every valence, in lists of the same lengths.")
        table["artist"] = _names("artists", [name for names in artists for name in names])
        table = table.groupby(["text", "artist"], as_index=False)["valence"].mean()
    by_text = table.assign(square=table["valence"] ** 2).groupby("text")
    texts = by_text[["valence", "square"]].sum().assign(recordings=by_text.size(), spare=by_text.size() - 1)
    texts["within"] = by_text["valence"].var().fillna(0) * texts["spare"]
    if not texts["spare"].any():
        raise LyricsError("noise_ceiling needs at least one text with two recordings to compare.")

    def ceiling(sums):
        within = sums["within"] / sums["spare"].where(sums["spare"] > 0)
        total = (sums["square"] - sums["valence"] ** 2 / sums["recordings"]) / (sums["recordings"] - 1)
        return 1 - within / total.where(total > SMALLEST_VARIANCE)

    value = ceiling(texts.sum().to_frame().T).iloc[0]
    return _interval(value, ceiling(_resampled_sums(texts, None, resamples, seed)), level)


def mood_class(valence, edges=(0.25, 0.5, 0.75)) -> np.ndarray:
    """Cut valences into moods 0 .. len(edges), as an int array; a value on an edge belongs to the upper mood."""
    return np.digitize(*_columns(valence=valence), edges)


def class_scores(truth_classes, predicted_classes) -> dict[str, float]:
    """Accuracy and macro-averaged F1, both in [0, 1]; classes absent from both sides do not enter the average."""
    from sklearn.metrics import f1_score

    truth, predicted = _columns(truth_classes=truth_classes, predicted_classes=predicted_classes)
    if (truth % 1).any() or (predicted % 1).any():
        raise LyricsError("classes must be whole numbers, such as mood_class gives.")
    macro_f1 = f1_score(truth, predicted, average="macro", zero_division=0)
    return {"accuracy": float(np.mean(truth == predicted)), "macro_f1": float(macro_f1)}


def error_by_bin(truth, prediction, values, bins) -> pd.DataFrame:
    """Show where a model errs: MSE and bias (mean of prediction - truth) by valence, length or number of chunks.

    values: what to sort the songs by, one number per song. bins: increasing edges that cover all values; a bin
    includes its lower edge but not its upper one, except the last, which includes both. The last edge may be np.inf.
    Returns a DataFrame: index bin (its label), columns songs, mse, bias (nan for a bin without songs).
    """
    truth, prediction, values = _columns(truth=truth, prediction=prediction, values=values)
    bins = np.asarray(bins, dtype=float)
    if len(bins) < 2 or not (np.diff(bins) > 0).all():
        raise LyricsError("bins must be two or more increasing edges.")
    if values.min() < bins[0] or values.max() > bins[-1]:
        raise LyricsError(f"values run from {values.min():g} to {values.max():g}, outside the bins.")
    whole = (bins == np.round(bins)).all() and (values == np.round(values)).all()  # label whole numbers 2–4, 5, 10+
    tops = [*(bins[1:-1] - 1), bins[-1]] if whole else bins[1:]
    labels = [f"{low:g}" if low == top else f"{low:g}–{top:g}" for low, top in zip(bins[:-1], tops, strict=True)]
    labels = [*labels[:-1], f"{bins[-2]:g}+"] if np.isinf(bins[-1]) else labels
    bin_of_song = pd.Categorical.from_codes(np.minimum(np.digitize(values, bins) - 1, len(labels) - 1), labels)
    errors = pd.DataFrame({"bin": bin_of_song, "error": prediction - truth, "square": (prediction - truth) ** 2})
    by_bin = errors.groupby("bin", observed=False)
    return by_bin.agg(songs=("error", "size"), mse=("square", "mean"), bias=("error", "mean"))


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
    """Check named columns and return them as float arrays of one length."""
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = np.asarray(values, dtype=float)
        except (TypeError, ValueError):
            raise LyricsError(f"{name} must hold numbers only.") from None
        if arrays[name].ndim != 1 or arrays[name].size == 0:
            raise LyricsError(f"{name} must be a non-empty list of numbers, but has shape {arrays[name].shape}.")
        if not np.isfinite(arrays[name]).all():
            raise LyricsError(f"{name} holds a missing or infinite value.")
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise LyricsError(f"the lengths differ: {lengths}.")
    return list(arrays.values())


def _score_terms(truth, prediction):
    """One row per song, with the terms whose sums give every metric; both sides centred, for precision."""
    error, songs = prediction - truth, len(truth)
    terms = {"songs": np.ones(songs), "squared_error": error**2, "absolute_error": np.abs(error)}
    ranks = [pd.Series(side).rank().to_numpy() / songs for side in (truth, prediction)]
    for kind, (x, y) in {"value": (truth, prediction), "rank": ranks}.items():
        x, y = x - x.mean(), y - y.mean()
        terms |= {f"{kind}_x": x, f"{kind}_y": y, f"{kind}_xx": x * x, f"{kind}_yy": y * y, f"{kind}_xy": x * y}
    return pd.DataFrame(terms)


def _scores_from_sums(sums):
    """Turn summed terms, one row per resample, into metrics, one column each."""
    mean = sums.div(sums["songs"], axis=0)
    mse, mae = mean["squared_error"], mean["absolute_error"]
    scores = {"mse": mse, "rmse": np.sqrt(mse), "mae": mae, "r2": 1 - mse / _variance(mean, "value", "x")}
    for metric, kind in {"pearson": "value", "spearman": "rank"}.items():
        covariance = mean[f"{kind}_xy"] - mean[f"{kind}_x"] * mean[f"{kind}_y"]
        deviations = np.sqrt(_variance(mean, kind, "x") * _variance(mean, kind, "y"))
        scores[metric] = (covariance / deviations).clip(-1, 1)
    return pd.DataFrame(scores)


def _variance(mean, kind, side):
    variance = mean[f"{kind}_{side}{side}"] - mean[f"{kind}_{side}"] ** 2
    return variance.where(variance > SMALLEST_VARIANCE)


def _names(argument, names):
    names = pd.Series(list(names))
    if names.isna().any():
        raise LyricsError(f"{argument} holds a missing name.")
    return names


def _resampled_sums(terms, groups, resamples, seed):
    """Draw as many groups (rows without groups) as there are, with replacement; sum the terms of each resample."""
    if groups is not None:
        groups = _names("groups", groups)
        if len(groups) != len(terms):
            raise LyricsError(f"groups has {len(groups)} names for {len(terms)} songs.")
        terms = terms.groupby(groups, sort=False).sum()
    count, values, random = len(terms), terms.to_numpy(dtype=float), np.random.default_rng(seed)
    if count < 2 or resamples < 1:
        raise LyricsError(f"a bootstrap needs two songs or groups and one resample, but got {count} and {resamples}.")
    weights = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(resamples))
    return pd.DataFrame([weight @ values for weight in weights], columns=terms.columns)


def _interval(value, draws, level):
    """The percentile interval of the resampled values; those that are undefined (nan) are left out."""
    if not 0 < level < 1:
        raise LyricsError(f"level must lie between 0 and 1, but is {level}.")
    return Interval(float(value), *(float(draws.quantile(share)) for share in ((1 - level) / 2, (1 + level) / 2)))


def format_interval(value: float, low: float, high: float, digits: int = 4) -> str:
    """Text such as "0.0933 [0.0820, 0.1061]"; empty for a score that is undefined."""
    return "" if np.isnan(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
