"""The best that any model of lyrics can do: what varies under equal words, no model of words can predict."""

import numpy as np
import pandas as pd

from lyric_utils.evaluation import Interval, percentile_interval, resample_sums


def noise_ceiling(valences, artists, resamples: int = 1000, seed: int = 42, level: float = 0.95) -> Interval:
    """Estimate the highest R2 that a model can reach when all it reads is the words; the interval resamples texts.

    valences, artists: for every text, the valences and artists of the recordings with these very words (most texts have
    one). An artist's recordings of one text are averaged and count as one, so that only different artists show how much
    valence varies when the words are the same.

    The ceiling is 1 - (pooled variance within texts recorded more than once, as in one-way analysis of variance) /
    (variance of all recordings), and the least possible MSE is (1 - ceiling) * variance of the truth. It assumes that
    texts recorded once would vary as much. A target averaged over k recordings has 1/k of the noise, and so a somewhat
    higher ceiling.
    """
    counts = [len(values) for values in valences]
    table = pd.DataFrame({"text": np.repeat(np.arange(len(counts)), counts), "valence": np.concatenate(valences)})
    table["valence"] -= table["valence"].mean()
    table["artist"] = np.concatenate(artists)
    table = table.groupby(["text", "artist"], as_index=False)["valence"].mean()
    by_text = table.assign(square=table["valence"] ** 2).groupby("text")
    texts = by_text[["valence", "square"]].sum().assign(recordings=by_text.size(), spare=by_text.size() - 1)
    texts["within"] = by_text["valence"].var().fillna(0) * texts["spare"]

    def ceiling(sums: pd.DataFrame) -> pd.Series:
        within = sums["within"] / sums["spare"].where(sums["spare"] > 0)
        total = (sums["square"] - sums["valence"] ** 2 / sums["recordings"]) / (sums["recordings"] - 1)
        return 1 - within / total

    value = ceiling(texts.sum().to_frame().T).iloc[0]
    return percentile_interval(value, ceiling(resample_sums(texts, None, resamples, seed)), level)
