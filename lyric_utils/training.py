"""One recipe for both models: a loop one can read, on Hugging Face accelerate.

accelerate brings device placement, mixed precision and several processes. The loop stays in sight because three things
it does are not those of a ready-made trainer: a step counts songs while memory is bounded by tokens, a song's chunks
stay together, and a run killed at any moment goes on to bitwise the same weights.
"""

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from lyric_utils.chunking import average_by_song
from lyric_utils.frozen import Rows, pack
from lyric_utils.models import SongRegressor, score_songs
from lyric_utils.profiles import Recipe
from lyric_utils.songs import LyricsError, written_whole


class Examples(NamedTuple):
    """Songs to learn from or to be scored on: what the model reads of them, and their valence, shape (n_songs,)."""

    rows: Rows
    valence: np.ndarray


def train(
    model: SongRegressor, train: Examples, validation: Examples, seed: int = 42, resume_file: str | Path | None = None
) -> list[dict]:
    """Train a model by its recipe and leave it at its best validation epoch.

    Data order and dropout depend on the seed and the epoch alone. After every epoch the whole state is written to
    `resume_file`, in one rename; a run that finds the file there goes on from it and ends bitwise as if uninterrupted.

    Returns:
        One dict an epoch: `epoch` (from 1), `train_loss`, `validation_mse` (of songs), `seconds`.

    Raises:
        LyricsError: `resume_file` is damaged or belongs to another run, or the loss is no longer a number.
    """
    recipe = model.recipe
    if recipe.start_at_mean:
        model.start_at(train.valence.mean())
    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=recipe.weight_decay)
    run = _Run(model, optimizer, resume_file and Path(resume_file), _fingerprint(recipe, seed, train, validation))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    steps = int(np.ceil(len(train.valence) / recipe.batch_songs))
    items_of_song = np.searchsorted(train.rows.song_index, np.arange(len(train.valence) + 1))
    total = recipe.epochs * len(train.valence)
    with tqdm(
        total=total, initial=len(run.history) * len(train.valence), desc=f"train {recipe.model}", unit="song", leave=False,
        disable=None if accelerator.is_main_process else True,
    ) as bar:
        for epoch in range(len(run.history), recipe.epochs):
            started, loss_sum = time.perf_counter(), 0.0
            wrapped.train()
            torch.manual_seed(_seed_of(seed, epoch, accelerator.process_index))
            order = np.random.default_rng([seed, epoch]).permutation(len(train.valence))
            for step, songs in enumerate(np.array_split(order, steps)):
                set_learning_rate(optimizer, recipe, (epoch * steps + step) / (recipe.epochs * steps))
                loss_sum += _step(accelerator, wrapped, optimizer, train, items_of_song, songs) * len(songs)
                bar.update(len(songs))
            scores = score_songs(wrapped, validation.rows)
            run.record(
                epoch=epoch + 1,
                train_loss=loss_sum / len(order),
                validation_mse=float(np.mean((scores - validation.valence) ** 2)),
                seconds=time.perf_counter() - started,
            )
            bar.set_postfix(validation_mse=f"{run.history[-1]['validation_mse']:.4f}")
    run.restore_best()
    model.eval()
    return run.history


def _step(accelerator, model, optimizer, train: Examples, items_of_song, songs) -> float:
    """One optimizer step on the mean loss of some songs, run in passes of bounded size; returns that loss."""
    recipe = accelerator.unwrap_model(model).recipe
    rows = train.rows
    items = [np.arange(items_of_song[song], items_of_song[song + 1]) for song in songs]
    counted = len(songs) if recipe.loss_on == "song" else sum(map(len, items))
    loss_of_step = 0.0
    for run in pack([rows.lengths[item].sum() for item in items]):
        batch = np.concatenate([items[song] for song in run])
        song_index = torch.from_numpy(np.repeat(np.arange(len(run)), [len(items[song]) for song in run]))
        valence = torch.from_numpy(train.valence[songs[run]]).float().to(accelerator.device)
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=has_fast_bfloat16()):
            scores = model(rows.read(batch).to(accelerator.device), rows.lengths[batch].tolist()).float()
        if recipe.loss_on == "song":
            errors = average_by_song(scores, song_index) - valence
        else:
            errors = scores - valence[song_index]
        loss = errors.square().sum() / counted
        accelerator.backward(loss)
        loss_of_step += loss.item()
    if not np.isfinite(loss_of_step):
        raise LyricsError("the training loss is no longer a number: lower the learning rates of the recipe.")
    optimizer.step()
    optimizer.zero_grad()
    return loss_of_step


