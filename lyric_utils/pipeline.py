"""The whole pipeline: from a profile's source to features, and from a recipe to a trained model and its checkpoint."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import InstanceOf

from lyric_utils import checkpoints
from lyric_utils._checks import checked, validate
from lyric_utils._files import LyricsError
from lyric_utils.blend import BlendRegressor, blend_predictions, fit_blend
from lyric_utils.checkpoints import Config, Model, Results
from lyric_utils.chunking import Chunks, chunk_lyrics
from lyric_utils.distillation import TEACHERS
from lyric_utils.encoders import Encoder, load_encoder
from lyric_utils.evaluation import score
from lyric_utils.features import EncoderFeatures, extract_features
from lyric_utils.models import build_model, score_songs
from lyric_utils.profiles import Profile, Recipe
from lyric_utils.songs import Split, clean_songs, fingerprint_songs, split_songs, words_key
from lyric_utils.sources import draw_songs, load_source
from lyric_utils.training import fit, make_examples, start_accelerator

ALSO_SCALE = 0.6  # the subset's labels vary nearly twice as much with the words as those of natural spread (RESULTS)
RUNS = Path("runs")  # where a user's trainings go, relative to the working folder


class Data(NamedTuple):
    """The songs of a profile, ready to train on; `chunks` and `features` by side of the split."""

    profile: Profile
    split: Split
    encoder: Encoder
    chunks: dict[str, Chunks]
    features: dict[str, EncoderFeatures]


class Trained(NamedTuple):
    """A trained model, the course of its training (see `fit`), and its predictions of the test songs."""

    model: Model
    history: list[dict]
    prediction: np.ndarray


@checked
def prepare(profile: Profile, split: InstanceOf[Split] | None = None, adapted_layers: int = 4) -> Data:
    """Chunk the songs of a profile, or of another split, and extract features for that many layers to be trained.

    The songs of a profile are split by their table's own column `split` if it has one; prints the cleaning report.
    """
    split = split or load_split(profile)
    encoder = load_encoder(profile.encoder)
    windows, sides = (profile.max_length, profile.stride), split._asdict()
    chunks = {side: chunk_lyrics(songs["lyrics"], encoder.tokenizer, *windows) for side, songs in sides.items()}
    features = {side: extract_features(encoder, chunks[side], adapted_layers) for side in chunks}
    return Data(profile, split, encoder, chunks, features)


def load_split(profile: Profile) -> Split:
    """The songs of a profile, cleaned and split; prints the cleaning report of each table."""
    songs, report = clean_songs(load_source(profile))
    print(report)
    songs, split_by = draw_songs(songs, profile.songs, profile.seed), profile.split_by
    split = split_songs(songs, profile.seed, profile.fractions, "stored" if "split" in songs else split_by)
    if profile.also is None:
        return split
    others = load_split(replace(profile, source=profile.also, also=None))
    return split._replace(train=add_songs(split, others.train))


def add_songs(split: Split, others: pd.DataFrame, scale: float = ALSO_SCALE) -> pd.DataFrame:
    """The training songs of a split and those of another table, whose words the split does not know.

    The labels of two tables differ in spread, so the other songs' get the mean of the training songs, and `scale` of
    their distance from their own. Artists that both have are on the same side in both, if split by "artist".
    """
    known = {words_key(lyrics) for songs in split for lyrics in songs["lyrics"]}
    others = others[~others["lyrics"].map(words_key).isin(known)]
    valence = split.train["valence"].mean() + scale * (others["valence"] - others["valence"].mean())
    return pd.concat([split.train, others.assign(valence=valence.clip(0, 1))], ignore_index=True)


def train_model(recipe: Recipe, data: Data, seed: int = 42, resume_file=None, pooler=None, teachers=TEACHERS,
                **options) -> Trained:  # fmt: skip
    """Build a model, train it, let it keep its `residuals` and predict the test songs.

    pooler: see `build_model`; teachers: `soft_targets`; resume_file and options (initialise, precision): `fit`.
    """
    is_blend, windows = recipe.model == "blend", (data.profile.max_length, data.profile.stride)
    model = build_model(data.encoder, replace(recipe, model="lora") if is_blend else recipe, seed, *windows, pooler)
    examples = make_examples(model, data.split, data.features, teachers)
    history = fit(model, examples["train"], examples["validation"], resume_file, **options)
    model = fit_blend(model, data.split.train, recipe) if is_blend else model
    model.residuals = find_residuals(model, data)
    return Trained(model, history, predict_side(model, data, "test"))


def predict_side(model: Model, data: Data, side: str) -> np.ndarray:
    """Predictions of the songs on one side of the split, (n_songs,), from their features."""
    if isinstance(model, BlendRegressor):
        encoded = predict_side(model.encoder_model, data, side)
        text = model.text_model.predict(getattr(data.split, side)["lyrics"])
        return blend_predictions(encoded, text, model.mean_valence, model.recipe)
    return score_songs(model, model.inputs_from(data.features[side]), start_accelerator())


def find_residuals(model: Model, data: Data) -> list[float]:
    """The absolute errors on the validation songs, ascending, to four digits."""
    errors = data.split.validation["valence"] - predict_side(model, data, "validation")
    return sorted(errors.abs().round(4))


def save_trained(trained: Trained, data: Data, folder: str | Path) -> dict[str, float]:
    """Save a trained model as a checkpoint in place of its `resume_file_of`; returns its metrics on the test songs."""
    test, about = data.split.test, {"history": trained.history, "profile": data.profile.name}
    about["predictions"] = checkpoints.tabulate_predictions(test, data.chunks["test"].per_song, trained.prediction)
    about["metrics"] = score(test["valence"], trained.prediction)
    checkpoints.save_model(trained.model, folder, training_songs=fingerprint_songs(data.split.train), **about)
    resume_file_of(folder).unlink(missing_ok=True)
    return about["metrics"]


def resume_file_of(folder: str | Path) -> Path:
    """Where the state of an unfinished training into `folder` is kept: beside it."""
    return Path(os.path.abspath(folder) + ".resume.pt")


@checked
def train_or_load(data: InstanceOf[Data], name: str, retrain: bool | None = None) -> tuple[Model, Results]:
    """The model of one of the profile's recipes: loaded if it was trained on these very songs, trained otherwise.

    Looks among the shipped checkpoints and in `runs/PROFILE/NAME`, where a new training is saved; prints what it did.
    An interrupted training goes on after its last finished epoch when this is called again. retrain: train even where a
    checkpoint exists; None: if the environment variable `LYRICS_RETRAIN` is 1. Raises `LyricsError` if there is no such
    recipe, or a checkpoint or the state of a training is damaged.
    """
    if name not in data.profile.recipes:
        raise LyricsError(f"{name!r} is not a recipe of this profile: use one of {', '.join(data.profile.recipes)}.")
    recipe, folder = data.profile.recipes[name], RUNS / data.profile.name / name
    retrain = os.environ.get("LYRICS_RETRAIN") == "1" if retrain is None else retrain
    resume_file = resume_file_of(folder)
    if not retrain and not resume_file.is_file():
        for known in (checkpoints.shipped_folder(name), folder):
            results = checkpoints.load_results(known) if (known / "config.json").is_file() else None
            if results and _are_of(results, data, recipe):
                print(f"{name}: loaded from {known.parent.name}/{known.name}, trained on these songs before")
                return checkpoints.load_model(known, data.encoder), results
    try:
        trained = train_model(recipe, data, data.profile.seed, resume_file)
    except KeyboardInterrupt:
        kept = "the finished epochs are kept, run this again to go on" if resume_file.is_file() else "nothing is kept"
        print(f"{name}: interrupted; {kept}")
        raise
    save_trained(trained, data, folder)
    epochs, seconds = len(trained.history), sum(epoch["seconds"] for epoch in trained.history)
    print(f"{name}: trained for {epochs} epoch{'s' * (epochs > 1)} in {seconds:.0f} s, saved in {folder.as_posix()}")
    return trained.model, checkpoints.load_results(folder)


def _are_of(results: Results, data: Data, recipe: Recipe) -> bool:
    """Whether a checkpoint is of these training and test songs of this profile, and of this recipe and seed."""
    config, (train, _, test) = validate(Config, results.config, "config.json"), data.split
    found = config.profile, config.seed, config.recipe, results.config.get("training_songs")
    expected = data.profile.name, data.profile.seed, recipe, fingerprint_songs(train)
    return found == expected and results.predictions["row"].tolist() == test["row"].tolist()
