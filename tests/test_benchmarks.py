"""The benchmarks compare like with like: the same loss on the same chunks, and a sound count of the work."""

import copy
import json
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

import lyric_utils as lu
from benchmarks import common, tables
from benchmarks.quality import ablations, measure, methods
from benchmarks.quality.methods import METHODS, Method, problems
from benchmarks.robustness import full_table
from benchmarks.speed import same_quality
from benchmarks.speed.ways import LORA_MEAN, Changes, PlainRegressor, adapted_flops, our_step, plain_step, random_bert
from lyric_utils._packed import Packing
from lyric_utils.classical import embedding_ridge
from lyric_utils.models import score_songs
from lyric_utils.pipeline import ALSO_SCALE
from lyric_utils.profiles import BASELINE, LORA_PAPER, LORA_TUNED
from lyric_utils.songs import artist_key, fingerprint_songs
from lyric_utils.training import Examples

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
    """A plain and one of our models with the same parameters, adapters that are not at their start, no dropout."""
    encoder = random_bert(SIZE)
    ours = without_dropout(lu.build_model(encoder, request.param).train())
    network = BertModel(SIZE, add_pooling_layer=False)
    network.load_state_dict(encoder.network.state_dict())
    plain = without_dropout(PlainRegressor(network, request.param).train())
    ours_by_name = dict(ours.adapted.named_parameters())
    with torch.no_grad():
        for name, values in plain.adapted.named_parameters():
            if "lora_" in name:
                ours_by_name[name].copy_(values.normal_(std=0.1))
    ours.head.load_state_dict(plain.head.state_dict())
    return plain, ours


@pytest.mark.parametrize("pair", [LORA_PAPER, LORA_MEAN], ids=["paper", "tuned"], indirect=True)
def test_plain_way_and_ours_take_the_same_step(pair):
    plain, ours = pair
    slow = plain_step(plain, CHUNKS.input_ids, VALENCE, most_chunks=3)
    fast = our_step(ours, Examples(ours.inputs_from_chunks(CHUNKS), VALENCE))
    losses = [[slow(Changes(no_attention_dropout=True)), fast("float32")] for _ in range(2)]
    np.testing.assert_allclose(losses[0][1], losses[0][0], rtol=1e-5)
    assert losses[1][0] != losses[0][0]  # a step was taken


@pytest.mark.parametrize("pair", [LORA_PAPER], ids=["paper"], indirect=True)
@pytest.mark.parametrize("change", ["similar_length", "cached", "first_token_only", "bf16"])
def test_a_change_that_saves_time_does_not_change_the_loss(pair, change):
    plain, ours = pair
    inputs = ours.inputs_from_chunks(CHUNKS)
    states = [inputs.read([item])[0] for item in range(len(VALENCE))]
    start, losses = copy.deepcopy(plain.state_dict()), []
    for changes in (Changes(no_attention_dropout=True), Changes(no_attention_dropout=True, **{change: True})):
        plain.load_state_dict(start)
        losses.append(plain_step(plain, CHUNKS.input_ids, VALENCE, states)(changes))
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2 if change == "bf16" else 1e-5)


@pytest.mark.parametrize("recipe", [LORA_PAPER, LORA_MEAN], ids=["paper", "tuned"])
@pytest.mark.parametrize("adapted_layers", [1, 4])
def test_the_count_of_work_is_what_pytorch_counts(recipe, adapted_layers):
    recipe = replace(recipe, adapted_layers=adapted_layers)
    model = lu.build_model(random_bert(SIZE), recipe).train()
    lengths = CHUNKS.lengths.tolist()
    rows = torch.randn(sum(lengths), SIZE.hidden_size)
    with FlopCounterMode(display=False) as counter:
        model(rows, Packing(lengths)).sum().backward()
    head = 6 * len(lengths) * (SIZE.hidden_size * 128 + 128)  # left out of the formula: next to nothing at real size
    expected = adapted_flops(lengths, SIZE.hidden_size, SIZE.intermediate_size, recipe) + head
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_simulated_songs_are_chunked_as_real_ones(encoder):
    texts = common.synthetic_songs([7, 510, 511, 893, 1200], encoder.tokenizer)["lyrics"]
    chunks = lu.chunk_lyrics(texts, encoder.tokenizer)
    tokens = [len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert np.abs(np.array(tokens) - [7, 510, 511, 893, 1200]).max() <= 3
    assert chunks.lengths.tolist() == [length for count in tokens for length in common.windows(count)]
    lengths = np.concatenate([common.windows(count) for count in common.song_tokens(6_424)])
    assert lengths.mean() == pytest.approx(247.5, rel=0.01)
    assert len(lengths) / 6_424 == pytest.approx(1.072, rel=0.01)
    assert common.chunk_lengths(32).mean() == pytest.approx(247.5, rel=0.01)


def test_a_killed_benchmark_goes_on(tmp_path):
    calls = []
    ways = {"plain": lambda: calls.append("plain"), "ours": lambda: calls.append("ours")}
    for rounds in (1, 3):
        common.interleave(common.Results("toy", tmp_path, size=1), ways, rounds)
    assert calls == ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert common.Results("toy", tmp_path, size=1).ratio("ours", "plain")["ratio"] > 0
    assert common.Results("toy", tmp_path, size=2)["seconds"] == {}


def test_a_new_way_is_not_set_against_rounds_of_another_day(tmp_path):
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in ("plain", "ours", "new")}
    for names in (["plain", "ours"], ["plain", "ours", "new"]):
        common.interleave(common.Results("toy", tmp_path), {name: ways[name] for name in names}, 1)
    assert calls == ["plain", "ours", "plain", "ours", "new"]


