"""Words and sound: valence from Spotify's audio features and what a model has read in the lyrics."""

import warnings
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor, VotingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVR

from lyric_utils._checks import checked
from lyric_utils._files import LyricsError
from lyric_utils.audio import AUDIO_FEATURES, check_audio

SKEWED = {"speechiness": 1e-4, "acousticness": 1e-4, "instrumentalness": 1e-4, "liveness": 1e-4, "duration_ms": 0}
WEAK = ["instrumentalness", "liveness", "mode", "time_signature", "key_cos", "key_sin"]  # to a kernel, mostly noise


def sound_features(songs: pd.DataFrame) -> pd.DataFrame:
    """The audio features as models read them: logarithms of skewed ones, and the key as a point on the circle."""
    logs = {name: np.log(songs[name] + least) for name, least in SKEWED.items()}
    angle, known = 2 * np.pi * songs["key"] / 12, songs["key"] >= 0
    key = {"key_cos": np.cos(angle) * known, "key_sin": np.sin(angle) * known}  # the middle where it is unknown
    return songs.assign(**logs, **key).drop(columns="key")


def sound_model() -> Pipeline:
    """The mean of boosted trees and a support vector machine: a table of `AUDIO_FEATURES` -> valence.

    The table may have further columns of numbers, such as `year`. Settings: the best of some thirty on folds by artist.
    """
    trees = HistGradientBoostingRegressor(
        learning_rate=0.03, max_iter=400, max_leaf_nodes=8, l2_regularization=1.0, early_stopping=False, random_state=42
    )
    strong = ColumnTransformer([("weak", "drop", WEAK)], remainder="passthrough")
    kernel = make_pipeline(strong, StandardScaler(), SVR(C=0.3, gamma=0.05, epsilon=0.1))
    return make_pipeline(FunctionTransformer(sound_features), VotingRegressor([("trees", trees), ("kernel", kernel)]))


@runtime_checkable
class WordsModel(Protocol):
    def predict(self, lyrics: pd.Series) -> np.ndarray: ...


class FusionRegressor:
    """Late fusion by stacking: a `sound_model` that reads what another model predicts from the words as one column.

    A song that lacks an audio feature is predicted from its words alone. Sources: Wolpert 1992, "Stacked
    Generalization"; for valence Delbouys et al. 2018, "Music Mood Detection Based on Audio and Lyrics with Deep
    Neural Net".
    """

    @checked
    def __init__(self, words_model: WordsModel | None = None):
        """words_model: any fitted model of lyrics; without one, `fit` and `predict` need the words' predictions."""
        self.words_model, self.model = words_model, None

    @checked
    def fit(self, songs: pd.DataFrame, words=None) -> "FusionRegressor":
        """Learn from a song table with valence and the columns `AUDIO_FEATURES`.

        words: what is predicted from the words of each song, (n_songs,), by a model that was not trained on it (out of
        fold): otherwise the fusion trusts words too much. Without it, `words_model` predicts them, so the songs must
        then be others than those that it was trained on. Raises `LyricsError` if a column is missing, an audio feature
        is out of its range, or no song has them all.
        """
        columns, heard = self._columns(songs, words, "valence")
        if not heard.any():
            raise LyricsError("no song has all audio features. Give some that have, or predict from words alone.")
        self.words_alone = LinearRegression().fit(columns[["words"]], songs["valence"])
        self.model = sound_model().fit(columns[heard], songs["valence"][heard])
        return self

    @checked
    def predict(self, songs: pd.DataFrame, words=None) -> np.ndarray:
        """Valence of each song, (n_songs,) in [0, 1]; arguments and errors as in `fit`, but valence is not read."""
        if self.model is None:
            raise LyricsError("the fusion has learned nothing yet: call fit first.")
        columns, heard = self._columns(songs, words)
        prediction = self.words_alone.predict(columns[["words"]])
        if heard.any():
            prediction[heard] = self.model.predict(columns[heard])
        return prediction.clip(0, 1)

    def _columns(self, songs: pd.DataFrame, words, *others: str) -> tuple[pd.DataFrame, np.ndarray]:
        """The columns that the model reads, and which songs have all of them; warns of the others."""
        needed = [*AUDIO_FEATURES, *others, *(["lyrics"] if words is None else [])]
        if missing := [name for name in needed if name not in songs]:
            raise LyricsError(f"songs: column {missing[0]!r} is missing. Needed are {', '.join(needed)}.")
        if words is None and self.words_model is None:
            raise LyricsError("words are missing: give predictions of them, or make FusionRegressor(words_model).")
        words = np.asarray_chkfinite(self.words_model.predict(songs["lyrics"]) if words is None else words, dtype=float)
        if words.shape != (len(songs),):
            raise LyricsError(f"words: one prediction per song is needed, but the shape is {words.shape}.")
        columns = check_audio(songs)[[*AUDIO_FEATURES]].assign(words=words)
        heard = columns.notna().all(axis=1).to_numpy()
        if silent := int((~heard).sum()):
            warnings.warn(f"{silent:,} of {len(songs):,} songs lack audio features: words alone count", stacklevel=4)
        return columns, heard
