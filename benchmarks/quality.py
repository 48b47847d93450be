"""Every row of the results, measured: LYRICS_DATA=songs.csv python -m benchmarks.quality [NAME ...]

One run fits one method on the training songs of the subset profile and scores the test songs once. Its predictions
become a column of results/quality/SPLIT.csv (test songs in the lines, no lyrics), its cost a line of
results/quality/runs.json. What stands there is not run again, and a training that was killed goes on from its last
epoch. Without names, everything runs: all rows of the table, the seeds, the random split and the learning curve. A
name is that of a line in runs.json, say artist/lora-42. Afterwards: python -m benchmarks.analyses.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

import lyric_utils as lu
from benchmarks.common import machine, write_json
from lyric_utils.frozen import Rows, cache_folder
from lyric_utils.profiles import BLEND
from lyric_utils.songs import written_whole

RESULTS = Path(__file__).parent / "results" / "quality"
CHECKPOINTS = Path(__file__).resolve().parent.parent / "trained_models"
CURVE = (300, 600, 1_200, 2_400)


@dataclass(frozen=True)
class Run:
    """A method, and what it is fitted on: `songs` of the training songs (None: all), under a seed and a split."""

    method: str
    seed: int = 42
    songs: int | None = None
    split_by: str = "artist"

    @property
    def name(self) -> str:
        return "-".join([self.method, *([str(self.songs)] if self.songs else []), *self._seed])

    @property
    def is_shipped(self) -> bool:
        """Whether it becomes a checkpoint in trained_models: the first seed on all songs; full layers are too large."""
        first = self.split_by == "artist" and not self.songs and self.seed == 42
        return first and self.method in ("baseline", "lora", "lora_paper", "blend")

    @property
    def _seed(self) -> list[str]:
        return [] if BLENDS.get(self.method, self.method) in FLOORS else [str(self.seed)]


def constant(sides: dict, songs: np.ndarray) -> np.ndarray:
    return np.full(len(sides["test"].table), sides["train"].valence[songs].mean())


def tfidf_ridge(sides: dict, songs: np.ndarray) -> np.ndarray:
    return read_lyrics(lu.tfidf_ridge(), sides, songs)


def letters_ridge(sides: dict, songs: np.ndarray) -> np.ndarray:
    return read_lyrics(lu.tfidf_ridge("char_wb"), sides, songs)


def text_ridge(sides: dict, songs: np.ndarray) -> np.ndarray:
    """What stands beside LoRA in the blend."""
    return read_lyrics(lu.text_ridge(), sides, songs)


def frozen_ridge(sides: dict, songs: np.ndarray) -> np.ndarray:
    return read_vectors(lu.frozen_ridge(), sides, songs, "mean", 1)


def layers_ridge(sides: dict, songs: np.ndarray) -> np.ndarray:
    """The vectors that the tuned LoRA pools before it learns, read by a line."""
    return read_vectors(lu.frozen_ridge(), sides, songs, "distinct", 4)


def kernel_ridge(sides: dict, songs: np.ndarray) -> np.ndarray:
    """The same vectors, read by a curve: what the tuned LoRA starts from, but for its softened targets."""
    model = lu.kernel_ridge(len(songs), sides["train"].encoder.hidden_size)
    return read_vectors(model, sides, songs, "distinct", 4)


def read_lyrics(model, sides: dict, songs: np.ndarray) -> np.ndarray:
    """Fit a model of scikit-learn on the lyrics of some training songs, and predict the test songs."""
    train, test = (sides[side].table["lyrics"] for side in ("train", "test"))
    return model.fit(train.iloc[songs], sides["train"].valence[songs]).predict(test)


def read_vectors(model, sides: dict, songs: np.ndarray, pooling: str, layers: int) -> np.ndarray:
    """The same, on the frozen encoder's vectors of them."""
    train, test = (sides[side].frozen(4).song_vectors(pooling, layers) for side in ("train", "test"))
    return model.fit(train[songs], sides["train"].valence[songs]).predict(test)