def losses_of(recipe=LORA_TUNED, make_pooler=METHODS["lora"].make_pooler, precision="float32", dropout=False) -> list:
    """The losses of two steps from the same start."""
    recipe = replace(recipe, lora_dropout=0.0, learning_rate=1e-2, head_learning_rate=1e-2)
    encoder = random_bert(SIZE)
    model = lu.build_model(encoder, recipe, pooler=make_pooler(encoder, recipe)).train()
    if not dropout:
        without_dropout(model)
    torch.manual_seed(0)
    for layer in model.head.layers[::2]:
        layer.reset_parameters()
    step = our_step(model, Examples(model.inputs_from_chunks(CHUNKS), VALENCE))
    return [step(precision) for _ in range(2)]


@pytest.mark.parametrize(
    "name", ["pooling by attention", "pooling a learned mix of layers", "adapters on all matrices"]
)
def test_a_learned_ablation_starts_as_plain_lora_and_learns_something_else(name):
    changed = ablations.TRAININGS[name]
    plain = losses_of(replace(LORA_TUNED, pooling=changed.recipe.pooling))
    learned = losses_of(changed.recipe, changed.make_pooler)
    assert learned[0] == pytest.approx(plain[0], rel=1e-4)
    assert learned[1] != pytest.approx(plain[1], rel=1e-6)


def test_plain_numbers_are_another_way_to_train():
    losses = [
        losses_of(way.recipe, precision=way.options.get("precision", "bfloat16"), dropout=True)[0]
        for way in same_quality.WAYS.values()
    ]
    assert len(set(losses)) == len(losses)
    np.testing.assert_allclose(losses, losses[0], rtol=0.3)


def test_the_earlier_head_initialisation_predicts_as_ridge_regression():
    encoder = random_bert(SIZE)
    vectors = np.random.default_rng(0).normal(3, 2, size=(60, encoder.hidden_size)).astype(np.float32)
    valence = 0.5 + 0.02 * vectors[:, 1] - 0.02 * vectors[:, 2]
    vectors[:, 0] *= 1e-33
    model = lu.build_model(encoder, LORA_TUNED)
    ablations.initialise_as_ridge(model, vectors, valence)
    expected = embedding_ridge().fit(vectors, valence).predict(vectors)
    np.testing.assert_allclose(model.head(torch.from_numpy(vectors)).detach(), expected, atol=1e-4)


@pytest.fixture
def songs(sample, tiny_encoder, tmp_path, monkeypatch):
    """Two tables of 75 songs, many of artists that both have, in place of the real ones; empty folders for results."""
    sample = sample.drop(columns="split").assign(year=np.linspace(1960, 2016, 150).round())
    others = sample[1::2].assign(valence=sample["valence"] / 2, year=np.nan)
    tables = {"billboard": sample[::2], "subset": others}
    monkeypatch.setattr(
        methods, "load_split", lambda profile: lu.split_songs(tables[profile.name], 42, (0.6, 0.2, 0.2))
    )
    songs = methods.load_songs.__wrapped__()
    chunks = lu.chunk_lyrics(songs["lyrics"], tiny_encoder.tokenizer)
    features = cache(partial(lu.extract_features, tiny_encoder, chunks))
    monkeypatch.setattr(methods, "load_songs", lambda: songs)
    monkeypatch.setattr(methods, "load_features", lambda name: (tiny_encoder, chunks, features))
    for module in (methods, measure):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "CHECKPOINTS", tmp_path / "checkpoints")
    return songs


@pytest.mark.parametrize("trained_on", ["billboard", "subset", "both"])
@pytest.mark.parametrize("protocol", ["test", "folds", "time"])
def test_no_artist_is_on_two_sides_of_either_table_or_across_them(songs, protocol, trained_on):
    artists = songs["artist"].map(artist_key).to_numpy()
    for problem in problems(protocol, trained_on):
        learned, validated, held = (set(artists[side]) for side in (problem.train, problem.validation, problem.held))
        assert learned
        assert learned.isdisjoint(held | validated)
        assert validated.isdisjoint(held) == (protocol != "folds")


