"""The table of methods: how each is named, labelled and fitted. A new method is an entry of `METHODS`.

Every program in this folder and every table and figure of results reads it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from lyric_utils import classical
from lyric_utils._files import LyricsError, replacing
from lyric_utils.profiles import BASELINE, BLEND, FULL, LORA_PAPER, LORA_TUNED, Recipe, load_profile

RESULTS = Path(__file__).parent / "results"
TEXT = "char_structure_ridge"  # what a blend averages with a method that reads the encoder


@dataclass(frozen=True)
class Problem:
    """Songs to learn from and songs to predict."""

    songs: pd.DataFrame
    encoder: object
    chunks: object  # of all these songs
    features: Callable  # adapted layers -> EncoderFeatures of all these songs
    train: np.ndarray  # ascending positions in `songs`, as the next two
    validation: np.ndarray  # to choose epochs on
    held: np.ndarray  # to predict

    @property
    def valence(self) -> np.ndarray:
        return self.songs["valence"].to_numpy()

    @property
    def mean_valence(self) -> float:
        return self.valence[self.train].mean()

    def fit(self, model, inputs: np.ndarray) -> np.ndarray:
        """Fit a model of scikit-learn on the training songs' inputs and predict the held songs, (n_held,)."""
        return model.fit(inputs[self.train], self.valence[self.train]).predict(inputs[self.held])

    def data(self, adapted_layers: int):
        """The same songs as `lyric_utils.pipeline.train_model` takes them; the held songs are its test songs."""
        from lyric_utils.chunking import Chunks
        from lyric_utils.pipeline import Data
        from lyric_utils.songs import Split

        tables, chunks, features = [], {}, {}
        for name, side in zip(Split._fields, (self.train, self.validation, self.held), strict=True):
            items = np.flatnonzero(np.isin(self.chunks.song_index, side))
            song_index = np.searchsorted(side, self.chunks.song_index[items])
            tables.append(self.songs.iloc[side].reset_index(drop=True))
            chunks[name] = Chunks([self.chunks.input_ids[item] for item in items], song_index)
            features[name] = self.features(adapted_layers).subset(side)
        return Data(load_profile("subset"), Split(*tables), self.encoder, chunks, features)


@dataclass(frozen=True)
class Method:
    """One method; it has one of `fit`, `recipe` and `encoded`."""

    label: str  # its name in tables and figures
    fit: Callable[[Problem], np.ndarray] | None = None  # a simple baseline: its predictions of the held songs
    recipe: Recipe | None = None  # a trained model
    options: Mapping[str, object] = field(default_factory=dict)  # of a trained model: arguments of train_model
    make_pooler: Callable = lambda encoder, recipe: None  # of a trained model
    encoded: str | None = None  # a blend: the method whose saved predictions are averaged with those of `TEXT`

    @property
    def has_seeds(self) -> bool:
        return METHODS[self.encoded].has_seeds if self.encoded else self.recipe is not None

    def predict(self, problem: Problem, saved: Callable[[str], np.ndarray], seed: int = 42) -> np.ndarray:
        """Predictions of the held songs in [0, 1], (n_held,); `saved` gives those of another method by its name."""
        if self.recipe:
            return self.train(problem, seed).prediction
        if self.fit:
            return self.fit(problem).clip(0, 1)
        from lyric_utils.blend import blend_predictions

        return blend_predictions(saved(self.encoded), saved(TEXT), problem.mean_valence, BLEND)

    def train(self, problem: Problem, seed: int = 42, resume_file: Path | None = None):
        """Train by the recipe: model, history and prediction, see `lyric_utils.pipeline.Trained`."""
        from lyric_utils.pipeline import train_model

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
    "char_tfidf_ridge": Method(
        "character TF-IDF + ridge", on_lyrics(partial(classical.char_tfidf_ridge, structure=False))
    ),
    "char_structure_ridge": Method("character TF-IDF, structure + ridge", on_lyrics(classical.char_tfidf_ridge)),
    "embedding_ridge": Method("frozen encoder + ridge", on_vectors("mean")),
    "embedding_ridge_4": Method("frozen encoder, four layers + ridge", on_vectors("distinct", 4)),
    "nystroem_ridge": Method(
        "frozen encoder, four layers + Nyström ridge", on_vectors("distinct", 4, classical.nystroem_ridge)
    ),
    "baseline": Method("baseline MLP", recipe=BASELINE),
    "lora_paper": Method("LoRA, paper recipe", recipe=LORA_PAPER),
    "lora": Method("LoRA", recipe=LORA_TUNED),
    "full": Method("full fine-tuning", recipe=FULL),
    "blend_ridge": Method("blend: ridge, four layers + text", encoded="embedding_ridge_4"),
    "blend_nystroem": Method("blend: Nyström + text", encoded="nystroem_ridge"),
    "blend": Method("blend: LoRA + text", encoded="lora"),
}