def has_fast_bfloat16() -> bool:
    """Whether the GPU, or else the CPU, has instructions for bfloat16, so that training in mixed precision pays."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # new in PyTorch 2.10; older ones train in float32
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def parameter_groups(model: SongRegressor) -> list[dict]:
    """The trainable weights with their learning rates: the head apart from the rest."""
    recipe, weights = model.recipe, model.trainable_state()
    head = [weight for name, weight in weights.items() if name.startswith("head.")]
    rest = [weight for name, weight in weights.items() if not name.startswith("head.")]
    groups = [{"params": rest, "peak": recipe.learning_rate}, {"params": head, "peak": recipe.head_learning_rate}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer, recipe: Recipe, progress: float) -> None:
    """Set every group's rate for a moment of the training, `progress` running from 0 to 1."""
    factor = min(1.0, progress / recipe.warmup) if recipe.warmup else 1.0
    if recipe.schedule == "linear":
        factor = min(factor, (1 - progress) / (1 - recipe.warmup))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _seed_of(seed: int, epoch: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, process]).generate_state(1, np.uint64)[0] >> 1)


def _fingerprint(recipe: Recipe, seed: int, train: Examples, validation: Examples) -> str:
    digest = hashlib.sha256(json.dumps([asdict(recipe), seed]).encode())
    for examples in (train, validation):
        digest.update(examples.valence.tobytes() + np.asarray(examples.rows.lengths).tobytes())
    return digest.hexdigest()


class _Run:
    """The state of a training run, in memory and, where a file is given, on disk after every epoch."""

    def __init__(self, model, optimizer, file: Path | None, fingerprint: str):
        self.model, self.optimizer, self.file, self.fingerprint = model, optimizer, file, fingerprint
        self.history: list[dict] = []
        self.best: dict[str, torch.Tensor] = {}
        if file and file.is_file():
            self._load()

    def record(self, **epoch) -> None:
        self.history.append(epoch)
        if epoch["validation_mse"] == min(line["validation_mse"] for line in self.history):
            self.best = {name: weight.detach().clone() for name, weight in self.model.trainable_state().items()}
        if self.file:
            self._save()

    def restore_best(self) -> None:
        _copy_weights(self.best, self.model)

    def _save(self) -> None:
        tensors = {f"model.{name}": weight.detach() for name, weight in self.model.trainable_state().items()}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        progress = json.dumps({"fingerprint": self.fingerprint, "history": self.history})
        with written_whole(self.file) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"progress": progress})

    def _load(self) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(self.file, "pt") as file:
                progress = json.loads(file.metadata()["progress"])
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    part, name = key.split(".", 1)
                    parts[part][name] = file.get_tensor(key)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise LyricsError(f"{self.file}: a damaged training state ({error}). Delete it to start anew.") from error
        if progress["fingerprint"] != self.fingerprint:
            raise LyricsError(f"{self.file}: the state of another run (recipe, seed or songs differ). Delete it to start anew.")
        self.history, self.best = progress["history"], parts["best"]
        _copy_weights(parts["model"], self.model)
        state: dict[int, dict] = {}
        for key, value in parts["optimizer"].items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _copy_weights(weights: dict[str, torch.Tensor], model: SongRegressor) -> None:
    with torch.no_grad():
        for name, weight in model.trainable_state().items():
            weight.copy_(weights[name])
