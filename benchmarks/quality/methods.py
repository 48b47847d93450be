"""The table of methods, and the songs they are measured on. A new method is an entry of `METHODS`.

Every program in this folder and every table and figure of results reads it.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

import lyric_utils as lu
from lyric_utils import classical
from lyric_utils._files import LyricsError, replacing
from lyric_utils.blend import blend_predictions
from lyric_utils.chunking import Chunks
from lyric_utils.pipeline import ALSO_SCALE, Data, Trained, add_songs, load_split, train_model
from lyric_utils.profiles import BASELINE, BLEND, FULL, LORA_PAPER, LORA_TUNED, Recipe, load_profile
from lyric_utils.songs import Split, artist_key
from lyric_utils.sources import cache_folder

RESULTS = Path(__file__).parent / "results"
MPNET = os.environ.get("LYRICS_MPNET", "sentence-transformers/all-mpnet-base-v2")  # 12 x 768; or a folder with it
TABLES = ("billboard", "subset")  # profiles whose songs are test songs; "both" trains on those of both
LAST_YEAR = 1999  # of the songs to learn from, in the protocol "time"
TEXT = "char_structure_ridge"  # what a blend averages with a method that reads the encoder


@dataclass(frozen=True)
class Problem:
    """Songs to learn from and songs to predict, of both tables."""

    trained_on: str  # a profile
    songs: pd.DataFrame  # all of them, see `load_songs`
    encoder: object
    chunks: object  # of all these songs
    features: Callable  # adapted layers -> EncoderFeatures of all these songs
    train: np.ndarray  # ascending positions in `songs`, as the next two
    validation: np.ndarray  # to choose epochs on
    held: np.ndarray  # to predict
    targets: np.ndarray  # valence of the training songs, on the scale that is learned

    @property
    def held_index(self) -> pd.MultiIndex:
        """Table and row of the held songs, see `read_predictions`."""
        return self.songs.iloc[self.held].set_index(["table", "row"]).index

    @property
    def held_of_own_table(self) -> "Problem":
        """The same problem, its held songs those of the profile's own table alone."""
        own = self.songs["table"].iloc[self.held] == load_profile(self.trained_on).source
        return replace(self, held=self.held[own.to_numpy()])

    @property
    def mean_valence(self) -> float:
        return self.targets.mean()

    @property
    def own_mean(self) -> np.ndarray:
        """For each held song, the mean valence of the training songs of its table, or of all if none was of it."""
        learned, held = (self.songs.iloc[side] for side in (self.train, self.held))
        means = learned.groupby("table")["valence"].mean()
        return held["table"].map(means).fillna(self.mean_valence).to_numpy()

    def on_own_scale(self, prediction: np.ndarray) -> np.ndarray:
        """Predictions of the held songs, each moved to the scale of its own table's labels."""
        songs = self.songs[["table", "valence"]]
        if self.trained_on != "both":
            return prediction.clip(0, 1)
        first = songs.iloc[self.train].groupby("table")["valence"].mean()["billboard"]
        scale = np.where(songs["table"].iloc[self.held] == "billboard", 1, ALSO_SCALE)
        return (self.own_mean + (prediction - first) / scale).clip(0, 1)

    def fit(self, model, inputs: np.ndarray) -> np.ndarray:
        """Fit a model of scikit-learn on the training songs' inputs and predict the held songs, (n_held,)."""
        return model.fit(inputs[self.train], self.targets).predict(inputs[self.held])

    def data(self, adapted_layers: int) -> Data:
        """The same songs as `lyric_utils.pipeline.train_model` takes them; the held songs are its test songs."""
        tables, chunks, features = [], {}, {}
        for name, side in zip(Split._fields, (self.train, self.validation, self.held), strict=True):
            items = np.flatnonzero(np.isin(self.chunks.song_index, side))
            song_index = np.searchsorted(side, self.chunks.song_index[items])
            tables.append(self.songs.iloc[side].reset_index(drop=True))
            chunks[name] = Chunks([self.chunks.input_ids[item] for item in items], song_index)
            features[name] = self.features(adapted_layers).subset(side)
        split = Split(tables[0].assign(valence=self.targets), *tables[1:])
        return Data(load_profile(self.trained_on), split, self.encoder, chunks, features)


