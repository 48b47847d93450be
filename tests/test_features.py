"""What a user relies on in the encoder's features: the cache never serves other data, and never a damaged file."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from conftest import SONGS
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertModel

import lyric_utils as lu
from lyric_utils import features
from lyric_utils.chunking import batch_by_tokens
from lyric_utils.encoders import as_encoder
from lyric_utils.features import (
    CachedFeatures,
    OnTheFlyFeatures,
    embed_chunks,
    encode_chunks,
    extract_features,
)


@pytest.fixture
def computed(monkeypatch):
    """Counts the passes that were really run."""
    passes = []

    def counted(*arguments):
        passes.append(arguments)
        return encode_chunks(*arguments)

    monkeypatch.setattr(features, "encode_chunks", counted)
    return passes


def with_other_parameters(encoder):
    network = BertModel(encoder.network.config, add_pooling_layer=False)
    network.load_state_dict(encoder.network.state_dict())
    with torch.no_grad():
        network.encoder.layer[0].output.dense.bias[0] += 1e-3
    return as_encoder(encoder.name, encoder.tokenizer, network)


def entries(cache):
    """All that lies in the cache but the locks."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def assert_same(one, other, atol=0.0):
    assert one.song_index.tolist() == other.song_index.tolist()
    np.testing.assert_allclose(one.vectors, other.vectors, atol=atol)
    items = np.arange(len(one.song_index))
    for item in [items, items[::-2]]:
        rows = [each.hidden_states.read(item)[0].float() for each in (one, other)]
        torch.testing.assert_close(*rows, atol=atol, rtol=0)
        weights = [each.hidden_states.read_token_weights(item) for each in (one, other)]
        np.testing.assert_array_equal(*weights)


def test_a_second_run_reads_what_the_first_wrote(tiny_encoder, chunks, cache, computed):
    first, second = extract_features(tiny_encoder, chunks), extract_features(tiny_encoder, chunks)
    assert len(computed) == 1
    assert_same(first, second)


def test_only_real_tokens_are_kept_in_half_precision_and_not_in_memory(tiny_encoder, chunks, cache):
    rows = extract_features(tiny_encoder, chunks).hidden_states.rows
    assert isinstance(rows, np.memmap)
    assert rows.dtype == np.float16
    assert rows.shape == (chunks.lengths.sum(), tiny_encoder.hidden_size)


def test_another_encoder_depth_chunking_or_song_is_another_entry(tiny_encoder, chunks, cache, computed):
    tokenizer = tiny_encoder.tokenizer
    extract_features(tiny_encoder, chunks)
    extract_features(with_other_parameters(tiny_encoder), chunks)
    extract_features(tiny_encoder, chunks, adapted_layers=3)
    extract_features(tiny_encoder, lu.chunk_lyrics(SONGS, tokenizer, max_length=128, stride=31))
    extract_features(tiny_encoder, lu.chunk_lyrics([SONGS[0] + "!", *SONGS[1:]], tokenizer, max_length=128, stride=32))
    extract_features(tiny_encoder, lu.chunk_lyrics(SONGS[::-1], tokenizer, max_length=128, stride=32))
    assert len(computed) == len(entries(cache)) == 6
    extract_features(tiny_encoder, chunks)
    assert len(computed) == 6


@pytest.mark.parametrize("name", ["states.npy", "vectors.npy"])
@pytest.mark.parametrize("damage", ["cut short", "emptied", "removed", "of another shape"])
def test_an_incomplete_entry_is_made_anew(tiny_encoder, chunks, cache, computed, name, damage):
    extract_features(tiny_encoder, chunks)
    path = next(cache.glob(f"*/{name}"))
    content = path.read_bytes()
    path.unlink()  # a new file: the old one is mapped into memory
    if damage == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "of another shape":
        np.save(path, np.zeros((3, 7, 2), np.float16))
    made = extract_features(tiny_encoder, chunks)
    assert len(computed) == 2
    assert path.read_bytes() == content
    assert_same(extract_features(tiny_encoder, chunks), made)
    assert len(computed) == 2


