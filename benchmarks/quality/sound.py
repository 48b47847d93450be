"""What words add to sound, on artists that no model has seen: python -m benchmarks.quality.sound [table]

Reads datasets/billboard_audio.csv, a table without lyrics. With `table`, it is first written anew, from the songs
(`LYRICS_DATA`, or downloaded) and from what `measure` predicted from their words. Each of the five folds is predicted
from the others, the test songs from all five. What the words predict is out of fold for the songs to learn from, too;
for a held fold, models made it for the other songs that knew the labels of this one, which only a training of its own
per pair of folds would avoid. The test songs have no such flaw. Predictions go to results/sound.csv, findings to
results/sound.json; it takes minutes on one core.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from benchmarks.common import machine, write_json
from benchmarks.quality.methods import RESULTS, load_songs, read_predictions
from lyric_utils.audio import AUDIO_FEATURES
from lyric_utils.blend import blend_predictions
from lyric_utils.checkpoints import shorten_titles
from lyric_utils.evaluation import Interval, paired_difference, percentile_interval, resample_sums, score_with_intervals
from lyric_utils.fusion import FusionRegressor, sound_features, sound_model
from lyric_utils.profiles import BLEND

TABLE = Path(__file__).resolve().parents[2] / "datasets" / "billboard_audio.csv"
WORDS = "nystroem_ridge@both", "char_structure_ridge@both"  # of results/folds.csv and results/test.csv, blended
ABOUT = ["title", "artist", "year", "valence"]
GROUPS = {  # to compare songs within
    "decade": lambda songs: (songs["year"] // 10 * 10).astype(str) + "s",
    "mode": lambda songs: songs["mode"].map({0: "minor key", 1: "major key"}),
    "energy": lambda songs: pd.qcut(songs["energy"], 3, labels=["low energy", "middle energy", "high energy"]),
}


def write_table() -> None:
    """The songs with their audio features, and what the words predict for each from songs of other artists."""
    songs = load_songs().query("table == 'billboard'").set_index("row").sort_index()
    whole = songs[["duration_ms", "key", "mode", "time_signature"]].astype(int)
    read = pd.concat([read_predictions(protocol).loc["billboard"] for protocol in ("folds", "test")]).loc[songs.index]
    mean_valence = songs["valence"][songs["fold"] >= 0].mean()
    words = blend_predictions(*(read[column].to_numpy() for column in WORDS), mean_valence, BLEND)
    table = songs.assign(**whole, words=words, title=shorten_titles(songs["title"]))[
        [*ABOUT, *AUDIO_FEATURES, "side", "fold", "words"]
    ]
    table.to_csv(TABLE, float_format="%.4g")


def read_table(file: Path = TABLE) -> pd.DataFrame:
    """Index row; `side` is train, validation or test, `fold` 0 to 4, and -1 for test songs."""
    return pd.read_csv(file, index_col="row", keep_default_na=False)


def ridge():
    return make_pipeline(FunctionTransformer(sound_features), StandardScaler(), RidgeCV(np.logspace(-1, 3, 9)))


def trees():
    return make_pipeline(FunctionTransformer(sound_features), dict(sound_model()[-1].estimators)["trees"])


def reading(make_model: Callable, *columns: str) -> Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]:
    """A way to predict songs from others by their audio features and further columns."""
    names = [*AUDIO_FEATURES, *columns]
    return lambda known, held: make_model().fit(known[names], known["valence"]).predict(held[names]).clip(0, 1)


WAYS = {
    "words": lambda known, held: held["words"],
    "sound, ridge": reading(ridge),
    "sound, boosted trees": reading(trees),
    "sound": reading(sound_model),
    "words and sound": lambda known, held: FusionRegressor().fit(known, known["words"]).predict(held, held["words"]),
    "sound and year": reading(sound_model, "year"),
    "words, sound and year": reading(sound_model, "words", "year"),
}
BOTH = "words and sound", "sound"
PAIRS = [BOTH, ("sound and year", "sound"), ("words, sound and year", "sound and year")]
NETWORK = [("network", "sound"), ("network", "words and sound"), ("network", "kernel")]


def predict_all(songs: pd.DataFrame) -> pd.DataFrame:
    """A column of predictions per way; every song is predicted from songs of other artists."""
    predictions = pd.DataFrame(index=songs.index, columns=[*WAYS], dtype=float)
    for fold in range(-1, 5):
        held = songs["fold"] == fold
        known = (songs["fold"] >= 0) & ~held
        for name, predict in WAYS.items():
            predictions.loc[held, name] = predict(songs[known], songs[held])
    return predictions


def added_r2(truth, prediction, reference, artists) -> Interval:
    """R2 of `prediction` minus that of `reference` on the same songs, with a 95% interval that resamples artists."""
    truth, prediction, reference = map(np.asarray, (truth, prediction, reference))
    centred, gain = truth - truth.mean(), (reference - truth) ** 2 - (prediction - truth) ** 2
    terms = pd.DataFrame({"songs": 1.0, "gain": gain, "sum": centred, "squares": centred**2})

    def difference(sums):
        return sums["gain"] / (sums["squares"] - sums["sum"] ** 2 / sums["songs"])

    return percentile_interval(difference(terms.sum()), difference(resample_sums(terms, artists, 1000, 42)), 0.95)


def compare(songs: pd.DataFrame, pairs: list[tuple[str, str]]) -> dict[str, dict]:
    """Of songs with their predictions: the scores of each way, and what each first of a pair adds to the second."""
    truth, artists, scores, added = songs["valence"], songs["artist"], {}, {}
    for name in [name for name in (*WAYS, "kernel", "network") if name in songs]:
        table = score_with_intervals(truth, songs[name], artists).loc[["mse", "r2", "pearson"]]
        scores[name] = {metric: list(row) for metric, row in table.iterrows()}
    for name, reference in pairs:
        columns = truth, songs[name], songs[reference], artists
        added[f"{name} - {reference}"] = {"mse": paired_difference(*columns), "r2": added_r2(*columns)}
    return {"songs": len(songs), "artists": artists.nunique(), "scores": scores, "added": added}


def disagreement(songs: pd.DataFrame) -> pd.Series:
    """Words minus sound, each as standard deviations from its mean: below zero, the words are the sadder side."""
    words, sound = (songs[name].sub(songs[name].mean()).div(songs[name].std()) for name in ("words", "sound"))
    return words - sound


def main() -> None:
    if sys.argv[1:] == ["table"]:
        write_table()
    songs = read_table()
    predictions = predict_all(songs)
    table = songs[["artist", "year", "valence"]].join(predictions.round(4))
    if (file := RESULTS / "sound_network.csv").is_file():
        table = table.join(pd.read_csv(file, index_col="row"))
    table.assign(table="billboard").set_index("table", append=True).swaplevel().to_csv(RESULTS / "sound.csv")
    is_test = songs["fold"] < 0
    apart = disagreement(table)
    places = np.concatenate([np.argsort(apart)[:12], np.argsort(apart)[:-13:-1]])
    shown = songs[ABOUT].join(predictions[["words", "sound", "words and sound"]].round(3)).assign(apart=apart.round(2))
    findings = {
        "words": WORDS,
        "folds": compare(table[~is_test].dropna(axis=1), PAIRS),
        "test": compare(table[is_test], PAIRS + (NETWORK if "network" in table else [])),
        "where": {
            name: {
                group: compare(part, [BOTH])
                for group, part in table.dropna(axis=1).groupby(group_of(songs), observed=True)
            }
            for name, group_of in GROUPS.items()
        },
        "disagree": compare(table[apart.abs() >= apart.abs().quantile(0.9)].dropna(axis=1), [BOTH]),
        "disagree_most": shown.iloc[places].reset_index().to_dict("records"),
        "machine": machine(),
    }
    write_json(RESULTS / "sound.json", findings)
    for protocol in ("folds", "test"):
        for name, scores in findings[protocol]["scores"].items():
            print(protocol, name, {metric: np.round(values, 4).tolist() for metric, values in scores.items()})
        for name, scores in findings[protocol]["added"].items():
            print(protocol, name, {metric: np.round(values, 4).tolist() for metric, values in scores.items()})


if __name__ == "__main__":
    main()