@dataclass(frozen=True)
class Method:
    """One method; it has one of `fit`, `recipe` and `encoded`."""

    label: str  # its name in tables and figures
    fit: Callable[[Problem], np.ndarray] | None = None  # a simple baseline: its predictions of the held songs
    recipe: Recipe | None = None  # a trained model
    options: Mapping[str, object] = field(default_factory=dict)  # of a trained model: arguments of train_model
    make_pooler: Callable = lambda encoder, recipe: None  # of a trained model
    encoded: str | None = None  # a blend: the method whose saved predictions are averaged with those of `TEXT`
    encoder: str = "minilm"  # what it reads the songs with

    @property
    def has_seeds(self) -> bool:
        return METHODS[self.encoded].has_seeds if self.encoded else self.recipe is not None

    def predict(self, problem: Problem, saved: Callable[[str], np.ndarray]) -> np.ndarray:
        """Predictions of the held songs without training, (n_held,); `saved` gives those of another method by its name.

        Each is in [0, 1], on the scale of its own table.
        """
        if self.fit:
            return problem.on_own_scale(self.fit(problem))
        return blend_predictions(saved(self.encoded), saved(TEXT), problem.own_mean, BLEND)

    def train(self, problem: Problem, seed: int = 42, resume_file: Path | None = None) -> Trained:
        """Train by the recipe: model, history and prediction."""
        data, pooler = problem.data(self.recipe.adapted_layers), self.make_pooler(problem.encoder, self.recipe)
        return train_model(self.recipe, data, seed, resume_file, pooler, **self.options)


def on_lyrics(make_model: Callable) -> Callable[[Problem], np.ndarray]:
    return lambda problem: problem.fit(make_model(), problem.songs["lyrics"].to_numpy())


def on_vectors(pooling: str, layers: int = 1, make_model=lambda *_: classical.embedding_ridge()) -> Callable:
    """Fit on pooled features; `make_model` takes the number of training songs and of dimensions."""

    def fit(problem: Problem) -> np.ndarray:
        vectors = problem.features(4).pooled(pooling, layers)
        return problem.fit(make_model(len(problem.train), vectors.shape[1]), vectors)

    return fit


METHODS = {
    "constant": Method("constant mean", lambda problem: np.full(len(problem.held), problem.mean_valence)),
    "word_tfidf_ridge": Method("word TF-IDF + ridge", on_lyrics(classical.word_tfidf_ridge)),
    "char_structure_ridge": Method("character TF-IDF, structure + ridge", on_lyrics(classical.char_tfidf_ridge)),
    "embedding_ridge": Method("frozen encoder + ridge", on_vectors("mean")),
    "nystroem_ridge": Method(
        "frozen encoder, four layers + Nyström ridge", on_vectors("distinct", 4, classical.nystroem_ridge)
    ),
    "baseline": Method("baseline MLP", recipe=BASELINE),
    "lora_paper": Method("LoRA, paper recipe", recipe=LORA_PAPER),
    "lora": Method("LoRA", recipe=LORA_TUNED),
    "full": Method("full fine-tuning", recipe=FULL),
    "blend": Method("blend: LoRA + text", encoded="lora"),
    "nystroem_mpnet": Method(
        "MPNet, four layers + Nyström ridge", on_vectors("distinct", 4, classical.nystroem_ridge), encoder=MPNET
    ),
    "lora_mpnet": Method("MPNet, LoRA", recipe=LORA_TUNED, encoder=MPNET),
    "blend_mpnet": Method("MPNet, blend: LoRA + text", encoded="lora_mpnet"),
}


@cache
def load_songs() -> pd.DataFrame:
    """The cleaned songs of both tables, with the columns `table`, `side` (by hash of the artist) and `fold`.

    A fold is one of five that hold all songs of an artist, of both tables; the test songs have none (-1).
    """
    from sklearn.model_selection import GroupKFold

    splits = {name: load_split(load_profile(name)) for name in TABLES}
    sides = [songs.assign(table=name, side=side) for name in TABLES for side, songs in splits[name]._asdict().items()]
    songs = pd.concat(sides, ignore_index=True).assign(fold=-1)
    known = np.flatnonzero(songs["side"] != "test")
    artists = songs["artist"].map(artist_key).iloc[known]
    for fold, (_, held) in enumerate(GroupKFold(5, shuffle=True, random_state=0).split(known, groups=artists)):
        songs.loc[known[held], "fold"] = fold
    return songs