FLOORS = {
    function.__name__: function
    for function in (constant, tfidf_ridge, letters_ridge, text_ridge, frozen_ridge, layers_ridge, kernel_ridge)
}
# what is put together with text_ridge
BLENDS = {"blend": "lora", "ridge_blend": "layers_ridge", "kernel_blend": "kernel_ridge"}
TABLE = [
    *(Run(method) for method in FLOORS),
    *(Run(method, seed) for method in ("baseline", "lora_paper", "lora", "blend", "full") for seed in (42, 43, 44)),
    Run("ridge_blend"),
    Run("kernel_blend"),
]
RANDOM_SPLIT = [Run(method, split_by="song") for method in (*FLOORS, "baseline", "lora", *BLENDS)]
CURVE_METHODS = ("tfidf_ridge", "text_ridge", "frozen_ridge", "layers_ridge", "lora", "blend")
LEARNING_CURVE = [Run(method, songs=songs) for songs in CURVE for method in CURVE_METHODS]
RUNS = [*TABLE, *RANDOM_SPLIT, *LEARNING_CURVE]


@dataclass(frozen=True)
class Side:
    """One side of a split: its songs, their chunks, and passes of the frozen encoder over them."""

    table: pd.DataFrame
    chunks: lu.Chunks
    encoder: lu.Encoder

    @property
    def valence(self) -> np.ndarray:
        return self.table["valence"].to_numpy()

    def frozen(self, adapted_layers: int) -> lu.FrozenPass:
        return lu.run_frozen(self.encoder, self.chunks, adapted_layers)


@dataclass(frozen=True)
class SomeRows:
    """Some items of other rows: what a model reads of a part of the songs."""

    rows: Rows
    items: np.ndarray
    song_index: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.rows.lengths[self.items]

    def read(self, items: np.ndarray):
        return self.rows.read(self.items[items])

    def read_weights(self, items: np.ndarray):
        return self.rows.read_weights(self.items[items])


def part_of_pass(frozen: lu.FrozenPass, songs: np.ndarray) -> lu.FrozenPass:
    """The frozen encoder's pass over some of the songs, in ascending order."""
    items = np.flatnonzero(np.isin(frozen.song_index, songs))
    song_index = np.unique(frozen.song_index[items], return_inverse=True)[1]
    rows = SomeRows(frozen.states, items, song_index)
    means = {pooling: vectors[:, items] for pooling, vectors in frozen.means.items()}
    return lu.FrozenPass(rows, frozen.cls[items], means, song_index)


@cache
def load_sides(split_by: str) -> dict[str, Side]:
    """The subset profile's songs, split by artist (as shipped) or at random by song."""
    profile = lu.load_profile("subset")
    songs, _ = lu.clean_songs(lu.load_source(profile))
    split = lu.split_songs(songs, profile.seed, profile.fractions, split_by)
    encoder = lu.load_encoder(profile.encoder)
    return {
        side: Side(table, lu.chunk_lyrics(table["lyrics"].tolist(), encoder.tokenizer), encoder)
        for side, table in split._asdict().items()
    }


def measure(run: Run) -> None:
    """Fit, score, and write both down."""
    sides, started = load_sides(run.split_by), time.perf_counter()
    everything = np.arange(len(sides["train"].table))
    songs = np.sort(np.random.default_rng(42).permutation(everything)[: run.songs]) if run.songs else everything
    cost = {}
    if run.method in FLOORS:
        prediction = FLOORS[run.method](sides, songs).clip(0, 1)
    elif run.method in BLENDS:
        table = pd.read_csv(RESULTS / f"{run.split_by}.csv")
        parts = [table[replace(run, method=part).name] for part in (BLENDS[run.method], "text_ridge")]
        prediction = lu.models.mix(*parts, sides["train"].valence[songs].mean(), BLEND).to_numpy()
        if run.is_shipped:
            ship_blend(run, sides, prediction)
    else:
        prediction, cost = train(run, sides, songs)
    record(run, sides, prediction, {"seconds": round(time.perf_counter() - started, 1), **cost})


