"""MPNet, whose layers weigh the distance between tokens, serves wherever an encoder does; see also test_encoders."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import RECIPES, SONGS, disturb, save_checkpoint

import lyric_utils as lu
from lyric_utils import _packed
from lyric_utils.encoders import as_encoder, hash_encoder
from lyric_utils.features import embed_chunks, extract_features
from lyric_utils.models import score_songs
from lyric_utils.profiles import LORA_PAPER
from lyric_utils.training import Examples, fit


@pytest.fixture(params=["baseline", "lora", "lora_paper", "full"])
def model(request, tiny_mpnet):
    return disturb(lu.build_model(tiny_mpnet, RECIPES[request.param]))


def test_features_are_the_hidden_states_of_the_stock_model(tiny_mpnet, cache):
    chunks = lu.chunk_lyrics(SONGS, tiny_mpnet.tokenizer, max_length=128, stride=32)
    features = extract_features(tiny_mpnet, chunks)
    with torch.no_grad():
        stock = [
            tiny_mpnet.network(torch.from_numpy(ids).long()[None], output_hidden_states=True).hidden_states
            for ids in chunks.input_ids
        ]
    entering = torch.cat([states[2][0] for states in stock])
    found, _ = features.hidden_states.read(np.arange(len(stock)))
    torch.testing.assert_close(found.float(), entering, atol=2e-3, rtol=0)  # kept in half precision
    cls = np.concatenate([states[6][:, 0] for states in stock])
    means = np.stack([np.concatenate([states[layer].mean(1) for states in stock]) for layer in range(3, 7)])
    np.testing.assert_allclose(features.cls, cls, atol=1e-5)
    np.testing.assert_allclose(features.vectors[1:5], means, atol=1e-5)
    np.testing.assert_allclose(embed_chunks(tiny_mpnet, chunks), cls, atol=1e-5)


def test_cached_features_give_the_predictions_of_the_lyrics(model, tiny_mpnet, cache):
    features = extract_features(tiny_mpnet, lu.chunk_lyrics(SONGS, tiny_mpnet.tokenizer), model.recipe.adapted_layers)
    np.testing.assert_allclose(score_songs(model, model.inputs_from(features)), model.predict(SONGS), atol=1e-4)


def test_save_and_load_give_the_same_predictions(model, tiny_mpnet, tmp_path):
    prediction = save_checkpoint(model, tmp_path / "model")
    assert len(set(prediction)) == len(SONGS)
    for encoder in (tiny_mpnet, None):  # found by its name, its folder
        loaded = lu.load_model(tmp_path / "model", encoder)
        np.testing.assert_array_equal(loaded.predict(SONGS), prediction)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_changes_adapters_and_head_alone(tiny_mpnet, precision):
    model = lu.build_model(tiny_mpnet, replace(LORA_PAPER, epochs=2, learning_rate=0.01, attention_dropout=0.1))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    inputs = model.inputs_from_chunks(lu.chunk_lyrics(SONGS, tiny_mpnet.tokenizer))
    fit(model, *[Examples(inputs, np.array([0.1, 0.9, 0.3]))] * 2, precision=precision)
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert changed == model.trainable_parameters().keys()
    assert {name.split(".")[-4] for name in changed if "lora_" in name} == {"q", "v"}


def test_half_precision_hardly_moves_a_prediction(model, monkeypatch):
    exact = model.predict(SONGS)
    monkeypatch.setattr(_packed, "fast_precisions", lambda: ["bfloat16", "float32"])
    monkeypatch.setenv("LYRICS_PRECISION", "bfloat16")
    assert 0 < np.abs(model.predict(SONGS) - exact).max() < 0.02


def test_weights_of_distances_are_part_of_the_encoder(tiny_mpnet, tmp_path):
    network = copy.deepcopy(tiny_mpnet.network)
    network.encoder.relative_attention_bias.weight[3] += 0.1
    assert hash_encoder(as_encoder("other", tiny_mpnet.tokenizer, network)) != hash_encoder(tiny_mpnet)
    shutil.copytree(tiny_mpnet.name, tmp_path / "incomplete")
    del network.encoder.relative_attention_bias
    network.save_pretrained(tmp_path / "incomplete")
    with pytest.raises(lu.LyricsError, match=r"such as encoder\.relative_attention_bias"):
        lu.load_encoder(tmp_path / "incomplete")