@cache
def load_features(name: str) -> tuple:
    """Encoder, chunks, and a function that gives the features, of `load_songs`."""
    encoder = lu.load_encoder(name)
    chunks = lu.chunk_lyrics(load_songs()["lyrics"], encoder.tokenizer)
    return encoder, chunks, cache(partial(lu.extract_features, encoder, chunks))


def make_problem(trained_on: str, encoder: str, train, validation, held) -> Problem:
    """What a profile learns from, its songs in the masks `train` and `validation`; and the `held` of both tables."""
    songs = load_songs().assign(position=range(len(load_songs())))
    own = songs["table"] == load_profile(trained_on).source
    learned = songs[train & own]
    if trained_on == "both":
        learned = add_songs(Split(learned, songs[validation & own], songs[held]), songs[train & ~own])
    sides = learned["position"].to_numpy(), np.flatnonzero(validation & own), np.flatnonzero(held)
    return Problem(trained_on, songs, *load_features(encoder), *sides, learned["valence"].to_numpy())


def problems(protocol: str, trained_on: str, encoder: str = "minilm") -> list[Problem]:
    """What is trained in a protocol.

    "test": on the training songs, tested once on the test artists. "folds": five times on four fifths of the other
    songs, tested on the rest. "song": on songs drawn at random, so that artists stand on both sides. "time": on songs
    up to 1999, tested on later ones by other artists.
    """
    songs = load_songs()
    if protocol == "test":
        return [make_problem(trained_on, encoder, *(songs["side"] == side for side in Split._fields))]
    if protocol == "folds":
        folds, known = songs["fold"], songs["side"] != "test"
        return [
            make_problem(trained_on, encoder, known & (folds != fold), folds == fold, folds == fold)
            for fold in range(5)
        ]
    if protocol == "song":
        draw = pd.Series(np.random.default_rng(42).uniform(size=len(songs)))
        return [make_problem(trained_on, encoder, draw < 0.8, draw.between(0.8, 0.9, "left"), draw >= 0.9)]
    later = songs["year"] > LAST_YEAR
    artists = songs["artist"].map(artist_key)
    others, validated = ~artists.isin(artists[later]), songs["side"] == "validation"
    return [make_problem(trained_on, encoder, others & ~validated, others & validated, later)]


def column_of(name: str, trained_on: str, seed: int = 42) -> str:
    """The column of a method's predictions: name, what it was trained on, and its seed if it has one."""
    return f"{name}@{trained_on}" + (f"-{seed}" if METHODS[name].has_seeds else "")


def read_predictions(protocol: str) -> pd.DataFrame:
    """The table results/PROTOCOL.csv, indexed by table and row; where it is missing, a new one without predictions."""
    file = RESULTS / f"{protocol}.csv"
    if file.is_file():
        return pd.read_csv(file, keep_default_na=False, na_values=[""], index_col=["table", "row"])
    songs = load_songs()
    held = np.sort(np.concatenate([problem.held for problem in problems(protocol, "billboard")]))
    return songs.loc[held, ["table", "row", "artist", "year", "valence"]].set_index(["table", "row"])


def write_predictions(protocol: str, column: str, problem: Problem, predicted: np.ndarray) -> None:
    """Add predictions of the held songs to results/PROTOCOL.csv; other processes may do so at the same time."""
    with FileLock(cache_folder() / f"{protocol}.lock"):
        table = read_predictions(protocol)
        if strange := len(problem.held_index.difference(table.index)):
            raise LyricsError(
                f"{RESULTS / protocol}.csv: measured on other songs, {strange} are not in it. Move it away."
            )
        table.loc[problem.held_index, column] = predicted.round(4)
        with replacing(RESULTS / f"{protocol}.csv") as temporary:
            table.to_csv(temporary, float_format="%.6g")
