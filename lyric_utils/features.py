"""What the frozen encoder says of the songs: computed once, kept on disk, read by every model.

A frozen layer gives the same output for the same chunk in every epoch, so it need not run again. One pass over the
songs yields what the adapted layers read (the hidden state of every token) and what the baseline reads (pooled vectors
of every chunk). Only real tokens are kept, in half precision, in a memory-mapped file, and while a GPU trains on them
in its memory, where they fit.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import Field, InstanceOf

from lyric_utils import encoders
from lyric_utils._checks import Whole, checked
from lyric_utils._files import LyricsError, describe, open_file, read_file, replacing
from lyric_utils._packed import Packing, best_precision, packed_copy, to_device
from lyric_utils._progress import progress
from lyric_utils.chunking import Chunks, average_by_song, batch_by_tokens
from lyric_utils.encoders import Encoder, hash_encoder
from lyric_utils.sources import cache_folder

CACHE_FORMAT = 5  # raised when the content of an entry changes
NO_MEMORY = "the GPU has too little memory for {} tokens at once. Close other programs on it, or hide it from PyTorch."
PATIENCE = 8  # seconds without progress after which another process that fills an entry is given up


@dataclass(frozen=True)
class CachedFeatures:
    """Vectors computed before. An item is a chunk whose rows are tokens, or for the baseline a song with one row."""

    rows: np.ndarray  # (n_rows, hidden), in memory or a memory-mapped file
    lengths: np.ndarray  # rows of each item, (n_items,)
    song_index: np.ndarray  # song of each item, (n_items,), ascending
    input_ids: Sequence[np.ndarray] | None = None  # tokens of each item, where the rows are tokens
    starts: np.ndarray | None = None  # first row of each item, (n_items,); None: the items lie one behind the other

    @cached_property
    def _starts(self) -> np.ndarray:
        return self.lengths.cumsum() - self.lengths if self.starts is None else self.starts

    def read(self, indices: np.ndarray, device: torch.device | str = "cpu") -> tuple[torch.Tensor, Packing]:
        """The rows of some items, packed: (sum of their lengths, hidden), as they are kept, in half precision."""
        packing = Packing(self.lengths[indices], device)
        if torch.device(device).type == "cuda" and self._in_gpu_memory is not None:
            starts = to_device(self._starts[indices], device)
            return self._in_gpu_memory[starts[packing.chunk] + packing.position], packing
        parts = [self.rows[self._starts[item] : self._starts[item] + self.lengths[item]] for item in indices]
        return to_device(np.concatenate(parts), device), packing

    @cached_property
    def _in_gpu_memory(self) -> torch.Tensor | None:
        """All rows, where the GPU has twice their size of free memory."""
        if 2 * self.rows.nbytes > torch.cuda.mem_get_info()[0]:
            return None
        return torch.cat([torch.from_numpy(np.array(part)).cuda() for part in np.array_split(self.rows, 100)])

    def read_token_weights(self, indices: np.ndarray) -> np.ndarray | None:
        """The weights of these rows in "distinct" pooling, packed; None where the rows are no tokens."""
        return None if self.input_ids is None else _token_weights(self.input_ids, indices)

    def subset(self, indices: np.ndarray, song_index: np.ndarray) -> "CachedFeatures":
        """Some of the items, as items of other songs."""
        input_ids = self.input_ids and [self.input_ids[item] for item in indices]
        return CachedFeatures(self.rows, self.lengths[indices], song_index, input_ids, self._starts[indices])


@dataclass(frozen=True)
class OnTheFlyFeatures:
    """The same hidden states, computed by the frozen layers each time they are read: slower, but needs no disk."""

    encoder: Encoder
    frozen_layers: int
    chunks: Chunks

    lengths = cached_property(lambda self: self.chunks.lengths)
    song_index = property(lambda self: self.chunks.song_index)
    input_ids = property(lambda self: self.chunks.input_ids)

    @torch.no_grad()
    def read(self, indices: np.ndarray, device: torch.device | str | None = None) -> tuple[torch.Tensor, Packing]:
        network = self.encoder.network
        hidden, packing = encoders.embed_tokens(network, [self.chunks.input_ids[item] for item in indices])
        for layer in network.encoder.layer[: self.frozen_layers]:
            hidden = encoders.run_layer(layer, hidden, packing)
        return hidden, packing

    def read_token_weights(self, indices: np.ndarray) -> np.ndarray:
        return _token_weights(self.chunks.input_ids, indices)

    def subset(self, indices: np.ndarray, song_index: np.ndarray) -> "OnTheFlyFeatures":
        return replace(self, chunks=Chunks([self.chunks.input_ids[item] for item in indices], song_index))


Features = CachedFeatures | OnTheFlyFeatures


@dataclass(frozen=True)
class EncoderFeatures:
    """What one pass of the frozen encoder over some songs gives."""

    hidden_states: Features  # what the adapted layers read, one row per token
    # [CLS] of the last layer, then "mean" and then "distinct" pooling after each of the layers to be adapted, in order
    vectors: np.ndarray  # (1 + 2 * adapted_layers, n_chunks, hidden)
    song_index: np.ndarray  # song of each chunk, (n_chunks,)

    cls = property(lambda self: self.vectors[0])
    adapted_layers = property(lambda self: len(self.vectors) // 2)

    def pooled(self, pooling: str, layers: int = 1) -> np.ndarray:
        """One vector per song, (n_songs, hidden): [CLS], or the mean of the last `layers`, averaged over its chunks."""
        means = np.split(self.vectors[1:], 2)[pooling == "distinct"]
        vectors = self.cls if pooling == "cls" else means[-layers:].mean(axis=0)
        return average_by_song(vectors, self.song_index)

    def subset(self, songs: np.ndarray) -> "EncoderFeatures":
        """The features of some of the songs, given in ascending order."""
        items = np.flatnonzero(np.isin(self.song_index, songs))
        song_index = np.unique(self.song_index[items], return_inverse=True)[1]
        return EncoderFeatures(self.hidden_states.subset(items, song_index), self.vectors[:, items], song_index)


@checked
def extract_features(
    encoder: InstanceOf[Encoder], chunks: InstanceOf[Chunks], adapted_layers: Annotated[Whole, Field(ge=1)] = 4
) -> EncoderFeatures:
    """Run the frozen encoder once over all chunks, or read the result of an earlier run from the cache.

    An entry of the cache (see `cache_folder`) is found by `hash_encoder`, the number of frozen layers, the precision
    and a hash of every token, so it can never serve other data; an incomplete one is made anew. Where the disk has too
    little room, or another process holds the entry and makes no progress, the hidden states are computed on the fly.
    Raises `LyricsError` if the encoder has fewer layers, or the cache cannot be written.
    """
    frozen_layers, tokens = len(encoder.layers) - adapted_layers, int(chunks.lengths.sum())
    if frozen_layers < 0:
        raise LyricsError(f"adapted_layers={adapted_layers}: the encoder has {len(encoder.layers)} layers.")
    key = hashlib.sha256(f"{CACHE_FORMAT} {hash_encoder(encoder)} {frozen_layers} {best_precision()}".encode())
    for array in (chunks.lengths, *chunks.input_ids):
        key.update(array.tobytes())
    folder = cache_folder() / key.hexdigest()[:24]
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        entry = _read_entry(folder)
        if entry is None and _wait_for(lock, folder):  # of several processes, one fills the entry
            entry = _read_entry(folder)
            if entry is None and _has_room(folder.parent, 2.2 * tokens * encoder.hidden_size):
                with replacing(folder) as new:
                    new.mkdir()
                    with open(new / "states.npy", "wb") as states:
                        header = {"descr": "<f2", "fortran_order": False, "shape": (tokens, encoder.hidden_size)}
                        np.lib.format.write_array_header_1_0(states, header)
                        vectors = encode_chunks(encoder, chunks, adapted_layers, states)
                    np.save(new / "vectors.npy", vectors)
                    (new / "sha256").write_bytes(_hash_files(new))
                entry = _open_entry(folder)
    except (OSError, LyricsError) as error:
        reason = describe(error) if isinstance(error, OSError) else error
        raise LyricsError(f"{folder}: no place for a cache ({reason}). Set LYRICS_CACHE to another folder.") from error
    finally:
        lock.release()
    if entry is None:
        hidden_states = on_the_fly(encoder, frozen_layers, chunks)
        return EncoderFeatures(hidden_states, encode_chunks(encoder, chunks, adapted_layers), chunks.song_index)
    states, vectors = entry
    cached = CachedFeatures(states, chunks.lengths, chunks.song_index, chunks.input_ids)
    return EncoderFeatures(cached, vectors, chunks.song_index)


def _wait_for(lock: FileLock, folder: Path) -> bool:
    """Acquire the lock of an entry; false if the process that holds it makes no progress."""
    size = -1
    while True:
        try:
            lock.acquire(timeout=PATIENCE)
            return True
        except Timeout:
            before, unfinished = size, folder.parent.glob(f".{folder.name}.*.tmp/new/states.npy")
            size = sum(file.stat().st_size for file in unfinished)
            if size == before:
                print(f"Features not cached: {lock.lock_file} is held by a process that makes no progress.")
                return False
            print("Waiting for another process that computes the same features.")


def _read_entry(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Hidden states and pooled vectors; None where the entry is missing or damaged."""
    with suppress(OSError, LyricsError):
        if read_file(folder / "sha256") == _hash_files(folder):
            return _open_entry(folder)
    return None


