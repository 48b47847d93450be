"""The frozen layers, run once: their output is kept on disk, and both models train from it.

A frozen layer without dropout gives the same output for the same chunk in every epoch, so it need not run again. One
pass over a data set yields what the adapted layers read (the states of every token) and what the baseline reads (the
final vector of every chunk). Only real tokens are kept, in half precision, in a memory-mapped file.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from lyric_utils.chunking import Chunks, average_by_song
from lyric_utils.encoders import (
    Encoder,
    embed_tokens,
    packed_weights,
    pool,
    run_layer,
    run_layer_for_first_token,
    weigh_distinct,
)
from lyric_utils.songs import LyricsError, folder_written_whole, remove_leftovers
from lyric_utils.sources import cache_folder

# Rows of one pass through the layers: bounds memory, fits a CPU's cache or fills a GPU.
TOKENS_AT_ONCE = 16_384 if torch.cuda.is_available() else 2_048

CACHE_FORMAT = 3  # raised when what stands in an entry changes


def pack(lengths: Sequence[int], limit: int = TOKENS_AT_ONCE) -> Iterator[np.ndarray]:
    """Cut a sequence of items into consecutive runs of at most `limit` rows (a longer item stands alone)."""
    start, rows = 0, 0
    for item, length in enumerate(lengths):
        if rows and rows + length > limit:
            yield np.arange(start, item)
            start, rows = item, 0
        rows += length
    if rows:
        yield np.arange(start, len(lengths))


@dataclass(frozen=True)
class StoredRows:
    """Rows computed before, item behind item, in an array or a memory-mapped file of shape (n_rows, hidden).

    Attributes:
        lengths: rows of each item, shape (n_items,); an item is a chunk, or a whole song for the baseline.
        song_index: song of each item, shape (n_items,), ascending.
        input_ids: tokens of each item, where the rows are tokens.
    """

    rows: np.ndarray
    lengths: np.ndarray
    song_index: np.ndarray
    input_ids: Sequence[np.ndarray] | None = None

    @cached_property
    def _ends(self) -> np.ndarray:
        return self.lengths.cumsum()

    def read(self, items: np.ndarray) -> torch.Tensor:
        """The rows of some items, packed: float32 tensor of shape (sum of their lengths, hidden)."""
        parts = [self.rows[self._ends[item] - self.lengths[item] : self._ends[item]] for item in items]
        return torch.from_numpy(np.concatenate(parts)).float()

    def read_weights(self, items: np.ndarray) -> torch.Tensor | None:
        """The weights of these rows in "distinct" pooling, packed; None where the rows are no tokens."""
        return None if self.input_ids is None else _weigh_tokens([self.input_ids[item] for item in items])


@dataclass(frozen=True)
class LiveRows:
    """The same rows, computed by the frozen layers each time they are read: slower, and no disk is needed."""

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
    def read(self, items: np.ndarray) -> torch.Tensor:
        chunks = [self.chunks.input_ids[item] for item in items]
        hidden = embed_tokens(self.encoder.network, chunks)
        for layer in self.encoder.layers[: self.frozen_layers]:
            hidden = run_layer(layer, hidden, [len(ids) for ids in chunks])
        return hidden

    def read_weights(self, items: np.ndarray) -> torch.Tensor:
        return _weigh_tokens([self.chunks.input_ids[item] for item in items])


Rows = StoredRows | LiveRows


@dataclass(frozen=True)
class FrozenPass:
    """What one pass of the frozen encoder over a data set gives.

    Attributes:
        states: what the adapted layers read, one row a token.
        cls: final vector of each chunk's first token, shape (n_chunks, hidden).
        means: "mean" and "distinct" pooling of each chunk after each of the adapted layers, still as pretrained, the
            last layer last: shape (adapted_layers, n_chunks, hidden).
        song_index: song of each chunk, shape (n_chunks,).
    """

    states: Rows
    cls: np.ndarray
    means: dict[str, np.ndarray]
    song_index: np.ndarray

    def song_vectors(self, pooling: str, pooled_layers: int = 1) -> np.ndarray:
        """The chunk vectors, [CLS] or the mean of the last `pooled_layers`, averaged over songs: (n_songs, hidden)."""
        vectors = self.cls if pooling == "cls" else self.means[pooling][-pooled_layers:].mean(axis=0)
        return average_by_song(vectors, self.song_index)


def run_frozen(encoder: Encoder, chunks: Chunks, adapted_layers: int = 4) -> FrozenPass:
    """Run the frozen encoder once over all chunks, or take the result of an earlier run from the cache.

    The cache lies in the folder that the environment variable `LYRICS_CACHE` names (default: `.cache/lyric_utils` in
    the home folder). An entry is found by a hash of the weights, of the split of the layers and of every token, so it
    can never serve other data; it is checked before use and made anew when damaged. Where the disk has too little
    room, the states are computed live instead. An entry may be deleted at any time.
    """
    frozen_layers = len(encoder.layers) - adapted_layers
    folder = cache_folder() / _key(encoder, chunks, frozen_layers)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # of several processes, one fills it, the others wait
            if not _is_sound(folder) and not _fill(folder, encoder, chunks, adapted_layers):
                vectors = encode_chunks(encoder, chunks, adapted_layers)
                return FrozenPass(LiveRows(encoder, frozen_layers, chunks), *vectors, chunks.song_index)
        states = np.load(folder / "states.npy", mmap_mode="r")
        cls, *means = np.load(folder / "vectors.npy")
        means = dict(zip(("mean", "distinct"), np.split(np.stack(means), 2), strict=True))
    except OSError as error:
        raise LyricsError(f"{folder}: no place for a cache ({error}). Set LYRICS_CACHE to another folder.") from error
    rows = StoredRows(states, chunks.lengths, chunks.song_index, chunks.input_ids)
    return FrozenPass(rows, cls, means, chunks.song_index)


def weights_hash(encoder: Encoder) -> str:
    """sha256 over the names and values of an encoder's weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(encoder.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(encoder: Encoder, chunks: Chunks, frozen_layers: int) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {weights_hash(encoder)} {frozen_layers}".encode())
    digest.update(chunks.lengths.tobytes())
    for ids in chunks.input_ids:
        digest.update(ids.tobytes())
    return digest.hexdigest()[:24]


