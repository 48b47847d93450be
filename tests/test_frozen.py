"""What a user relies on in the cache of the frozen layers: it never serves other data, and never a damaged file."""

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertModel

import lyric_utils as lu
from lyric_utils import frozen
from lyric_utils.encoders import as_encoder
from lyric_utils.frozen import LiveRows, StoredRows, embed_chunks, encode_chunks, pack, run_frozen
from lyric_utils.profiles import BASELINE, LORA_TUNED

SONGS = ["The kettle sings and so do I", "Rain on the roof " * 90, "Alone at the bus stop, again"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def chunks(tiny_encoder):
    return lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer, max_length=128, stride=32)


@pytest.fixture
def computed(monkeypatch):
    """Counts the passes that were really run."""
    passes, encode_chunks = [], frozen.encode_chunks

    def counted(*arguments):
        passes.append(arguments)
        return encode_chunks(*arguments)

    monkeypatch.setattr(frozen, "encode_chunks", counted)
    return passes


def with_other_weights(encoder):
    network = BertModel(encoder.network.config, add_pooling_layer=False)
    network.load_state_dict(encoder.network.state_dict())
    with torch.no_grad():
        network.encoder.layer[0].output.dense.bias[0] += 1e-3
    return as_encoder(encoder.name, encoder.tokenizer, network)


def entries(cache):
    """All that lies in the cache but the locks."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def same(one, other):
    assert one.song_index.tolist() == other.song_index.tolist()
    np.testing.assert_array_equal(one.cls, other.cls)
    for pooling in ("mean", "distinct"):
        np.testing.assert_array_equal(one.means[pooling], other.means[pooling])
    items = np.arange(len(one.song_index))
    assert torch.equal(one.states.read(items), other.states.read(items))


def test_a_second_run_reads_what_the_first_wrote(tiny_encoder, chunks, cache, computed):
    first, second = run_frozen(tiny_encoder, chunks), run_frozen(tiny_encoder, chunks)
    assert len(computed) == 1
    same(first, second)


def test_only_real_tokens_are_kept_in_half_precision_and_not_in_memory(tiny_encoder, chunks, cache):
    rows = run_frozen(tiny_encoder, chunks).states.rows
    assert isinstance(rows, np.memmap)
    assert rows.dtype == np.float16
    assert rows.shape == (chunks.lengths.sum(), tiny_encoder.hidden_size)


def test_another_encoder_split_chunking_or_song_is_another_entry(tiny_encoder, chunks, cache, computed):
    tokenizer = tiny_encoder.tokenizer
    run_frozen(tiny_encoder, chunks)
    run_frozen(with_other_weights(tiny_encoder), chunks)
    run_frozen(tiny_encoder, chunks, adapted_layers=3)
    run_frozen(tiny_encoder, lu.chunk_lyrics(SONGS, tokenizer, max_length=128, stride=31))
    run_frozen(tiny_encoder, lu.chunk_lyrics([SONGS[0] + "!", *SONGS[1:]], tokenizer, max_length=128, stride=32))
    run_frozen(tiny_encoder, lu.chunk_lyrics(SONGS[::-1], tokenizer, max_length=128, stride=32))
    assert len(computed) == len(entries(cache)) == 6
    run_frozen(tiny_encoder, chunks)
    assert len(computed) == 6


@pytest.mark.parametrize("name", ["states.npy", "vectors.npy", "checksums.json"])
@pytest.mark.parametrize("harm", ["truncated", "one byte changed", "emptied", "removed"])
def test_a_damaged_entry_is_made_anew(tiny_encoder, chunks, cache, computed, name, harm):
    sound = run_frozen(tiny_encoder, chunks)
    [folder] = entries(cache)
    copy = replace(sound, states=replace(sound.states, rows=np.array(sound.states.rows)))
    path = folder / name
    content = path.read_bytes()
    path.unlink()  # a new file: the old one is mapped into memory
    if harm == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "one byte changed":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif harm == "emptied":
        path.write_bytes(b"")
    same(run_frozen(tiny_encoder, chunks), copy)
    assert len(computed) == 2
    run_frozen(tiny_encoder, chunks)
    assert len(computed) == 2


def test_an_interrupted_pass_leaves_nothing(tiny_encoder, chunks, cache, monkeypatch):
    with monkeypatch.context() as patched:

        def interrupted(*arguments):
            raise KeyboardInterrupt

        patched.setattr(frozen, "pool", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_frozen(tiny_encoder, chunks)
    assert entries(cache) == []
    run_frozen(tiny_encoder, chunks)
    assert len(entries(cache)) == 1


def test_the_size_is_said_before_it_is_written(tiny_encoder, chunks, cache, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(frozen, "encode_chunks", lambda *_: said.append(capsys.readouterr().out) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_frozen(tiny_encoder, chunks)
    size = chunks.lengths.sum() * tiny_encoder.hidden_size * 2 / 2**30
    assert f"{len(chunks.input_ids)} chunks, {size:.2f} GiB" in said[0]


def test_a_short_disk_means_no_cache_and_the_same_predictions(tiny_encoder, chunks, cache, monkeypatch, capsys):
    lora, baseline = (lu.build_model(tiny_encoder, recipe).eval() for recipe in (LORA_TUNED, BASELINE))
    stored = run_frozen(tiny_encoder, chunks)
    shutil.rmtree(cache)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    live = run_frozen(tiny_encoder, chunks)
    assert "not cached" in capsys.readouterr().out
    assert entries(cache) == []
    assert isinstance(stored.states, StoredRows)
    assert isinstance(live.states, LiveRows)
    for model in (lora, baseline):
        one, other = (lu.score_songs(model, model.rows_of_pass(run)) for run in (stored, live))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_vectors_of_chunks_are_those_of_the_whole_pass(tiny_encoder, chunks):
    cls, means = encode_chunks(tiny_encoder, chunks)
    assert cls.std(0).max() > 1e-3, "the chunks have one vector: nothing is compared"
    np.testing.assert_allclose(embed_chunks(tiny_encoder, chunks), cls, atol=1e-6)
    for pooling in ("mean", "distinct"):
        np.testing.assert_array_equal(embed_chunks(tiny_encoder, chunks, pooling), means[pooling][-1])


@given(st.lists(st.integers(1, 600)), st.integers(1, 2_048))
def test_packing_takes_every_item_once_in_order_within_the_limit(lengths, limit):
    runs = list(pack(lengths, limit))
    assert [item for run in runs for item in run] == list(range(len(lengths)))
    rows = [sum(lengths[item] for item in run) for run in runs]
    assert all(count <= limit or len(run) == 1 for count, run in zip(rows, runs, strict=True))
    for count, following in zip(rows, runs[1:], strict=False):
        assert count + lengths[following[0]] > limit  # no run could have taken one item more
