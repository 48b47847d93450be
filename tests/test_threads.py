"""Threads that share a model: each gets what it would get alone, and the model stays as it is."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from conftest import SONGS, disturb
from torch import nn

import lyric_utils as lu
from lyric_utils.blend import BlendRegressor
from lyric_utils.features import embed_chunks, encode_chunks
from lyric_utils.models import SongRegressor
from lyric_utils.profiles import LORA_TUNED

THREADS, CALLS = 4, 3
BATCHES = [SONGS, SONGS[::-1], SONGS[:1], [*SONGS, *SONGS], ["Grey rain and the harbour"], SONGS[1:]]


@pytest.fixture(autouse=True)
def one_core():
    """Each thread with one core of its own, as on a server."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_threads(function, inputs: list) -> list:
    """The results for each of the inputs, of calls that start together in four threads."""
    together = Barrier(THREADS)

    def call(value):
        together.wait(30)
        return function(value)

    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(call, inputs)]


def traits(model: SongRegressor | BlendRegressor) -> list:
    """All that a call could leave changed: the modules themselves, what they hold, and their values."""
    network = model.encoder_model if isinstance(model, BlendRegressor) else model
    modules = [*network.named_modules(), *model.encoder.network.named_modules(prefix="encoder")]
    found = [(name, id(module), module.training, sorted(vars(module)), module.forward) for name, module in modules]
    parameters = [*network.parameters(), *model.encoder.network.parameters()]
    values = [(id(values), values.requires_grad, values.grad, values.detach().sum().item()) for values in parameters]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for _, module in modules]
    return [found, values, hooks, torch.is_grad_enabled(), torch.is_inference_mode_enabled()]


def test_four_threads_with_one_model_get_what_each_gets_alone(model):
    alone = [model.predict(batch) for batch in BATCHES]
    before = traits(model)
    which = [number % len(BATCHES) for number in range(THREADS * CALLS)]
    for number, found in zip(which, in_threads(lambda number: model.predict(BATCHES[number]), which), strict=True):
        np.testing.assert_array_equal(found, alone[number])
    assert traits(model) == before


def test_four_threads_with_a_model_each_on_one_encoder(tiny_encoder):
    """Of two kinds, whose frozen layers are the same modules."""
    models = [
        disturb(lu.build_model(tiny_encoder, recipe)) for recipe in (LORA_TUNED, lu.load_profile().recipes["baseline"])
    ]
    alone = [model.predict(SONGS) for model in models]
    before = [traits(model) for model in models]
    found = in_threads(lambda number: models[number % 2].predict(SONGS), [*range(THREADS * CALLS)])
    for number, prediction in enumerate(found):
        np.testing.assert_array_equal(prediction, alone[number % 2])
    assert [traits(model) for model in models] == before


def test_prediction_leaves_a_model_in_training_as_it_is(tiny_encoder):
    """Its dropout stays on, and its gradients stay, while another thread predicts."""
    model = disturb(lu.build_model(tiny_encoder, LORA_TUNED)).train()
    sum(values.sum() for values in model.trainable_parameters().values()).backward()
    gradients = {name: values.grad.clone() for name, values in model.trainable_parameters().items()}
    alone = model.predict(SONGS)
    before = [module.training for module in model.modules()]
    assert any(before)
    for found in in_threads(model.predict, [SONGS] * 8):
        np.testing.assert_array_equal(found, alone)
    assert [module.training for module in model.modules()] == before
    for name, values in model.trainable_parameters().items():
        assert torch.equal(values.grad, gradients[name])
    np.testing.assert_array_equal(model.eval().predict(SONGS), alone)


def test_what_is_learned_after_a_prediction_counts_in_the_next(tiny_encoder):
    """No copy of the parameters is kept."""
    model = disturb(lu.build_model(tiny_encoder, LORA_TUNED))
    before = model.predict(SONGS)
    with torch.no_grad():
        model.output_layer.bias.add_(0.1)
    np.testing.assert_allclose(model.predict(SONGS), before + 0.1, atol=1e-5)


def test_four_threads_share_an_encoder(tiny_encoder):
    """Its tokenizer with windows of two lengths, and its layers."""
    lengths = [64, 128]
    alone = [lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer, length, 16) for length in lengths]
    vectors = [(embed_chunks(tiny_encoder, chunks), encode_chunks(tiny_encoder, chunks, 2)) for chunks in alone]
    modules = [
        (module.training, module.forward) for module in tiny_encoder.network.modules() if isinstance(module, nn.Module)
    ]

    def work(number: int):
        chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer, lengths[number % 2], 16)
        return chunks, embed_chunks(tiny_encoder, chunks), encode_chunks(tiny_encoder, chunks, 2)

    for number, (chunks, first, second) in enumerate(in_threads(work, [*range(THREADS * CALLS)])):
        expected = alone[number % 2]
        assert all(map(np.array_equal, chunks.input_ids, expected.input_ids))
        assert chunks.song_index.tolist() == expected.song_index.tolist()
        np.testing.assert_array_equal(first, vectors[number % 2][0])
        np.testing.assert_array_equal(second, vectors[number % 2][1])
    assert [(module.training, module.forward) for module in tiny_encoder.network.modules()] == modules


def test_four_threads_fill_and_read_the_cache(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path / "cache"))
    chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer, 64, 16)
    expected = encode_chunks(tiny_encoder, chunks, 4)
    for found in in_threads(lambda _: lu.extract_features(tiny_encoder, chunks), [None] * 8):
        np.testing.assert_array_equal(found.vectors, expected)
    assert len([entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]) == 1
