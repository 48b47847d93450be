"""Checkpoint folders: safetensors and small text files, a LoRA checkpoint being a standard PEFT adapter folder."""

import hashlib
import json
import os
import platform
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator, Field, InstanceOf, create_model
from safetensors.torch import load, save

from lyric_utils._checks import PathLike, Real, Seed, Share, Whole, check_tensors, checked, validate
from lyric_utils._files import LyricsError, read_file, replacing
from lyric_utils.blend import TEXT_FILE, BlendRegressor
from lyric_utils.encoders import MINILM, MINILM_HUB_NAME, Encoder, hash_encoder, hash_parameters, load_encoder
from lyric_utils.models import SongRegressor, build_model
from lyric_utils.profiles import Recipe
from lyric_utils.songs import as_cell
from lyric_utils.tables import read_rows

SHIPPED = Path(__file__).resolve().parent.parent / "trained_models"
CARD = Path(__file__).with_name("model_card.md")
HASHES = {1: hash_parameters, 2: hash_encoder}  # what `encoder_sha256` is, by version
FILES = {"config.json", "history.json", "metrics.json", "predictions.csv", "README.md", "adapter_config.json"}
# Fields of a recipe, as checkpoints of earlier versions name them.
RENAMED = {"adapter_dropout": "lora_dropout", "start": "init", "soft_targets": "distillation_weight"}
RENAMED |= {"words_share": "text_weight", "stretch": "rescale"}
PREDICTION_COLUMNS = {"row": int, "artist": str, "title": str, "words": int, "chunks": int}
PREDICTION_COLUMNS |= {"valence": float, "prediction": float}
LIBRARIES = ("numpy", "pandas", "torch", "transformers", "peft", "safetensors")
Model = InstanceOf[SongRegressor] | InstanceOf[BlendRegressor]


def _without_nan(metrics: dict) -> dict:
    return {name: None if value != value else value for name, value in metrics.items()}


def _as_today(fields: Any) -> Any:
    return {RENAMED.get(name, name): fields[name] for name in fields} if isinstance(fields, dict) else fields


Version = Annotated[Whole, Field(ge=1, le=max(HASHES))]
Residuals = Annotated[list[Share], Field(min_length=1)] | None
# What the files of a checkpoint must say; they may say more.
FIELDS = {"recipe": Annotated[Recipe, BeforeValidator(_as_today)], "version": Version, "sha256": dict[str, str]}
FIELDS |= {"encoder": str, "encoder_sha256": str, "max_length": Whole, "stride": Whole, "profile": str, "seed": Seed}
FIELDS |= {"residuals": (Residuals, None)}  # which checkpoints of earlier versions lack
Config = create_model("Config", **FIELDS)
History = list[create_model("Epoch", epoch=Whole, train_loss=Real, validation_mse=Real)]
Metrics = Annotated[dict[str, Real | None], BeforeValidator(_without_nan)]
CONTENT = {"config.json": Config, "history.json": History, "metrics.json": Metrics}


class Results(NamedTuple):
    """What a checkpoint tells without its parameters: enough to redraw every figure."""

    config: dict  # recipe, profile, seed, encoder, versions, and the fingerprint of the training songs
    history: list[dict]  # one per epoch, see `fit`
    predictions: pd.DataFrame  # one test song per line, see `PREDICTION_COLUMNS`; no lyrics
    metrics: dict  # metric -> value on the test songs


def shipped_folder(name: str) -> Path:
    """The folder of a checkpoint that comes with the project: "baseline", "lora", "lora_paper" or "blend"."""
    return SHIPPED / name


def shorten_titles(titles: pd.Series) -> pd.Series:
    """Titles cut after seven words, since a long one is often a line of the song."""
    return titles.str.replace(r"^((?:\S+\s+){6}\S+)\s.*$", r"\1 ...", regex=True)


def tabulate_predictions(songs: pd.DataFrame, chunks_per_song: np.ndarray, prediction: np.ndarray) -> pd.DataFrame:
    """Predictions and what is needed to judge them; no lyrics."""
    words = songs["lyrics"].str.split().str.len()
    names = {"artist": songs["artist"].map(as_cell), "title": shorten_titles(songs["title"]).map(as_cell)}
    songs = songs.assign(**names, words=words, chunks=chunks_per_song, prediction=prediction)
    return songs[[*PREDICTION_COLUMNS]]


@checked
def check_folder(folder: PathLike) -> None:
    """Raise `LyricsError` unless `save_model` may write this folder: a new one, an empty one, or a checkpoint alone."""
    found = {*os.listdir(folder)} if os.path.lexists(folder) else set()
    if (found and "config.json" not in found) or os.path.realpath(folder) == os.getcwd():
        raise LyricsError(f"{folder}: exists and is no checkpoint. Remove it, or give another name.")
    ours = FILES | {*_read(folder / "config.json")["sha256"]} if found else found
    if strange := found - ours:
        raise LyricsError(f"{folder}: {min(strange)} is no part of a checkpoint. Move it away, or give another name.")


