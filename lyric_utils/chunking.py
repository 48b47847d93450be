"""From lyrics to overlapping windows of tokens, and from values per window back to values per song."""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lyric_utils._checks import Whole, checked
from lyric_utils._files import LyricsError
from lyric_utils._progress import progress
from lyric_utils.songs import Lyrics

# Tokens of one micro-batch: bounds memory, fits a CPU's cache or fills a GPU.
TOKENS_PER_BATCH = 16_384 if torch.cuda.is_available() else 4_096
LETTERS_AT_ONCE = 2**20
TOKENIZING = Lock()  # a fast tokenizer keeps the settings of the call that it works on


class Chunks(NamedTuple):
    """Token windows of songs: each window has `lengths` (n_chunks,) tokens, each song `per_song` (n_songs,) windows."""

    input_ids: list[np.ndarray]  # one int32 array per chunk, [CLS] and [SEP] included
    song_index: np.ndarray  # position in the list of the song that a chunk belongs to, (n_chunks,)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.input_ids])

    @property
    def per_song(self) -> np.ndarray:
        return np.bincount(self.song_index)


@checked
def chunk_lyrics(
    lyrics: Lyrics, tokenizer: PreTrainedTokenizerBase, max_length: Whole = 512, stride: Whole = 128
) -> Chunks:
    """Cut each song into windows of at most `max_length` tokens; neighbours share `stride` tokens.

    The tokenizer, a fast one of transformers, does the cutting, so every token of a song is in at least one chunk and
    each chunk is a complete input of the encoder, special tokens included. A song of 4,000 tokens gives 11 chunks.
    Raises `LyricsError` if a song has no tokens or is not a text, or `check_windows` fails.
    """
    check_windows(tokenizer, max_length, stride)
    input_ids, song_index = [], []
    options = {"max_length": max_length, "stride": stride, "truncation": True, "return_overflowing_tokens": True}
    options |= {"return_attention_mask": False, "return_token_type_ids": False}
    with progress(total=len(lyrics), desc="chunk lyrics", unit="song", delay=1) as bar:
        for songs in batch_by_tokens([len(text) + 1 for text in lyrics], LETTERS_AT_ONCE):
            # without lone surrogates, which no tokenizer takes
            texts = [lyrics[song].encode("utf-8", "replace").decode() for song in songs]
            with TOKENIZING:
                encoded = tokenizer(texts, **options)
            input_ids += [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
            song_index += [songs[song] for song in encoded["overflow_to_sample_mapping"]]
            bar.update(len(songs))
    for ids, song in zip(input_ids, song_index, strict=True):
        if len(ids) <= tokenizer.num_special_tokens_to_add():
            raise LyricsError(f"song {song} (counting from 0) has no tokens: drop it, or run clean_songs first.")
    return Chunks(input_ids, np.array(song_index, dtype=np.int64))


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


def check_windows(tokenizer, max_length: int, stride: int) -> None:
    """Raise `LyricsError` unless windows of that length fit the encoder and move forward."""
    specials = tokenizer.num_special_tokens_to_add()
    if not 0 <= stride < max_length - specials:
        raise LyricsError(f"stride={stride}: 0 or more is needed, and less than max_length={max_length} - {specials}.")
    if max_length > tokenizer.model_max_length:
        raise LyricsError(f"max_length={max_length}: this encoder reads {tokenizer.model_max_length} tokens at most.")


@checked
def average_by_song(values, song_index):
    """Mean over the chunks of each song: array or tensor, (n_chunks,) or (n_chunks, d) -> (n_songs,) or (n_songs, d).

    `song_index`, (n_chunks,), holds whole numbers from 0 to n_songs - 1, each at least once; `LyricsError` is raised if
    it does not, or is not as long as `values`. Gradients flow through a tensor.
    """
    if not isinstance(values, torch.Tensor):
        return average_by_song(torch.from_numpy(np.array(values)), song_index).numpy()
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    song_index = torch.as_tensor(song_index, device=values.device)
    if len(values) != len(song_index):
        raise LyricsError(f"{len(values)} values for {len(song_index)} chunks: one value per chunk is needed.")
    if song_index.is_floating_point() or (song_index < 0).any() or (song_index >= len(song_index)).any():
        raise LyricsError("song_index must hold whole numbers from 0 on, and each at least once.")
    chunks = torch.bincount(song_index)
    if (chunks == 0).any():
        raise LyricsError(f"song {int((chunks == 0).nonzero()[0])} has no chunk to average.")
    sums = values.new_zeros(len(chunks), *values.shape[1:]).index_add(0, song_index, values)
    return sums / chunks.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))
