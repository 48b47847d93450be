"""Checkpoint folders: safetensors and small text files, a LoRA checkpoint being a standard PEFT adapter folder."""

import hashlib
import json
import platform
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from lyric_utils._files import LyricsError, atomic_write_folder
from lyric_utils.blend import TEXT_FILE, BlendRegressor
from lyric_utils.chunking import check_windows
from lyric_utils.encoders import MINILM, MINILM_HUB_NAME, Encoder, hash_encoder, load_encoder
from lyric_utils.models import SongRegressor, build_model
from lyric_utils.profiles import Recipe

SHIPPED = Path(__file__).resolve().parent.parent / "trained_models"
CARD = Path(__file__).with_name("model_card.md")
FORMAT_VERSION = 1
# Fields of a recipe, as checkpoints of earlier versions name them.
RENAMED = {"adapter_dropout": "lora_dropout", "start": "init", "soft_targets": "distillation_weight"}
RENAMED |= {"words_share": "text_weight", "stretch": "rescale"}
PREDICTION_COLUMNS = {"row": int, "artist": str, "title": str, "words": int, "chunks": int}
PREDICTION_COLUMNS |= {"valence": float, "prediction": float}
HISTORY_COLUMNS = ["epoch", "train_loss", "validation_mse"]
LIBRARIES = ("numpy", "pandas", "torch", "transformers", "peft", "safetensors")
Model = SongRegressor | BlendRegressor


class Results(NamedTuple):
    """What a checkpoint tells without its parameters: enough to redraw every figure."""

    config: dict  # recipe, profile, seed, encoder, versions, and the fingerprint of the training songs
    history: list[dict]  # one per epoch, see `fit`
    predictions: pd.DataFrame  # one test song per line, see `PREDICTION_COLUMNS`; no lyrics
    metrics: dict  # metric -> value on the test songs


def shipped_folder(name: str) -> Path:
    """The folder of a checkpoint that comes with the project: "baseline", "lora", "lora_paper" or "blend"."""
    return SHIPPED / name


def tabulate_predictions(songs: pd.DataFrame, chunks_per_song: np.ndarray, prediction: np.ndarray) -> pd.DataFrame:
    """Predictions and what is needed to judge them; no lyrics, so a title, often a line, is cut after seven words."""
    words = songs["lyrics"].str.split().str.len()
    title = songs["title"].str.replace(r"^((?:\S+\s+){6}\S+)\s.*$", r"\1 ...", regex=True)
    songs = songs.assign(title=title, words=words, chunks=chunks_per_song, prediction=prediction)
    return songs[[*PREDICTION_COLUMNS]]


def check_target(folder: str | Path) -> None:
    """Check that `save_model` may write this folder: a new one, an empty one or a checkpoint; raises `LyricsError`."""
    folder = Path(folder)
    is_ours = folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))
    if folder.exists() and not is_ours:
        raise LyricsError(f"{folder}: exists and is no checkpoint. Remove it, or give another name.")