@cache
def load_problem(split_by: str = "artist") -> Problem:
    """The subset profile's songs, split by "artist" or "song" as split_rows.json says; if it does not, it will."""
    import lyric_utils as lu

    profile = load_profile("subset")
    songs, _ = lu.clean_songs(lu.load_source(profile))
    file = RESULTS / "split_rows.json"
    stored = json.loads(file.read_text()) if file.is_file() else {}
    if split_by in stored:
        sides = {row: side for side, rows in stored[split_by].items() for row in rows}
        split = lu.split_songs(songs.assign(split=songs["row"].map(sides)), by="stored")
    else:
        split = lu.split_songs(songs, profile.seed, profile.fractions, split_by)
        stored[split_by] = {side: table["row"].tolist() for side, table in split._asdict().items()}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(stored) + "\n")
    songs, encoder = pd.concat(split, ignore_index=True), lu.load_encoder(profile.encoder)
    chunks = lu.chunk_lyrics(songs["lyrics"], encoder.tokenizer)
    sides = np.split(np.arange(len(songs)), np.cumsum([len(side) for side in split])[:-1])
    return Problem(songs, encoder, chunks, cache(partial(lu.extract_features, encoder, chunks)), *sides)


@cache
def load_folds() -> list[Problem]:
    """Training and validation songs of the artist split in five folds by artist; the held one is for validation too."""
    from sklearn.model_selection import GroupKFold

    whole = load_problem("artist")
    known = np.concatenate([whole.train, whole.validation])  # the first songs of the table
    folds = GroupKFold(5, shuffle=True, random_state=0).split(known, groups=whole.songs["artist"].iloc[known])
    return [replace(whole, train=train, validation=held, held=held) for train, held in folds]


def column_of(name: str, seed: int = 42, songs: int | None = None) -> str:
    """The column of a method's predictions: name, number of training songs (None: all), and seed if it has one."""
    return "-".join([name, *([str(songs)] if songs else []), *([str(seed)] if METHODS[name].has_seeds else [])])


def saved_in(table: pd.DataFrame, seed: int = 42, songs: int | None = None) -> Callable[[str], np.ndarray]:
    """What a blend is made of: the predictions of another method, by its name, of the songs in the table."""
    return lambda name: table[column_of(name, seed, songs)].to_numpy()


def read_predictions(name: str, songs: pd.DataFrame) -> pd.DataFrame:
    """The table results/NAME.csv of these songs; where it is missing, a new one with row, artist and valence."""
    file = RESULTS / f"{name}.csv"
    if not file.is_file():
        return songs[["row", "artist", "valence"]].reset_index(drop=True)
    table = pd.read_csv(file, keep_default_na=False, na_values=[""])  # an artist may be called NA
    if table["row"].tolist() != songs["row"].tolist():
        raise LyricsError(f"{file}: measured on other songs. Set LYRICS_DATA to their table, or move the results away.")
    return table


def write_predictions(name: str, table: pd.DataFrame) -> None:
    with replacing(RESULTS / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
