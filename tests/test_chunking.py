"""From lyrics to windows of tokens, and back to songs."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Tokenizer

import lyric_utils as lu
from lyric_utils import chunking


def tokens_of(tokenizer, song):
    """All tokens of a song, without [CLS] and [SEP], by the tokenizer alone."""
    return tokenizer.encode(song, add_special_tokens=False).ids


def rebuilt(chunks, song, stride):
    """The tokens of a song from its chunks: of each but the first, what lies behind the overlap."""
    windows = [ids[1:-1].tolist() for ids, owner in zip(*chunks, strict=True) if owner == song]
    for before, after in pairwise(windows):
        assert before[len(before) - stride :] == after[:stride]
    return windows[0] + [token for window in windows[1:] for token in window[stride:]]


@pytest.fixture(scope="module")
def untruncated(encoder):
    """The same tokenizer, on which no cutting has been set."""
    tokenizer = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


word = st.sampled_from(["love", "the", "rain", "unbelievable", "don't", "é", "😀", "\n", "Zürich", "愛"])
song = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100),
    st.lists(word, min_size=1, max_size=150).map(" ".join),
)


@settings(max_examples=60)
@given(songs=st.lists(song, min_size=1, max_size=5), max_length=st.integers(3, 60), data=st.data())
def test_every_token_stands_in_a_chunk(encoder, untruncated, songs, max_length, data):
    stride = data.draw(st.integers(0, max_length - 3))
    tokens = [tokens_of(untruncated, text) for text in songs]
    assume(all(tokens))
    chunks = lu.chunk_lyrics(songs, encoder.tokenizer, max_length, stride)
    assert chunks.lengths.max() <= max_length
    assert chunks.song_index.tolist() == sorted(chunks.song_index)
    assert chunks.per_song.sum() == len(chunks.input_ids)
    for number, expected in enumerate(tokens):
        assert rebuilt(chunks, number, stride) == expected
        step = max_length - 2 - stride
        assert chunks.per_song[number] == 1 + max(0, -(-(len(expected) - (max_length - 2)) // step))
    for ids in chunks.input_ids:
        assert ids.dtype == np.int32
        assert (ids[0], ids[-1]) == (encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id)


@given(text=st.text(max_size=60))
def test_any_text_is_chunked_or_refused(encoder, text):
    """Whatever the characters, lone surrogates among them; only a text without tokens is refused."""
    if any(map(str.isalpha, text)):
        assert len(lu.chunk_lyrics([text], encoder.tokenizer).input_ids) >= 1
    else:
        try:
            lu.chunk_lyrics([text], encoder.tokenizer)
        except lu.LyricsError as error:
            assert "no tokens" in str(error)  # noqa: PT017


def test_song_of_4000_tokens_gives_11_chunks(encoder):
    chunks = lu.chunk_lyrics(["la " * 4_000, "love " * 510, "love " * 511], encoder.tokenizer)
    assert chunks.per_song.tolist() == [11, 1, 2]
    assert chunks.lengths[:10].tolist() == [512] * 10
    assert chunks.lengths[10] == 4_000 - 10 * (510 - 128) + 2


def test_order_across_batches(encoder, monkeypatch):
    monkeypatch.setattr(chunking, "LETTERS_AT_ONCE", 100)
    count = 101
    songs = pd.Series([f"{n} " * (n % 4 + 1) for n in range(count)], index=range(count, 0, -1))
    chunks = lu.chunk_lyrics(songs, encoder.tokenizer, max_length=5, stride=1)
    assert chunks.song_index.tolist() == sorted(chunks.song_index)
    assert [encoder.tokenizer.decode(chunks.input_ids[np.argmax(chunks.song_index == n)]).split()[1] for n in
            (0, 51, count - 1)] == ["0", "51", str(count - 1)]  # fmt: skip


def test_a_generator_of_songs_is_taken(encoder):
    chunks = lu.chunk_lyrics((text for text in ["love", "rain"]), encoder.tokenizer)
    assert chunks.per_song.tolist() == [1, 1]


def test_no_songs(encoder):
    chunks = lu.chunk_lyrics([], encoder.tokenizer)
    assert chunks.input_ids == []
    assert chunks.song_index.shape == chunks.per_song.shape == chunks.lengths.shape == (0,)


@pytest.mark.parametrize(
    ("lyrics", "options", "message"),
    [
        (["love", " \n "], {}, "song 1 .* no tokens"),
        (["love"] * 600 + [""], {}, "song 600 .* no tokens"),
        (["love", None], {}, "song 1 .* NoneType"),
        (["love", 5.0], {}, "song 1 .* float"),
        ("love", {}, r"\[brackets\]"),
        (["love"], {"stride": 510}, "stride=510"),
        (["love"], {"stride": -1}, "stride=-1"),
        (["love"], {"max_length": 2, "stride": 0}, "stride=0"),
        (["love"], {"max_length": 513}, "max_length=513"),
    ],
)
def test_chunking_errors(encoder, lyrics, options, message):
    with pytest.raises(lu.LyricsError, match=message):
        lu.chunk_lyrics(lyrics, encoder.tokenizer, **options)


# ---------------------------------------------------------------- back to songs


@st.composite
def values_and_songs(draw):
    per_song = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    song_index = draw(st.permutations([song for song, count in enumerate(per_song) for _ in range(count)]))
    shape = (len(song_index), *draw(st.sampled_from([(), (1,), (3,)])))
    return draw(arrays(np.float64, shape, elements=st.floats(-100, 100))), song_index


@given(values_and_songs())
def test_average_is_the_plain_mean(drawn):
    values, song_index = drawn
    expected = [
        np.mean([value for value, owner in zip(values, song_index, strict=True) if owner == song], axis=0)
        for song in range(max(song_index) + 1)
    ]
    np.testing.assert_allclose(lu.average_by_song(values, song_index), expected, atol=1e-12)
    tensor = torch.from_numpy(values).requires_grad_()
    average = lu.average_by_song(tensor, torch.tensor(song_index))
    np.testing.assert_allclose(average.detach().numpy(), expected, atol=1e-12)
    average.sum().backward()
    shares = 1 / np.bincount(song_index)[song_index]
    np.testing.assert_allclose(tensor.grad, np.broadcast_to(shares.reshape(-1, *[1] * (values.ndim - 1)), values.shape))


@pytest.mark.parametrize("song_index", [[0, 0], [0, 0, 2], [0, -1, 1], [0.0, 1.0, 1.0]])
def test_average_errors(song_index):
    with pytest.raises(lu.LyricsError):
        lu.average_by_song(np.ones(3), song_index)
