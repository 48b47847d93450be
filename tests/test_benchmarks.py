"""The benchmarks compare like with like: the same loss on the same chunks, and a sound count of the work."""

import copy
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

import lyric_utils as lu
from benchmarks import common, larger_encoder, levers, same_quality, ways
from benchmarks.ways import LORA_MEAN, Levers, PlainRegressor, adapted_flops, our_step, plain_step
from lyric_utils.models import LoraRegressor
from lyric_utils.profiles import LORA_PAPER, LORA_TUNED

SIZE = BertConfig(hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=256)
CHUNKS = common.random_chunks([37, 3, 120, 64, 5, 88, 90, 21])
VALENCE = np.linspace(0.1, 0.9, len(CHUNKS.input_ids))


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture
def pair(request):
    """A plain and one of our models of the same weights, no adapter at its start, no dropout."""
    recipe = replace(request.param, adapter_dropout=0.0)
    encoder = ways.random_bert(SIZE)
    ours = without_dropout(lu.build_model(encoder, recipe).train())
    network = BertModel(SIZE, add_pooling_layer=False)
    network.load_state_dict(encoder.network.state_dict())
    plain = without_dropout(PlainRegressor(network, recipe).train())
    ours_by_name = dict(ours.adapted.named_parameters())
    with torch.no_grad():
        for name, weight in plain.adapted.named_parameters():
            if "lora_" in name:
                ours_by_name[name].copy_(weight.normal_(std=0.1))
    ours.head.load_state_dict(plain.head.state_dict())
    return plain, ours


@pytest.mark.parametrize("pair", [LORA_PAPER, LORA_MEAN], ids=["paper", "tuned"], indirect=True)
def test_plain_way_and_ours_take_the_same_step(pair):
    plain, ours = pair
    slow = plain_step(plain, CHUNKS.input_ids, VALENCE, most_chunks=3)
    fast = our_step(ours, lu.Examples(ours.rows_of(CHUNKS), VALENCE))
    losses = [[slow(Levers(no_attention_dropout=True)), fast(bf16=False)] for _ in range(2)]
    np.testing.assert_allclose(losses[0][1], losses[0][0], rtol=1e-5)
    assert losses[1][0] != losses[0][0]  # a step was taken


@pytest.mark.parametrize("pair", [LORA_PAPER], ids=["paper"], indirect=True)
@pytest.mark.parametrize("lever", ["similar_length", "cached", "first_token_only", "bf16"])
def test_a_lever_alone_does_not_change_the_loss(pair, lever):
    plain, ours = pair
    rows = ours.rows_of(CHUNKS)
    states = [rows.read([item]) for item in range(len(VALENCE))]
    start, losses = copy.deepcopy(plain.state_dict()), []
    for chosen in (Levers(no_attention_dropout=True), Levers(no_attention_dropout=True, **{lever: True})):
        plain.load_state_dict(start)
        losses.append(plain_step(plain, CHUNKS.input_ids, VALENCE, states)(chosen))
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2 if lever == "bf16" else 1e-5)