@checked
def save_model(
    model: Model, folder: PathLike, *, profile: str, history: list, predictions: pd.DataFrame, metrics: dict,
    training_songs: str = "",
) -> None:  # fmt: skip
    """Write a checkpoint folder, all or nothing: parameters as safetensors, the rest as JSON, CSV and Markdown.

    profile: its name; history, predictions, metrics: see `Results`; training_songs: see `songs.fingerprint_songs`.
    Raises `LyricsError` if the folder cannot be written, or holds something else than a checkpoint.
    """
    check_folder(folder)
    validate(History, history, "history")
    validate(Metrics, metrics, "metrics")
    config = {"version": max(HASHES), "recipe": asdict(model.recipe)}
    config |= {"encoder": model.encoder.name, "encoder_sha256": hash_encoder(model.encoder)}
    config |= {"max_length": model.max_length, "stride": model.stride, "profile": profile, "seed": model.seed}
    config |= {"training_songs": training_songs, "versions": versions(), "sha256": {}}
    config["residuals"] = validate(Residuals, model.residuals, "model.residuals")
    files = model.state_files()
    with replacing(folder) as new:
        new.mkdir()
        if model.adapter_config:
            model.adapter_config.save_pretrained(new)
        for name, tensors in files.items():
            check_tensors(tensors, tensors)
            content = save({key: values.detach().cpu().contiguous() for key, values in tensors.items()})
            (new / name).write_bytes(content)
            config["sha256"] |= {name: hashlib.sha256(content).hexdigest()}
        for name, content in (("config", config), ("history", history), ("metrics", metrics)):
            (new / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        predictions[[*PREDICTION_COLUMNS]].to_csv(new / "predictions.csv", index=False, float_format="%.5g")
        (new / "README.md").write_text(model_card(model, config, metrics, len(predictions)), encoding="utf-8")


@checked
def load_model(folder: PathLike, encoder: InstanceOf[Encoder] | None = None) -> Model:
    """Load a checkpoint folder that `save_model` wrote, ready to `predict`.

    encoder: the one it was trained on, if already loaded; otherwise it is loaded by the name in config.json.
    Raises `LyricsError` if a file is missing or damaged, or the encoder is another one.
    """
    config = validate(Config, _read(folder / "config.json"), "config.json")
    encoder = encoder or load_encoder(config.encoder)
    if HASHES[config.version](encoder) != config.encoder_sha256:
        reason = f"{encoder.name!r} has other parameters, settings or tokens"
        raise ValueError(f"config.json: trained on encoder {config.encoder!r}, and {reason}")
    windows, recipe, is_blend = (config.max_length, config.stride), config.recipe, config.recipe.model == "blend"
    model = build_model(encoder, replace(recipe, model="lora") if is_blend else recipe, config.seed, *windows)
    expected = model.state_files()
    names = [*expected, TEXT_FILE] if is_blend else expected
    files = {name: _read_tensors(folder / name, config.sha256.get(name)) for name in names}
    for name, tensors in expected.items():
        check_tensors(files[name], tensors)
    model.load_state_files(files)
    model = BlendRegressor.from_state(model, recipe, files[TEXT_FILE]) if is_blend else model.eval()
    model.residuals = config.residuals
    return model


@checked
def load_results(folder: PathLike) -> Results:
    """Read what a checkpoint tells beside its parameters. Raises `LyricsError` if a file is missing or damaged."""
    names = ("config.json", "history.json", "predictions.csv", "metrics.json")
    return Results(*(_read(folder / name) for name in names))


@checked
def _read(path: PathLike) -> Any:
    """The content of a JSON or CSV file of a checkpoint, checked for what its readers rely on."""
    if path.suffix == ".csv":
        rows = read_rows(path)
        if not rows:
            raise ValueError("no predictions in it")
        table = pd.DataFrame(rows, columns=[*PREDICTION_COLUMNS]).fillna("").astype(PREDICTION_COLUMNS)
        if not table[["valence", "prediction"]].apply(pd.Series.between, args=(0, 1)).all(axis=None):
            raise ValueError("a valence or prediction is missing, or not between 0 and 1")
        return table
    content = json.loads(read_file(path))
    validate(CONTENT[path.name], content, path.name)
    return content


@checked
def _read_tensors(path: PathLike, sha256: str | None) -> dict[str, torch.Tensor]:
    """A file of parameters, which must have the sha256 that config.json says."""
    content = read_file(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("damaged, or of another checkpoint. Copy it again, or retrain")
    return load(content)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: import_module(name).__version__ for name in LIBRARIES}


def model_card(model: Model, config: dict, metrics: dict[str, float], songs: int) -> str:
    """A README.md for a checkpoint, with the metadata of the Hugging Face hub (Mitchell et al. 2019, "Model Cards")."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    encoder, title = config["encoder"], f"{type(model).__name__} on {config['encoder']}"
    tags = ["lyrics", "music", "valence", "regression"] + (["lora"] if model.adapter_config else [])
    about = {"language": "en", "license": "mit", "library_name": "peft" if model.adapter_config else "pytorch"}
    about |= {"base_model": MINILM_HUB_NAME if encoder == MINILM else encoder, "model_name": title, "tags": tags}
    measured = "text-regression", "lyrics-valence", f"{config['profile']} profile, {songs:,} test songs"
    results = [EvalResult(*measured, name, round(metrics[name], 4)) for name in ("mse", "r2") if name in metrics]
    card_data = ModelCardData(**about, eval_results=results or None)
    values = {"title": title, "config": config, "metrics": metrics, "songs": songs}
    values["trained"] = sum(tensor.numel() for tensor in model.trainable_parameters().values())
    values["ngrams"] = model.n_ngrams if isinstance(model, BlendRegressor) else 0
    return ModelCard.from_template(card_data, template_path=str(CARD), **values).content