def save_model(
    model: Model, folder: str | Path, *, profile: str, history, predictions, metrics, training_songs: str = ""
) -> None:
    """Write a checkpoint folder, all or nothing: parameters as safetensors, the rest as JSON, CSV and Markdown.

    profile: its name; history, predictions, metrics: see `Results`; training_songs: see `songs.fingerprint_songs`.
    Raises `LyricsError` if the folder cannot be written, or holds something else than a checkpoint.
    """
    check_target(folder)
    config = {"version": FORMAT_VERSION, "recipe": asdict(model.recipe)}
    config |= {"encoder": model.encoder.name, "encoder_sha256": hash_encoder(model.encoder)}
    config |= {"max_length": model.max_length, "stride": model.stride, "profile": profile, "seed": model.seed}
    config |= {"training_songs": training_songs, "versions": versions(), "sha256": {}}
    files = model.state_files()
    with atomic_write_folder(folder) as temporary:
        if model.adapter_config:
            model.adapter_config.save_pretrained(temporary)
        for name, tensors in files.items():
            content = save({key: values.detach().cpu().contiguous() for key, values in tensors.items()})
            (temporary / name).write_bytes(content)
            config["sha256"] |= {name: hashlib.sha256(content).hexdigest()}
        for name, content in (("config", config), ("history", history), ("metrics", metrics)):
            (temporary / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        predictions.to_csv(temporary / "predictions.csv", index=False, float_format="%.5g")
        (temporary / "README.md").write_text(model_card(model, config, metrics, len(predictions)))


def load_model(folder: str | Path, encoder: Encoder | None = None) -> Model:
    """Load a checkpoint folder that `save_model` wrote, ready to `predict`.

    encoder: the one it was trained on, if already loaded; otherwise it is loaded by the name in config.json.
    Raises `LyricsError` if a file is missing or damaged, or the encoder is another one.
    """
    folder = Path(folder)
    config = _read(folder / "config.json")
    try:
        if config["version"] != FORMAT_VERSION:
            raise LyricsError(f"version {config['version']} is not {FORMAT_VERSION}, the one this lyric_utils reads.")
        encoder = encoder or load_encoder(config["encoder"])
        if hash_encoder(encoder) != config["encoder_sha256"]:
            raise LyricsError(f"trained on encoder {config['encoder']!r}; {encoder.name!r} has other parameters.")
        windows = {name: config[name] for name in ("max_length", "stride")}
        check_windows(encoder.tokenizer, **windows)
        recipe = read_recipe(config["recipe"])
        is_blend = recipe.model == "blend"
        model = build_model(encoder, replace(recipe, model="lora") if is_blend else recipe, config["seed"], **windows)
        names = [*model.state_files(), TEXT_FILE] if is_blend else model.state_files()
        sha256 = {name: config["sha256"][name] for name in names}
    except LyricsError as error:
        raise LyricsError(f"{folder / 'config.json'}: {error}") from error
    except Exception as error:  # whatever a value of the wrong kind sets off
        reason = f"{type(error).__name__}: {error}"
        raise LyricsError(f"{folder / 'config.json'}: not as save_model wrote it ({reason}). Copy it again.") from error
    for name, expected in sha256.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise LyricsError(f"{path}: missing, damaged or of another checkpoint. Copy it again or retrain.")
    try:
        files = {name: load_file(folder / name) for name in sha256}
        model.load_state_files(files)
        if is_blend:
            model = BlendRegressor.from_state(model, recipe, files[TEXT_FILE])
    except (SafetensorError, RuntimeError, KeyError, OSError, ValueError) as error:
        raise LyricsError(f"{folder}: parameters of another model ({error}). Copy it again or retrain.") from error
    if not all(values.isfinite().all() for tensors in files.values() for values in tensors.values()):
        raise LyricsError(f"{folder}: some parameters are not finite numbers. Retrain at a lower learning rate.")
    return model if is_blend else model.eval()


def read_recipe(fields: dict) -> Recipe:
    """The recipe of a checkpoint, of this version or an earlier one."""
    fields = {RENAMED.get(name, name): value for name, value in fields.items()}
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def load_results(folder: str | Path) -> Results:
    """Read what a checkpoint tells beside its parameters. Raises `LyricsError` if a file is missing or damaged."""
    names = ("config.json", "history.json", "predictions.csv", "metrics.json")
    return Results(*(_read(Path(folder) / name) for name in names))


def _read(path: Path):
    """A JSON or CSV file of a checkpoint, checked for what its readers rely on."""
    try:
        if path.suffix == ".csv":
            content = pd.read_csv(path, keep_default_na=False, dtype=PREDICTION_COLUMNS)[[*PREDICTION_COLUMNS]]
        else:
            content = json.loads(path.read_text())
        numbers = {
            "config.json": lambda: read_recipe(content["recipe"]).epochs,
            "history.json": lambda: pd.DataFrame([*content], columns=HISTORY_COLUMNS).astype(float),
            "metrics.json": lambda: pd.Series(content.values(), dtype=float).fillna(0),
            "predictions.csv": lambda: content[["valence", "prediction"]],
        }[path.name]()
        if not np.isfinite(numbers).all(axis=None):
            raise ValueError("a number is missing or not finite")
    except Exception as error:  # whatever a value of the wrong kind sets off
        reason = f"{type(error).__name__}: {error}"
        raise LyricsError(f"{path}: missing, or not as save_model wrote it ({reason}). Copy it again.") from error
    return content


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
