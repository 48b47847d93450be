"""One training loop for all models, on Hugging Face accelerate, written out for what a ready-made trainer does not do.

A step counts songs while memory is bounded by tokens, a song's chunks stay together, and a run killed at any moment
goes on to bitwise the same parameters. Processes under `accelerate launch` or `torchrun` share the songs of a step.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from pydantic import InstanceOf
from torch import nn

from lyric_utils._checks import PathLike, Real, check_tensors, checked, validate
from lyric_utils._files import LyricsError, describe, exclusive, read_file, write_file
from lyric_utils._packed import PRECISIONS, Packing, best_device, best_precision, to_device
from lyric_utils._progress import progress
from lyric_utils.chunking import TOKENS_PER_BATCH, batch_by_tokens
from lyric_utils.distillation import TEACHERS, Teachers, initialise_head, soft_targets
from lyric_utils.encoders import hash_encoder
from lyric_utils.features import NO_MEMORY, Features
from lyric_utils.models import SongRegressor, read_batch, score_songs
from lyric_utils.profiles import Recipe
from lyric_utils.songs import Split


class Examples(NamedTuple):
    """Songs to learn from or to be scored on."""

    inputs: Features  # what the model reads of them
    valence: np.ndarray  # what it should answer, (n_songs,)
    pooled: np.ndarray | None = None  # the frozen encoder's vectors of them, (n_songs, hidden), for `init="kernel"`


def make_examples(model: SongRegressor, split: Split, features: dict, teachers: Teachers = TEACHERS) -> dict:
    """The `Examples` of every side of a split, from its `EncoderFeatures`; soft targets for the training side only."""
    recipe, examples = model.recipe, {}
    for side, songs in split._asdict().items():
        pooled = features[side].pooled(recipe.pooling, recipe.pooled_layers)
        targets = soft_targets(songs, pooled, recipe.distillation_weight * (side == "train"), teachers)
        examples[side] = Examples(model.inputs_from(features[side]), targets, pooled)
    return examples


@checked
def fit(model: InstanceOf[SongRegressor], train_set: InstanceOf[Examples], validation_set: InstanceOf[Examples],
        resume_file: PathLike | None = None, initialise: Callable = initialise_head,
        precision: Literal["float32", "bfloat16", "float16"] | None = None) -> list[dict]:  # fmt: skip
    """Train a model by its recipe, from its start, and leave it at its best validation epoch.

    Data order and dropout depend on the model's seed and the epoch alone. After every epoch the whole state is written
    to `resume_file`; a run that finds the file goes on from it and ends bitwise as if it had not been interrupted.
    initialise: how `init="kernel"` sets the head; called with the model, and the pooled vectors and targets of the
    training songs. precision: None is `best_precision()`; in half precision only what trains stays in float32.

    Returns one dict per epoch: `epoch` (from 1), `train_loss`, `validation_mse` (of songs), `seconds`. Raises
    `LyricsError` if `resume_file` is damaged or belongs to another run, the loss is no longer a number, a step has
    fewer songs than there are processes, or vectors are missing that the start needs.
    """
    accelerator, precision = start_accelerator(), precision or best_precision()
    recipe, count, processes = model.recipe, len(train_set.valence), accelerator.num_processes
    steps = int(np.ceil(count / recipe.batch_songs))
    if count // steps < processes:
        raise LyricsError(f"{processes} processes cannot share a step of {count // steps} songs: raise batch_songs.")
    writes = resume_file is not None and accelerator.is_main_process
    with exclusive(resume_file.with_suffix(".run")) if writes else nullcontext():
        state = _start_state(accelerator, model, train_set, validation_set, resume_file)
        history = state["history"]
        model.copy_parameters(state["parameters"] if history else model.start)
        if recipe.init == "mean" and not history:
            model.start_at(train_set.valence.mean())
        elif recipe.init == "kernel" and not history:
            if train_set.pooled is None:
                raise LyricsError("init='kernel' needs the frozen encoder's vectors: use make_examples.")
            initialise(model, train_set.pooled, train_set.valence)
        trainer = make_trainer(accelerator, model, precision)
        if history:
            with _damaged(resume_file):
                trainer.optimizer.load_state_dict(state["optimizer"])
                trainer.scaler.load_state_dict(state["scaler"])
        total, done = recipe.epochs * count, len(history) * count
        with progress(total=total, initial=done, desc=f"train {recipe.model}", unit="song") as bar:
            for epoch in range(len(history), recipe.epochs):
                started, loss_sum = time.perf_counter(), 0.0
                trainer.wrapped.train()
                seeds = np.random.SeedSequence([model.seed, epoch, accelerator.process_index])
                torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
                order = np.random.default_rng([model.seed, epoch]).permutation(count)
                with frozen_weights_in(precision, model):
                    for step, songs in enumerate(np.array_split(order, steps)):
                        set_learning_rate(trainer.optimizer, recipe, (epoch * steps + step) / (recipe.epochs * steps))
                        loss_sum += train_step(trainer, train_set, songs) * len(songs)
                        bar.update(len(songs))
                if not np.isfinite(loss_sum := float(loss_sum)):
                    raise LyricsError("the training loss is no longer a number: lower the recipe's learning rates.")
                scores = score_songs(model, validation_set.inputs, accelerator)
                mse = float(np.mean((scores - validation_set.valence) ** 2))
                history.append({"epoch": epoch + 1, "train_loss": sum(gather_object([loss_sum])) / count})
                history[-1] |= {"validation_mse": mse, "seconds": time.perf_counter() - started}
                bar.set_postfix(validation_mse=f"{mse:.4f}")
                state["parameters"] = {name: values.detach() for name, values in model.trainable_parameters().items()}
                if mse == min(line["validation_mse"] for line in history):
                    state["best"] = {name: values.clone() for name, values in state["parameters"].items()}
                if writes:
                    now = {name: getattr(trainer, name).state_dict() for name in ("optimizer", "scaler")}
                    write_state(state | now, resume_file)
    model.copy_parameters(state["best"])
    model.residuals = None  # those of other parameters
    model.eval()
    return history


class Trainer(NamedTuple):
    """What a training step works with."""

    accelerator: Accelerator
    model: SongRegressor
    wrapped: nn.Module  # the model, among several processes within what averages their gradients
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # of the loss in float16, whose numbers end at 65,504
    precision: str


def make_trainer(accelerator: Accelerator, model: SongRegressor, precision: str) -> Trainer:
    """A new optimizer for a model, and what belongs to it."""
    device, wrapped = accelerator.device.type, accelerator.prepare(model)
    options = {"weight_decay": model.recipe.weight_decay, "fused": device == "cuda" or None}
    optimizer = torch.optim.AdamW(parameter_groups(model), **options)
    scaler = torch.amp.GradScaler(device, enabled=precision == "float16")
    return Trainer(accelerator, model, wrapped, optimizer, scaler, precision)


def train_step(trainer: Trainer, examples: Examples, songs: np.ndarray) -> torch.Tensor:
    """One optimizer step on the mean loss of some songs; returns this process's part of the loss, left on the device.

    It is done in micro-batches, in smaller ones where a GPU has too little memory.
    """
    limit = TOKENS_PER_BATCH
    while True:
        try:
            loss = _add_gradients(trainer, examples, songs, limit)
            break
        except torch.OutOfMemoryError as error:
            if trainer.accelerator.num_processes > 1 or limit == 1:
                raise LyricsError(NO_MEMORY.format("a song's")) from error
            limit //= 2
            trainer.optimizer.zero_grad()
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad()
    return loss


def _add_gradients(trainer: Trainer, examples: Examples, songs: np.ndarray, limit: int) -> torch.Tensor:
    accelerator, model, wrapped, _, scaler, precision = trainer
    inputs, by_song, device = examples.inputs, model.recipe.loss_on == "song", accelerator.device
    mixed = precision != "float32" and model.recipe.model == "full"  # LoRA needs none: see frozen_weights_in
    items = [np.arange(*ends) for ends in np.searchsorted(inputs.song_index, [songs, songs + 1]).T]
    counted = len(songs) if by_song else sum(map(len, items))
    tokens = np.array([inputs.lengths[item].sum() for item in items])
    mine = np.arange(len(songs))
    if accelerator.num_processes > 1:  # dealt out by length, so that all are done at about the same time
        mine = np.argsort(tokens, kind="stable")[accelerator.process_index :: accelerator.num_processes]
    batches, loss_of_step = list(batch_by_tokens(tokens[mine], limit)), torch.zeros((), device=device)
    for batch in batches:
        chosen = mine[batch]
        by_items = Packing([len(items[song]) for song in chosen], device)
        valence = to_device(examples.valence[songs[chosen]].astype(np.float32), device)
        # However many micro-batches a process has, it meets the others in its last, where PyTorch averages gradients.
        with accelerator.no_sync(wrapped) if batch is not batches[-1] else nullcontext():
            with torch.autocast(device.type, PRECISIONS[precision], enabled=mixed):
                scores = wrapped(*read_batch(model, inputs, np.concatenate([items[song] for song in chosen]))).float()
            errors = by_items.mean(scores) - valence if by_song else scores - valence[by_items.chunk]
            loss = errors.square().sum() / counted
            accelerator.backward(scaler.scale(loss * accelerator.num_processes))
        loss_of_step += loss.detach()
    return loss_of_step


def start_accelerator() -> Accelerator:
    """This process's device, and its connection to the others that `accelerate launch` or `torchrun` started."""
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # others wait while the first one fills the cache
    return Accelerator(cpu=best_device() == "cpu", kwargs_handlers=[patience])


