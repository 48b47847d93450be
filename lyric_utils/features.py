"""What the frozen encoder says of the songs: computed once, kept on disk, read by every model.

A frozen layer gives the same output for the same chunk in every epoch, so it need not run again. One pass over the
songs yields what the adapted layers read (the hidden state of every token) and what the baseline reads (pooled vectors
of every chunk). Only real tokens are kept, in half precision, in a memory-mapped file.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from lyric_utils._files import LyricsError, atomic_write_folder, remove_leftovers
from lyric_utils._packed import packed_weights
from lyric_utils._progress import progress
from lyric_utils.chunking import Chunks, average_by_song
from lyric_utils.encoders import (
    Encoder,
    distinct_token_weights,
    embed_tokens,
    hash_encoder,
    pool_tokens,
    run_layer,
    run_layer_for_first_token,
)
from lyric_utils.sources import cache_folder

# Tokens of one micro-batch: bounds memory, fits a CPU's cache or fills a GPU.
TOKENS_PER_BATCH = 16_384 if torch.cuda.is_available() else 2_048
CACHE_FORMAT = 4  # raised when the content of an entry changes


def batch_by_tokens(lengths: Sequence[int], limit: int = TOKENS_PER_BATCH) -> Iterator[np.ndarray]:
    """Indices of consecutive micro-batches of at most `limit` tokens; a longer item stands alone."""
    start, tokens = 0, 0
    for item, length in enumerate(lengths):
        if tokens and tokens + length > limit:
            yield np.arange(start, item)
            start, tokens = item, 0
        tokens += length
    if tokens:
        yield np.arange(start, len(lengths))


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

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """The rows of some items, packed: float32 tensor of shape (sum of their lengths, hidden)."""
        parts = [self.rows[self._starts[item] : self._starts[item] + self.lengths[item]] for item in indices]
        return torch.from_numpy(np.concatenate(parts)).float()

    def read_token_weights(self, indices: np.ndarray) -> torch.Tensor | None:
        """The weights of these rows in "distinct" pooling, packed; None where the rows are no tokens."""
        return None if self.input_ids is None else _token_weights([self.input_ids[item] for item in indices])

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

    @cached_property
    def lengths(self) -> np.ndarray:
        return self.chunks.lengths

    @property
    def song_index(self) -> np.ndarray:
        return self.chunks.song_index

    @torch.no_grad()
    def read(self, indices: np.ndarray) -> torch.Tensor:
        chunks = [self.chunks.input_ids[item] for item in indices]
        hidden = embed_tokens(self.encoder.network, chunks)
        for layer in self.encoder.layers[: self.frozen_layers]:
            hidden = run_layer(layer, hidden, [len(ids) for ids in chunks])
        return hidden

    def read_token_weights(self, indices: np.ndarray) -> torch.Tensor:
        return _token_weights([self.chunks.input_ids[item] for item in indices])

    def subset(self, indices: np.ndarray, song_index: np.ndarray) -> "OnTheFlyFeatures":
        return replace(self, chunks=Chunks([self.chunks.input_ids[item] for item in indices], song_index))


Features = CachedFeatures | OnTheFlyFeatures


@dataclass(frozen=True)
class EncoderFeatures:
    """What one pass of the frozen encoder over some songs gives."""

    hidden_states: Features  # what the adapted layers read, one row per token
    cls: np.ndarray  # final vector of each chunk's first token, (n_chunks, hidden)
    # "mean" and "distinct" pooling after each of the layers to be adapted, last one last: (layers, n_chunks, hidden)
    means: dict[str, np.ndarray]
    song_index: np.ndarray  # song of each chunk, (n_chunks,)

    def pooled(self, pooling: str, layers: int = 1) -> np.ndarray:
        """One vector per song, (n_songs, hidden): [CLS], or the mean of the last `layers`, averaged over its chunks."""
        vectors = self.cls if pooling == "cls" else self.means[pooling][-layers:].mean(axis=0)
        return average_by_song(vectors, self.song_index)

    def subset(self, songs: np.ndarray) -> "EncoderFeatures":
        """The features of some of the songs, given in ascending order."""
        items = np.flatnonzero(np.isin(self.song_index, songs))
        song_index = np.unique(self.song_index[items], return_inverse=True)[1]
        means = {pooling: vectors[:, items] for pooling, vectors in self.means.items()}
        return EncoderFeatures(self.hidden_states.subset(items, song_index), self.cls[items], means, song_index)


def extract_features(encoder: Encoder, chunks: Chunks, adapted_layers: int = 4) -> EncoderFeatures:
    """Run the frozen encoder once over all chunks, or read the result of an earlier run from the cache.

    An entry of the cache (see `cache_folder`) is found by a hash of the encoder's parameters, of the number of frozen
    layers and of every token, so it can never serve other data; an incomplete one is made anew. Where the disk has too
    little room, the hidden states are computed on the fly. Raises `LyricsError` if the cache cannot be written.
    """
    frozen_layers = len(encoder.layers) - adapted_layers
    folder = cache_folder() / _key(encoder, chunks, frozen_layers)
    size = (int(chunks.lengths.sum()), encoder.hidden_size)
    shapes = [size, (1 + 2 * adapted_layers, len(chunks.input_ids), encoder.hidden_size)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # of several processes, one fills it, the others wait
            entry = _read_entry(folder, shapes)
            if entry is None and _has_room(folder.parent, size):
                _write_entry(folder, encoder, chunks, adapted_layers, size)
                entry = _read_entry(folder, shapes)
    except OSError as error:
        raise LyricsError(f"{folder}: no place for a cache ({error}). Set LYRICS_CACHE to another folder.") from error
    if entry is None:
        hidden_states = OnTheFlyFeatures(encoder, frozen_layers, chunks)
        return EncoderFeatures(hidden_states, *encode_chunks(encoder, chunks, adapted_layers), chunks.song_index)
    states, (cls, *means) = entry
    means = dict(zip(("mean", "distinct"), np.split(np.stack(means), 2), strict=True))
    hidden_states = CachedFeatures(states, chunks.lengths, chunks.song_index, chunks.input_ids)
    return EncoderFeatures(hidden_states, cls, means, chunks.song_index)


def _key(encoder: Encoder, chunks: Chunks, frozen_layers: int) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {hash_encoder(encoder)} {frozen_layers}".encode())
    digest.update(chunks.lengths.tobytes())
    for ids in chunks.input_ids:
        digest.update(ids.tobytes())
    return digest.hexdigest()[:24]


def _read_entry(folder: Path, shapes: list[tuple]) -> tuple[np.ndarray, np.ndarray] | None:
    """Hidden states and pooled vectors; None where the entry is missing, cut short or of other shapes."""
    try:
        entry = np.load(folder / "states.npy", mmap_mode="r"), np.load(folder / "vectors.npy")
        return entry if [array.shape for array in entry] == shapes else None
    except (OSError, ValueError, EOFError):
        return None


def _has_room(folder: Path, size: tuple[int, int]) -> bool:
    needed, free = size[0] * size[1] * 2, shutil.disk_usage(folder).free
    if needed * 1.1 <= free:
        return True
    print(f"Features: {needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free: not cached, computed on the fly.")
    return False


def _write_entry(folder: Path, encoder: Encoder, chunks: Chunks, adapted_layers: int, size: tuple[int, int]) -> None:
    remove_leftovers(folder)
    with atomic_write_folder(folder) as temporary:
        states = np.lib.format.open_memmap(temporary / "states.npy", mode="w+", dtype=np.float16, shape=size)
        cls, means = encode_chunks(encoder, chunks, adapted_layers, states)
        states.flush()
        np.save(temporary / "vectors.npy", np.stack([cls, *means["mean"], *means["distinct"]]))


@torch.inference_mode()
def encode_chunks(
    encoder: Encoder, chunks: Chunks, adapted_layers: int = 1, states: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`cls` and `means` of `EncoderFeatures`; what enters the adapted layers is stored into `states`, if given."""
    cls, means, written = [], {"mean": [], "distinct": []}, 0
    lower = OnTheFlyFeatures(encoder, len(encoder.layers) - adapted_layers, chunks)
    with packed_weights(encoder.network):
        for indices in _batches(lower.lengths):
            lengths, hidden = lower.lengths[indices].tolist(), lower.read(indices)
            if states is not None:
                states[written : written + len(hidden)] = hidden.half().cpu().numpy()
            outputs = []
            for layer in encoder.layers[lower.frozen_layers :]:
                hidden = run_layer(layer, hidden, lengths)
                outputs.append(hidden)
            cls.append(pool_tokens(hidden, lengths, "cls").cpu().numpy())
            weights = lower.read_token_weights(indices).to(hidden.device)
            for pooling, parts in means.items():
                vectors = [pool_tokens(output, lengths, pooling, weights) for output in outputs]
                parts.append(torch.stack(vectors).cpu().numpy())
            written += len(hidden)
    return np.concatenate(cls), {pooling: np.concatenate(parts, axis=1) for pooling, parts in means.items()}


@torch.inference_mode()
def embed_chunks(encoder: Encoder, chunks: Chunks, pooling: str = "cls") -> np.ndarray:
    """One vector per chunk from the last layer, (n_chunks, hidden); of [CLS], that layer runs for it alone."""
    if pooling != "cls":
        return encode_chunks(encoder, chunks)[1][pooling][-1]
    lower, top = OnTheFlyFeatures(encoder, len(encoder.layers) - 1, chunks), encoder.layers[-1]
    with packed_weights(encoder.network):
        vectors = [
            run_layer_for_first_token(top, lower.read(indices), lower.lengths[indices].tolist())
            for indices in _batches(lower.lengths)
        ]
    return torch.cat(vectors).cpu().numpy()


def _batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The micro-batches, under a progress bar that counts tokens."""
    with progress(total=int(lengths.sum()), desc="frozen encoder", unit="token", unit_scale=True, delay=1) as bar:
        for indices in batch_by_tokens(lengths):
            yield indices
            bar.update(int(lengths[indices].sum()))


def _token_weights(input_ids: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([distinct_token_weights(ids) for ids in input_ids]))