def test_every_song_is_held_once_in_the_folds_and_later_ones_in_time(songs):
    held = np.concatenate([problem.held for problem in problems("folds", "both")])
    assert sorted(held) == np.flatnonzero(songs["side"] != "test").tolist()
    [problem] = problems("time", "both")
    assert (songs["year"].iloc[problem.held] > 1999).all()
    assert not (songs["year"].iloc[problem.train] > 1999).any()
    assert set(songs["table"].iloc[problem.train]) == {"billboard", "subset"}


def test_the_labels_of_two_tables_are_brought_to_one_scale_and_back(songs):
    [problem] = problems("test", "both")
    songs, first = songs[["table", "valence"]], problem.songs.iloc[problem.train].query("table == 'billboard'")
    assert problem.mean_valence == pytest.approx(first["valence"].mean())
    means = songs.iloc[problem.train].groupby("table")["valence"].mean()
    held = songs.iloc[problem.held]
    learned = first["valence"].mean() + (held["valence"] - means["subset"]) * ALSO_SCALE
    learned = learned.where(held["table"] == "subset", held["valence"])
    np.testing.assert_allclose(problem.on_own_scale(learned.to_numpy()), held["valence"])


def test_every_method_is_fitted_in_one_way():
    for method in METHODS.values():
        assert sum(map(bool, (method.fit, method.recipe, method.encoded))) == 1
    assert methods.column_of("blend", "both", 43) == "blend@both-43"
    assert methods.column_of("embedding_ridge", "subset", 43) == "embedding_ridge@subset"


def test_measuring_writes_predictions_costs_and_the_shipped_checkpoint(songs, tmp_path):
    [problem] = problems("test", "billboard")
    methods.write_predictions("test", "lora@billboard-42", problem, np.linspace(0, 1, len(problem.held)))
    for name in ("char_structure_ridge", "blend", "baseline"):
        measure.measure(measure.Run("test", name, "billboard"))
    table = methods.read_predictions("test")
    assert table.index.equals(problem.held_index)
    parts = table[["char_structure_ridge@billboard", "lora@billboard-42"]].mean(axis=1)
    expected = problem.own_mean + 1.15 * (parts - problem.own_mean)
    np.testing.assert_allclose(table["blend@billboard-42"], expected.clip(0, 1), atol=2e-4)
    costs = json.loads((tmp_path / "runs.json").read_text())
    assert list(costs)[-1] == "test/baseline@billboard-42"
    assert len(costs["test/baseline@billboard-42"]["history"]) == 20
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    shipped = lu.load_results(checkpoint)
    assert shipped.config["training_songs"] == fingerprint_songs(songs.iloc[problem.train])
    own = table.loc["billboard", "baseline@billboard-42"]
    np.testing.assert_allclose(shipped.predictions["prediction"], own, atol=1e-4)


def test_results_of_other_songs_are_not_overwritten(songs):
    [problem] = problems("test", "billboard")
    measure.measure(measure.Run("test", "constant", "billboard"))
    with pytest.raises(lu.LyricsError, match=r"test.*measured on other songs"):
        methods.write_predictions("test", "constant@both", replace(problem, held=problem.train), np.zeros(1))


def test_ablations_are_scored_on_folds_of_the_subset(songs):
    held = np.concatenate([problem.held for problem in ablations.load_folds()])
    assert sorted(held) == np.flatnonzero((songs["side"] != "test") & (songs["table"] == "subset")).tolist()
    assert len(ablations.read_folds(ablations.blend(ablations.WORDS, ablations.CHARACTERS))["mse_of_folds"]) == 5


def test_a_trained_method_predicts_the_held_songs(songs):
    [problem] = problems("test", "both")
    trained = Method("", recipe=replace(BASELINE, epochs=1)).train(problem)
    expected = score_songs(trained.model, trained.model.inputs_from(problem.features(4).subset(problem.held)))
    np.testing.assert_allclose(trained.prediction, expected, atol=1e-6)


def test_all_tables_are_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tables, "FIGURE", tmp_path / "speed.png")
    tables.main()
    printed = capsys.readouterr().out
    assert all(title in printed for title in [*tables.QUALITY, "Growth", "Time to quality"])
    assert (tmp_path / "speed.png").is_file()


def test_the_full_table_goes_through_the_pipeline(tmp_path):
    full_table.write_table(tmp_path / "songs.csv", 200)
    table = lu.read_songs(tmp_path / "songs.csv")
    songs, report = lu.clean_songs(table)
    assert report.rows_in == 200
    assert 150 < len(songs) < 200