def train(run: Run, sides: dict[str, Side], songs: np.ndarray) -> tuple[np.ndarray, dict]:
    """Train by a recipe of the profile; the predictions of the test songs, and what it took."""
    recipe = lu.load_profile("subset").recipes[run.method]
    frozen = {side: sides[side].frozen(recipe.adapted_layers) for side in sides}
    split = lu.Split(*(sides[side].table for side in lu.Split._fields))
    if run.songs:
        frozen["train"] = part_of_pass(frozen["train"], songs)
        split = split._replace(train=split.train.iloc[songs])
    model = lu.build_model(sides["train"].encoder, recipe, run.seed)
    started = time.perf_counter()
    examples = lu.make_examples(model, split, frozen)
    targets = time.perf_counter() - started
    resume_file = cache_folder() / f"{run.split_by}-{run.name}.resume.safetensors"
    history = lu.train(model, examples["train"], examples["validation"], run.seed, resume_file)
    prediction = lu.score_songs(model, examples["test"].rows)
    if run.is_shipped:
        ship(run, model, sides["test"], history, prediction)
    resume_file.unlink()
    seconds = round(targets + sum(epoch["seconds"] for epoch in history), 1)
    trained = sum(weight.numel() for weight in model.trainable_state().values())
    return prediction, {"seconds": seconds, "trained_weights": trained, "history": history}


def ship(run: Run, model: lu.models.SongRegressor, test: Side, history: list[dict], prediction: np.ndarray) -> None:
    """Save a model among the shipped checkpoints."""
    lu.save_model(
        model,
        CHECKPOINTS / run.method,
        profile="subset",
        seed=run.seed,
        history=history,
        predictions=lu.tabulate_predictions(test.table, test.chunks.per_song, prediction),
        metrics=lu.score(test.valence, prediction),
    )


def ship_blend(run: Run, sides: dict[str, Side], prediction: np.ndarray) -> None:
    """Put the shipped LoRA model, letters and form together and save them."""
    songs = sides["train"]
    lora, history = lu.load_model(CHECKPOINTS / "lora", songs.encoder), lu.load_results(CHECKPOINTS / "lora").history
    words = lu.text_ridge().fit(songs.table["lyrics"], songs.valence)
    ship(run, lu.blend(lora, words, songs.valence.mean(), BLEND), sides["test"], history, prediction)


def record(run: Run, sides: dict[str, Side], prediction: np.ndarray, cost: dict) -> None:
    """Add the predictions as a column, and the cost as a line."""
    file, test = RESULTS / f"{run.split_by}.csv", sides["test"]
    table = pd.read_csv(file) if file.is_file() else test.table[["row", "artist", "valence"]]
    with written_whole(file) as temporary:
        table.assign(**{run.name: prediction.round(5)}).to_csv(temporary, index=False, float_format="%.6g")
    lines = load_costs()
    fitted_on = run.songs or len(sides["train"].table)
    lines[f"{run.split_by}/{run.name}"] = {"songs": fitted_on, **cost, "machine": machine()}
    write_json(RESULTS / "runs.json", lines)


def load_costs() -> dict[str, dict]:
    """What each run took: "SPLIT/NAME" -> songs, seconds and, of a training, its history and trained weights."""
    file = RESULTS / "runs.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def commit_split() -> None:
    """Write the row numbers of each side of both splits, so that anyone with the public table can repeat them."""
    rows = {
        split_by: {side: content.table["row"].tolist() for side, content in load_sides(split_by).items()}
        for split_by in ("artist", "song")
    }
    write_json(RESULTS / "split_rows.json", rows, indent=None)


def main() -> None:
    """Run what was asked for and has not run yet."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    commit_split()
    wanted = set(sys.argv[1:])
    for run in RUNS:
        label = f"{run.split_by}/{run.name}"
        if label not in load_costs() and (not wanted or label in wanted):
            print(f"{label} ...", flush=True)
            measure(run)
            print(f"{label}: {load_costs()[label]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