@pytest.mark.parametrize("recipe", [LORA_PAPER, LORA_MEAN], ids=["paper", "tuned"])
@pytest.mark.parametrize("adapted_layers", [1, 4])
def test_the_count_of_work_is_what_pytorch_counts(recipe, adapted_layers):
    recipe = replace(recipe, adapted_layers=adapted_layers)
    model = lu.build_model(ways.random_bert(SIZE), recipe).train()
    lengths = CHUNKS.lengths.tolist()
    rows = torch.randn(sum(lengths), SIZE.hidden_size)
    with FlopCounterMode(display=False) as counter:
        model(rows, lengths).sum().backward()
    head = 6 * len(lengths) * (SIZE.hidden_size * 128 + 128)  # left out of the formula: next to nothing at real size
    expected = adapted_flops(lengths, SIZE.hidden_size, SIZE.intermediate_size, recipe) + head
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_simulated_songs_are_chunked_as_real_ones(encoder):
    texts = common.synthetic_songs([7, 510, 511, 893, 1200], encoder.tokenizer)["lyrics"]
    chunks = lu.chunk_lyrics(texts.tolist(), encoder.tokenizer)
    tokens = [len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert np.abs(np.array(tokens) - [7, 510, 511, 893, 1200]).max() <= 3
    assert chunks.lengths.tolist() == [length for count in tokens for length in common.windows(count)]
    lengths = np.concatenate([common.windows(count) for count in common.song_tokens(6_424)])
    assert lengths.mean() == pytest.approx(247.5, rel=0.01)
    assert len(lengths) / 6_424 == pytest.approx(1.072, rel=0.01)
    assert common.chunk_lengths(32).mean() == pytest.approx(247.5, rel=0.01)


def test_a_killed_benchmark_goes_on(tmp_path):
    calls = []
    ways_of_toy = {"plain": lambda: calls.append("plain"), "ours": lambda: calls.append("ours")}
    for rounds in (1, 3):
        common.interleave(common.Results("toy", tmp_path, size=1), ways_of_toy, rounds)
    assert calls == ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert common.Results("toy", tmp_path, size=1).ratio("ours", "plain")["ratio"] > 0
    assert common.Results("toy", tmp_path, size=2)["seconds"] == {}


def test_a_new_way_is_not_set_against_rounds_of_another_day(tmp_path):
    calls = []
    ways_of_toy = {name: lambda name=name: calls.append(name) for name in ("plain", "ours", "new")}
    for names in (["plain", "ours"], ["plain", "ours", "new"]):
        common.interleave(common.Results("toy", tmp_path), {name: ways_of_toy[name] for name in names}, 1)
    assert calls == ["plain", "ours", "plain", "ours", "new"]


def loss_after_steps(regressor=LoraRegressor, recipe=LORA_TUNED, steps: int = 1) -> list[float]:
    encoder = ways.random_bert(SIZE)
    recipe = replace(recipe, adapter_dropout=0.0, learning_rate=1e-2, head_learning_rate=1e-2)
    model = regressor(encoder, recipe).train()
    torch.manual_seed(0)
    for layer in model.head.layers[::2]:
        layer.reset_parameters()
    step = our_step(model, lu.Examples(model.rows_of(CHUNKS), VALENCE))
    return [step(bf16=False) for _ in range(steps)]


@pytest.mark.parametrize("lever", [levers.AttentionPooling, levers.LearnedMix, levers.AllMatrices])
def test_a_learned_lever_starts_as_plain_lora_and_learns_something_else(lever, monkeypatch):
    monkeypatch.setattr(lu.encoders.FastDropout, "forward", lambda self, states: states)
    recipe = replace(LORA_TUNED, pooling="mean" if lever is levers.AttentionPooling else LORA_TUNED.pooling)
    plain, learned = (loss_after_steps(regressor, recipe, 2) for regressor in (LoraRegressor, lever))
    assert learned[0] == pytest.approx(plain[0], rel=1e-4)
    assert learned[1] != pytest.approx(plain[1], rel=1e-6)


def test_the_earlier_start_predicts_as_ridge_regression():
    encoder = ways.random_bert(SIZE)
    vectors = np.random.default_rng(0).normal(3, 2, size=(60, encoder.hidden_size)).astype(np.float32)
    valence = 0.5 + 0.02 * vectors[:, 1] - 0.02 * vectors[:, 2]
    vectors[:, 0] *= 1e-33
    model = levers.RidgeStart(encoder, LORA_TUNED)
    model.start_at_kernel(vectors, valence)
    expected = lu.frozen_ridge().fit(vectors, valence).predict(vectors)
    np.testing.assert_allclose(model.head(torch.from_numpy(vectors)).detach(), expected, atol=1e-4)


def test_a_lever_stands_in_for_the_library_while_it_is_tried():
    teachers = lu.models.text_ridge, lu.models.kernel_ridge
    with levers.with_lever(levers.Lever()):
        assert isinstance(lu.build_model(ways.random_bert(SIZE), LORA_TUNED), levers.RidgeStart)
        assert [step for step, _ in lu.models.text_ridge().steps] == ["tfidfvectorizer", "ridgecv"]
        assert "nystroem" not in lu.models.kernel_ridge(9, 9).named_steps
    assert (lu.models.text_ridge, lu.models.kernel_ridge) == teachers


def test_plain_numbers_are_another_way_to_train():
    def loss(way: str) -> float:
        with ExitStack() as changes:
            for change in same_quality.WAYS[way]:
                changes.enter_context(change())
            return loss_after_steps()[0]

    losses = [loss(way) for way in same_quality.WAYS]
    assert len(set(losses)) == len(losses)
    np.testing.assert_allclose(losses, losses[0], rtol=0.3)


def test_another_encoder_is_read_as_ours_is(encoder, monkeypatch):
    monkeypatch.setattr(larger_encoder, "load_network", lambda source: (encoder.tokenizer, encoder.network))
    monkeypatch.setattr(larger_encoder, "has_fast_bfloat16", lambda: False)
    lyrics = ["la la la, a sunny day\n" * 150, "rain", "rain and sun and rain\nand nothing else"]
    chunks = lu.chunk_lyrics(lyrics, encoder.tokenizer)
    ours = lu.run_frozen(encoder, chunks, adapted_layers=4)
    theirs = larger_encoder.embed(lyrics, "any")[:, -4:].mean(axis=1)
    assert chunks.per_song[0] > 1
    np.testing.assert_allclose(theirs, ours.song_vectors("distinct", 4), atol=1e-5)