@contextmanager
def frozen_weights_in(precision: str, model: SongRegressor) -> Iterator[None]:
    """Meanwhile, the frozen weights of adapted layers have that precision, which their states then take, too."""
    layers = getattr(model, "adapted_layers", [])
    frozen = {weight: weight.data for layer in layers for weight in layer.parameters() if not weight.requires_grad}
    try:
        for weight in frozen:
            weight.data = weight.data.to(PRECISIONS[precision])
        yield
    finally:
        for weight, values in frozen.items():
            weight.data = values


def parameter_groups(model: SongRegressor) -> list[dict]:
    """The trainable parameters with their learning rates: head and pooler apart from the rest."""
    groups = [{"params": [], "peak": peak} for peak in (model.recipe.learning_rate, model.recipe.head_learning_rate)]
    for name, values in model.trainable_parameters().items():
        groups[name.startswith(("head.", "pooler."))]["params"].append(values)
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer, recipe: Recipe, done: float) -> None:
    """Set every group's rate for a moment of the training, `done` running from 0 to 1."""
    rising = done / recipe.warmup if recipe.warmup else 1.0
    falling = (1 - done) / (1 - recipe.warmup) if recipe.schedule == "linear" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min(1.0, rising, falling)


def _start_state(accelerator, model, train_set, validation_set, file: Path | None) -> dict:
    """Where to go on: the state in the file, which the first process reads for all, or that of a run not begun."""
    digest = hashlib.sha256(json.dumps([asdict(model.recipe), model.seed, hash_encoder(model.encoder)]).encode())
    for inputs, valence, _ in (train_set, validation_set):
        if valence.shape != np.unique(inputs.song_index).shape or not np.isfinite(valence).all() or not len(valence):
            raise LyricsError("examples: every song needs one valence, a finite number, and there must be some songs.")
        read = [inputs.rows] if inputs.input_ids is None else inputs.input_ids
        for array in (valence, np.asarray(inputs.lengths), *read):
            digest.update(array.tobytes())
    new = {"fingerprint": digest.hexdigest(), "history": []}
    found = read_file(file, 2**31) if file and accelerator.is_main_process and os.path.lexists(file) else None
    [found] = broadcast_object_list([found])
    if found is None:
        return new
    with _damaged(file):
        state = read_state(found, file)
        if state["fingerprint"] != new["fingerprint"]:
            raise LyricsError(f"{file}: of another run (recipe, seed, encoder or songs). Delete it to start anew.")
        validate(list[dict[str, Real]], state["history"], "history")
        if not all("validation_mse" in line for line in state["history"]):
            raise ValueError("an epoch without a validation_mse")
        for name in ("parameters", "best"):
            check_tensors(state[name], model.trainable_parameters())
        return state


@contextmanager
def _damaged(file: Path | None) -> Iterator[None]:
    """Any error on the way is that of a damaged state, but for one that names the file already."""
    try:
        yield
    except Exception as error:
        if str(file) in str(error):
            raise
        raise LyricsError(f"{file}: a damaged training state ({describe(error)}). Delete it to start anew.") from error


def write_state(state: dict, file: Path) -> None:
    """Write the state of a training, behind a checksum of it."""
    content = io.BytesIO()
    torch.save(state, content)
    write_file(file, hashlib.sha256(content.getvalue()).digest() + content.getvalue())


def read_state(content: bytes, file: Path) -> dict:
    """The state of a training that `fit` wrote into its resume file; raises `LyricsError` if it is damaged."""
    with _damaged(file):
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("its checksum is another")
        return torch.load(io.BytesIO(content[32:]), "cpu", weights_only=True)