@torch.inference_mode()
def encode_chunks(
    encoder: Encoder, chunks: Chunks, adapted_layers: int = 1, states: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run all layers over all chunks; on the way, store what enters the adapted layers into `states`, if given.

    Returns:
        `cls` and `means` of a `FrozenPass`.
    """
    cls, means, written = [], {"mean": [], "distinct": []}, 0
    rows = LiveRows(encoder, len(encoder.layers) - adapted_layers, chunks)
    with packed_weights(encoder.network):
        for items in _passes(rows.lengths):
            batch, hidden = rows.lengths[items].tolist(), rows.read(items)
            if states is not None:
                states[written : written + len(hidden)] = hidden.half().cpu().numpy()
            outputs = []
            for layer in encoder.layers[rows.frozen_layers :]:
                hidden = run_layer(layer, hidden, batch)
                outputs.append(hidden)
            cls.append(pool(hidden, batch, "cls").cpu().numpy())
            weights = rows.read_weights(items).to(hidden.device)
            for pooling, parts in means.items():
                parts.append(torch.stack([pool(output, batch, pooling, weights) for output in outputs]).cpu().numpy())
            written += len(hidden)
    return np.concatenate(cls), {pooling: np.concatenate(parts, axis=1) for pooling, parts in means.items()}


@torch.inference_mode()
def embed_chunks(encoder: Encoder, chunks: Chunks, pooling: str = "cls") -> np.ndarray:
    """One vector a chunk from the last layer, shape (n_chunks, hidden); of [CLS], that layer runs for it alone."""
    if pooling != "cls":
        return encode_chunks(encoder, chunks)[1][pooling][-1]
    rows, top = LiveRows(encoder, len(encoder.layers) - 1, chunks), encoder.layers[-1]
    with packed_weights(encoder.network):
        vectors = [
            run_layer_for_first_token(top, rows.read(items), rows.lengths[items].tolist())
            for items in _passes(rows.lengths)
        ]
    return torch.cat(vectors).cpu().numpy()


def _passes(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The runs of items that go through the layers together, under a progress bar that counts tokens."""
    with tqdm(total=int(lengths.sum()), desc="frozen layers", unit="token", unit_scale=True, leave=False) as bar:
        for items in pack(lengths):
            yield items
            bar.update(int(lengths[items].sum()))


def _weigh_tokens(input_ids: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([weigh_distinct(ids) for ids in input_ids]))


def _fill(folder: Path, encoder: Encoder, chunks: Chunks, adapted_layers: int) -> bool:
    """Write an entry of the cache; False, and nothing written, where the disk has too little room."""
    remove_leftovers(folder)
    shape = (int(chunks.lengths.sum()), encoder.hidden_size)
    size, free = shape[0] * shape[1] * 2, shutil.disk_usage(folder.parent).free
    if size * 1.1 > free:
        print(f"Frozen layers: {size / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free: not cached, run live.")
        return False
    print(f"Frozen layers: caching {len(chunks.input_ids):,} chunks, {size / 2**30:.2f} GiB.")
    with folder_written_whole(folder) as temporary:
        states = np.lib.format.open_memmap(temporary / "states.npy", mode="w+", dtype=np.float16, shape=shape)
        cls, means = encode_chunks(encoder, chunks, adapted_layers, states)
        states.flush()
        np.save(temporary / "vectors.npy", np.stack([cls, *means["mean"], *means["distinct"]]))
        (temporary / "checksums.json").write_text(json.dumps(_checksums(temporary)))
    return True


def _is_sound(folder: Path) -> bool:
    try:
        return json.loads((folder / "checksums.json").read_text()) == _checksums(folder)
    except (OSError, ValueError):
        return False


def _checksums(folder: Path) -> dict[str, int]:
    checksums = {}
    for name in ("states.npy", "vectors.npy"):
        checksums[name] = 0
        with open(folder / name, "rb") as file:
            while block := file.read(2**24):
                checksums[name] = zlib.crc32(block, checksums[name])
    return checksums
