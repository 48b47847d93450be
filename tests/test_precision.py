"""Half precision, and devices with little memory, change how long a prediction takes but hardly what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SONGS
from torch import nn

import lyric_utils as lu
from lyric_utils import _packed, models, training
from lyric_utils.checkpoints import shipped_folder
from lyric_utils.features import extract_features
from lyric_utils.profiles import LORA_PAPER
from lyric_utils.training import Examples, fit


@pytest.fixture
def half(monkeypatch):
    """As on a processor with bfloat16; on others PyTorch computes the same, slowly."""
    monkeypatch.delenv("LYRICS_PRECISION")
    monkeypatch.setattr(_packed, "fast_precisions", lambda: ["bfloat16", "float32"])


@pytest.mark.parametrize("name", ["baseline", "lora", "blend"])
def test_half_precision_moves_no_song_of_the_sample_by_more_than_five_thousandths(name, encoder, half, monkeypatch):
    model = lu.load_model(shipped_folder(name), encoder)
    lyrics = lu.load_source(lu.load_profile("sample"))["lyrics"].tolist()[:60]
    fast = model.predict(lyrics)
    monkeypatch.setenv("LYRICS_PRECISION", "float32")
    assert 0 < np.abs(fast - model.predict(lyrics)).max() < 0.005


def test_a_precision_without_instructions_is_refused_in_one_sentence(tiny_encoder, monkeypatch):
    monkeypatch.setattr(_packed, "fast_precisions", lambda: ["float32"])
    monkeypatch.setenv("LYRICS_PRECISION", "bfloat16")
    with pytest.raises(lu.LyricsError, match="LYRICS_PRECISION=bfloat16: this machine is fast in float32"):
        lu.build_model(tiny_encoder, LORA_PAPER).predict(SONGS)


def test_cached_layers_of_one_precision_are_not_taken_for_those_of_another(tiny_encoder, cache, half, monkeypatch):
    chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer)
    fast = extract_features(tiny_encoder, chunks).cls
    monkeypatch.setenv("LYRICS_PRECISION", "float32")
    exact = extract_features(tiny_encoder, chunks).cls
    assert 0 < np.abs(fast - exact).max() < 0.1


def with_memory_for(tokens: int, read):
    """`read_batch` on a GPU that has room for so many tokens at once."""

    def limited(*arguments):
        rows, *rest = read(*arguments)
        if len(rows) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows, *rest

    return limited


def test_a_prediction_without_enough_memory_is_done_in_smaller_passes(tiny_encoder, monkeypatch):
    model = lu.build_model(tiny_encoder, LORA_PAPER)
    expected = model.predict(SONGS * 5)
    monkeypatch.setattr(models, "read_batch", with_memory_for(600, models.read_batch))
    np.testing.assert_allclose(model.predict(SONGS * 5), expected, atol=1e-6)
    monkeypatch.setattr(models, "read_batch", with_memory_for(4, models.read_batch))
    with pytest.raises(lu.LyricsError, match="the GPU has too little memory for 13 tokens at once"):
        model.predict(SONGS)


def test_a_training_without_enough_memory_is_done_in_smaller_passes(tiny_encoder, monkeypatch):
    model = lu.build_model(tiny_encoder, replace(LORA_PAPER, epochs=1))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    inputs = model.inputs_from_chunks(lu.chunk_lyrics(SONGS * 4, tiny_encoder.tokenizer))
    examples = Examples(inputs, np.linspace(0, 1, 12))
    [expected] = fit(model, examples, examples)
    monkeypatch.setattr(training, "read_batch", with_memory_for(2_000, training.read_batch))
    [found] = fit(model, examples, examples)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-5)
    assert found["validation_mse"] == pytest.approx(expected["validation_mse"], abs=1e-5)
    monkeypatch.setattr(training, "read_batch", with_memory_for(4, training.read_batch))
    with pytest.raises(lu.LyricsError, match="too little memory"):
        fit(model, examples, examples)


def test_training_in_float16_scales_the_loss_and_learns_the_same(tiny_encoder):
    """As on a GPU without bfloat16, such as Colab's T4."""
    model = lu.build_model(tiny_encoder, replace(LORA_PAPER, epochs=2, batch_songs=4))
    inputs = model.inputs_from_chunks(lu.chunk_lyrics(SONGS * 4, tiny_encoder.tokenizer))
    examples = Examples(inputs, np.linspace(0, 1, 12))
    exact, half = (fit(model, examples, examples, precision=precision) for precision in ("float32", "float16"))
    losses = [[epoch["train_loss"] for epoch in history] for history in (exact, half)]
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert losses[0] != losses[1]