def test_an_interrupted_pass_leaves_nothing(tiny_encoder, chunks, cache, monkeypatch):
    with monkeypatch.context() as patched:

        def interrupted(*arguments):
            raise KeyboardInterrupt

        patched.setattr(features.encoders, "pool_tokens", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract_features(tiny_encoder, chunks)
    assert entries(cache) == []
    extract_features(tiny_encoder, chunks)
    assert len(entries(cache)) == 1


def test_without_room_on_the_disk_the_same_is_computed_on_the_fly(tiny_encoder, chunks, cache, monkeypatch, capsys):
    cached = extract_features(tiny_encoder, chunks)
    shutil.rmtree(cache)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    computed = extract_features(tiny_encoder, chunks)
    size = chunks.lengths.sum() * tiny_encoder.hidden_size * 2 / 2**30
    assert f"{size:.2f} GiB needed" in (said := capsys.readouterr().out)
    assert "not cached" in said
    assert entries(cache) == []
    assert isinstance(cached.hidden_states, CachedFeatures)
    assert isinstance(computed.hidden_states, OnTheFlyFeatures)
    assert_same(cached, computed, atol=2e-3)  # half precision


def test_a_cache_that_cannot_be_written_is_named(tiny_encoder, chunks, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path / "file"))
    with pytest.raises(lu.LyricsError, match=r"file.*LYRICS_CACHE"):
        extract_features(tiny_encoder, chunks)


@pytest.mark.parametrize("kept", [[0], [0, 2], [1], [0, 1, 2]])
@pytest.mark.parametrize("is_cached", [True, False])
def test_a_subset_has_the_features_of_its_songs(tiny_encoder, chunks, cache, kept, is_cached, monkeypatch):
    if not is_cached:
        monkeypatch.setattr(features, "_has_room", lambda *_: False)
    whole = extract_features(tiny_encoder, chunks)
    few = lu.chunk_lyrics([SONGS[song] for song in kept], tiny_encoder.tokenizer, max_length=128, stride=32)
    alone = extract_features(tiny_encoder, few)
    assert_same(whole.subset(np.array(kept)), alone, atol=1e-3)
    assert_same(whole.subset(np.arange(3)).subset(np.array(kept)), alone, atol=1e-3)
    np.testing.assert_allclose(whole.pooled("distinct", 3)[kept], alone.pooled("distinct", 3), atol=1e-6)
    for pooling in ("mean", "distinct"):  # no more layers than there are: none of the other pooling, nor [CLS]
        np.testing.assert_array_equal(whole.pooled(pooling, 9), whole.pooled(pooling, 4))


def test_vectors_of_chunks_are_those_of_the_whole_pass(tiny_encoder, chunks):
    cls, mean, distinct = encode_chunks(tiny_encoder, chunks)
    assert cls.std(0).max() > 1e-3, "the chunks have one vector: nothing is compared"
    np.testing.assert_allclose(embed_chunks(tiny_encoder, chunks), cls, atol=1e-6)
    for pooling, vectors in {"mean": mean, "distinct": distinct}.items():
        np.testing.assert_array_equal(embed_chunks(tiny_encoder, chunks, pooling), vectors)


@given(st.lists(st.integers(1, 600)), st.integers(1, 2_048))
def test_a_batch_takes_every_item_once_in_order_within_the_limit(lengths, limit):
    batches = list(batch_by_tokens(lengths, limit))
    assert [item for batch in batches for item in batch] == list(range(len(lengths)))
    tokens = [sum(lengths[item] for item in batch) for batch in batches]
    assert all(count <= limit or len(batch) == 1 for count, batch in zip(tokens, batches, strict=True))
    for count, following in zip(tokens, batches[1:], strict=False):
        assert count + lengths[following[0]] > limit  # no batch could have taken one item more
