"""One recipe for both models: a loop one can read, on Hugging Face accelerate.

accelerate brings device placement, mixed precision and several processes. The loop stays in sight because three things
it does are not those of a ready-made trainer: a step counts songs while memory is bounded by tokens, a song's chunks
stay together, and a run killed at any moment goes on to bitwise the same weights.

Under `accelerate launch` or `torchrun` the processes share the songs of every step and PyTorch sums their gradients:
the step is the one that a single process would take.
"""

import hashlib
import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from tqdm import tqdm

from lyric_utils.chunking import average_by_song
from lyric_utils.encoders import best_device
from lyric_utils.frozen import FrozenPass, Rows, pack, weights_hash
from lyric_utils.models import SongRegressor, read_batch, score_songs, soft_targets
from lyric_utils.profiles import Recipe
from lyric_utils.songs import LyricsError, Split, written_whole

PATIENCE = timedelta(hours=12)  # how long processes wait for another one, which may be filling a cache


class Examples(NamedTuple):
    """Songs to learn from or to be scored on.

    Attributes:
        rows: what the model reads of them.
        valence: what it should answer, shape (n_songs,).
        vectors: the frozen encoder's vectors of them, shape (n_songs, hidden), for a recipe that starts at "kernel".
    """

    rows: Rows
    valence: np.ndarray
    vectors: np.ndarray | None = None


def make_examples(model: SongRegressor, split: Split, frozen: dict[str, FrozenPass]) -> dict[str, Examples]:
    """The examples of every side of a split, from the frozen encoder's pass over it; soft targets for training only."""
    recipe, examples = model.recipe, {}
    for side, songs in split._asdict().items():
        vectors = frozen[side].song_vectors(recipe.pooling, recipe.pooled_layers)
        valence = soft_targets(songs, vectors, recipe.soft_targets if side == "train" else 0.0)
        examples[side] = Examples(model.rows_of_pass(frozen[side]), valence, vectors)
    return examples


def train(
    model: SongRegressor, train: Examples, validation: Examples, seed: int = 42, resume_file: str | Path | None = None
) -> list[dict]:
    """Train a model by its recipe and leave it at its best validation epoch.

    Data order and dropout depend on the seed and the epoch alone. After every epoch the whole state is written to
    `resume_file`, in one rename; a run that finds the file there goes on from it and ends bitwise as if uninterrupted.
    Several processes all end with the same weights and history; the first of them writes the file.

    Returns:
        One dict an epoch: `epoch` (from 1), `train_loss`, `validation_mse` (of songs), `seconds`.

    Raises:
        LyricsError: `resume_file` is damaged or belongs to another run, the loss is no longer a number, a step has
            fewer songs than there are processes, or vectors are missing that the start needs.
    """
    recipe, state_file = model.recipe, resume_file and Path(resume_file)
    accelerator = start_accelerator()
    if recipe.start == "mean":
        model.start_at(train.valence.mean())
    elif recipe.start == "kernel" and not (state_file and state_file.is_file()):  # else the weights come from there
        if train.vectors is None:
            raise LyricsError("start='kernel' needs the frozen encoder's vectors: use make_examples.")
        model.start_at_kernel(train.vectors, train.valence)
    steps = int(np.ceil(len(train.valence) / recipe.batch_songs))
    if len(train.valence) // steps < accelerator.num_processes:
        raise LyricsError(
            f"{accelerator.num_processes} processes cannot share a step of {len(train.valence) // steps} songs: "
            "start fewer, or raise batch_songs of the recipe."
        )
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=recipe.weight_decay)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    fingerprint = _fingerprint(model, seed, train, validation)
    run = _Run(accelerator, model, optimizer, state_file, fingerprint)
    items_of_song = np.searchsorted(train.rows.song_index, np.arange(len(train.valence) + 1))
    total, done = (epochs * len(train.valence) for epochs in (recipe.epochs, len(run.history)))
    hidden = None if accelerator.is_main_process else True  # None: shown in a terminal
    look = {"desc": f"train {recipe.model}", "unit": "song", "leave": False, "disable": hidden}
    with tqdm(total=total, initial=done, **look) as bar:
        for epoch in range(len(run.history), recipe.epochs):
            started, loss_sum = time.perf_counter(), 0.0
            wrapped.train()
            torch.manual_seed(_seed_of(seed, epoch, accelerator.process_index))
            order = np.random.default_rng([seed, epoch]).permutation(len(train.valence))
            for step, songs in enumerate(np.array_split(order, steps)):
                set_learning_rate(optimizer, recipe, (epoch * steps + step) / (recipe.epochs * steps))
                loss_sum += _step(accelerator, wrapped, optimizer, train, items_of_song, songs) * len(songs)
                bar.update(len(songs))
            scores = score_songs(model, validation.rows, accelerator)
            run.record(
                epoch=epoch + 1,
                train_loss=sum(gather_object([loss_sum])) / len(order),
                validation_mse=float(np.mean((scores - validation.valence) ** 2)),
                seconds=time.perf_counter() - started,
            )
            bar.set_postfix(validation_mse=f"{run.history[-1]['validation_mse']:.4f}")
    run.restore_best()
    model.eval()
    return run.history