def _open_entry(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "states.npy", mmap_mode="r"), np.load(folder / "vectors.npy")


def _hash_files(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for name in ("states.npy", "vectors.npy"):
        with open_file(folder / name) as file:
            while data := file.read(2**20):
                digest.update(data)
    return digest.hexdigest().encode()


def _has_room(folder: Path, needed: float) -> bool:
    if needed > (free := shutil.disk_usage(folder).free):
        print(f"Features not cached: {needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free.")
    return needed <= free


def encode_chunks(
    encoder: Encoder, chunks: Chunks, adapted_layers: int = 1, states: BinaryIO | None = None
) -> np.ndarray:
    """`EncoderFeatures.vectors`; what enters the adapted layers is written to `states` in half precision, if given."""
    lower, vectors = on_the_fly(encoder, len(encoder.layers) - adapted_layers, chunks), []

    def encode(indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, packing = lower.read(indices)
        outputs, weights = [hidden], to_device(lower.read_token_weights(indices), hidden.device)
        for layer in lower.encoder.layers[lower.frozen_layers :]:
            outputs.append(encoders.run_layer(layer, outputs[-1], packing))
        pooled = [encoders.pool_tokens(outputs[-1], packing, "cls")]
        for pooling in ("mean", "distinct"):
            pooled += [encoders.pool_tokens(output, packing, pooling, weights) for output in outputs[1:]]
        return hidden.half(), torch.stack(pooled)

    def keep(hidden: torch.Tensor, pooled: torch.Tensor) -> None:
        if states is not None:
            states.write(hidden.cpu().numpy())
        vectors.append(pooled.cpu().numpy())

    with ThreadPoolExecutor(1) as writer:  # a GPU computes the next pass while one is written
        written = writer.submit(int)
        for _, computed in in_passes(encode, lower.lengths, "frozen encoder"):
            written.result()
            written = writer.submit(keep, *computed)
        written.result()
    return np.concatenate(vectors, axis=1)


def embed_chunks(encoder: Encoder, chunks: Chunks, pooling: str = "cls") -> np.ndarray:
    """One vector per chunk from the last layer, (n_chunks, hidden); of [CLS], that layer runs for it alone."""
    if pooling != "cls":
        return encode_chunks(encoder, chunks)[1 + (pooling == "distinct")]
    lower = on_the_fly(encoder, len(encoder.layers) - 1, chunks)
    top = lower.encoder.layers[-1]
    passes = in_passes(
        lambda items: encoders.run_layer_for_first_token(top, *lower.read(items)), lower.lengths, "frozen encoder"
    )
    return torch.cat([vectors for _, vectors in passes]).float().cpu().numpy()


def in_passes(run: Callable, lengths: np.ndarray, name: str, batches: Iterable | None = None) -> Iterator[tuple]:
    """Items and what `run` makes of them, micro-batch by micro-batch, under a progress bar that counts their rows.

    Where a GPU has too little memory for a pass, it is done in halves; raises `LyricsError` if one item is too much.
    """
    with progress(total=int(lengths.sum()), desc=name, unit="token", unit_scale=True, delay=1) as bar:
        for indices in batch_by_tokens(lengths) if batches is None else batches:
            parts = [indices]
            while parts:
                part = parts.pop()
                try:
                    with torch.inference_mode():
                        result = run(part)
                except torch.OutOfMemoryError as error:
                    if len(part) == 1:
                        raise LyricsError(NO_MEMORY.format(int(lengths[part].sum()))) from error
                    parts += np.array_split(part, 2)[::-1]
                else:
                    yield part, result
                    bar.update(int(lengths[part].sum()))


def on_the_fly(encoder: Encoder, frozen_layers: int, chunks: Chunks) -> OnTheFlyFeatures:
    """The hidden states of some chunks, by a copy of the encoder in the precision that is fast here."""
    return OnTheFlyFeatures(replace(encoder, network=packed_copy(encoder.network)), frozen_layers, chunks)


def _token_weights(input_ids: Sequence[np.ndarray], indices: np.ndarray) -> np.ndarray:
    return np.concatenate([encoders.distinct_token_weights(input_ids[item]) for item in indices])