def _step(accelerator, model, optimizer, train: Examples, items_of_song, songs) -> float:
    """One optimizer step on the mean loss of some songs, in passes of bounded size; returns this process's part."""
    recipe, rows = accelerator.unwrap_model(model).recipe, train.rows
    counted = len(songs) if recipe.loss_on == "song" else int(np.diff(items_of_song)[songs].sum())
    if accelerator.num_processes > 1:  # dealt out by length, so that all are done at about the same time
        tokens = [rows.lengths[items_of_song[song] : items_of_song[song + 1]].sum() for song in songs]
        songs = songs[np.argsort(tokens, kind="stable")][accelerator.process_index :: accelerator.num_processes]
    items = [np.arange(items_of_song[song], items_of_song[song + 1]) for song in songs]
    passes = list(pack([rows.lengths[item].sum() for item in items]))
    loss_of_step = 0.0
    for run in passes:
        batch = np.concatenate([items[song] for song in run])
        song_index = torch.from_numpy(np.repeat(np.arange(len(run)), [len(items[song]) for song in run]))
        valence = torch.from_numpy(train.valence[songs[run]]).float().to(accelerator.device)
        # However many passes a process has, it meets the others in its last, where PyTorch averages the gradients.
        with accelerator.no_sync(model) if run is not passes[-1] else nullcontext():
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=has_fast_bfloat16()):
                scores = model(*read_batch(rows, batch, accelerator.device)).float()
            if recipe.loss_on == "song":
                errors = average_by_song(scores, song_index) - valence
            else:
                errors = scores - valence[song_index]
            loss = errors.square().sum() / counted
            accelerator.backward(loss * accelerator.num_processes)
        loss_of_step += loss.item()
    if not np.isfinite(loss_of_step):
        raise LyricsError("the training loss is no longer a number: lower the learning rates of the recipe.")
    optimizer.step()
    optimizer.zero_grad()
    return loss_of_step


def start_accelerator() -> Accelerator:
    """This process's device, and its line to the others where `accelerate launch` or `torchrun` started several."""
    waits = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=best_device() == "cpu", kwargs_handlers=[waits])


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


def _fingerprint(model: SongRegressor, seed: int, train: Examples, validation: Examples) -> str:
    digest = hashlib.sha256(json.dumps([asdict(model.recipe), seed, weights_hash(model.encoder)]).encode())
    for examples in (train, validation):
        digest.update(examples.valence.tobytes() + np.asarray(examples.rows.lengths).tobytes())
    return digest.hexdigest()


class _Run:
    """The state of a training run, in memory and, where a file is given, on disk after every epoch."""

    def __init__(self, accelerator: Accelerator, model: SongRegressor, optimizer, file: Path | None, fingerprint: str):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.file, self.fingerprint = file, fingerprint
        self.history: list[dict] = []
        self.best: dict[str, torch.Tensor] = {}
        if file:
            self._load()

    def record(self, **epoch) -> None:
        self.history.append(epoch)
        if epoch["validation_mse"] == min(line["validation_mse"] for line in self.history):
            self.best = {name: weight.detach().clone() for name, weight in self.model.trainable_state().items()}
        if self.file and self.accelerator.is_main_process:
            tensors, progress = self._tensors(), self._progress()
            metadata = {"progress": progress, "sha256": _sha256(tensors, progress)}
            with written_whole(self.file) as temporary:
                temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    def restore_best(self) -> None:
        _copy_weights(self.best, self.model)

    def _progress(self) -> str:
        return json.dumps({"fingerprint": self.fingerprint, "history": self.history})

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": weight for name, weight in self.model.trainable_state().items()}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def _load(self) -> None:
        """Take up the state in the file, read by the first process for all; no file, and the run starts anew."""
        found = [None]
        if self.accelerator.is_main_process and self.file.is_file():
            found = [self.file.read_bytes()]
        [content] = broadcast_object_list(found)
        if content is None:
            return
        try:
            tensors = safetensors.torch.load(content)
            length = int.from_bytes(content[:8], "little")  # a safetensors file: this length, so much JSON, tensors
            metadata = json.loads(content[8 : 8 + length])["__metadata__"]
            progress = json.loads(metadata["progress"])
            if progress["fingerprint"] != self.fingerprint:
                raise LyricsError("the state of another run (recipe, seed, encoder or songs differ)")
            self._take(tensors, progress["history"])
            read, taken = _sha256(tensors, metadata["progress"]), _sha256(self._tensors(), self._progress())
            if not read == taken == metadata["sha256"]:
                raise ValueError("its checksum does not agree")
        except LyricsError as error:
            raise LyricsError(f"{self.file}: {error}. Delete it to start anew.") from error
        except Exception as error:  # whatever a value of the wrong kind sets off
            reason = f"{type(error).__name__}: {error}"
            raise LyricsError(f"{self.file}: a damaged training state ({reason}). Delete it to start anew.") from error

    def _take(self, tensors: dict[str, torch.Tensor], history: list[dict]) -> None:
        if [line["epoch"] for line in history] != list(range(1, len(history) + 1)):
            raise ValueError("its history has gaps")
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            parts[part][name] = value
        _copy_weights(parts["best"], self.model)  # a check of names and shapes, before they are kept aside
        self.history = history
        self.best = {name: weight.detach().clone() for name, weight in self.model.trainable_state().items()}
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


def _sha256(tensors: dict[str, torch.Tensor], progress: str) -> str:
    digest = hashlib.sha256(progress.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()
