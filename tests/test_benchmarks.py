"""The benchmarks compare like with like: the same loss on the same chunks, and a sound count of the work."""

import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

import lyric_utils as lu
from benchmarks import common, tables
from benchmarks.quality import ablations, larger_encoder, measure, methods
from benchmarks.quality.analyses import extrapolate
from benchmarks.quality.methods import METHODS, Method, Problem
from benchmarks.robustness import full_table
from benchmarks.speed import same_quality
from benchmarks.speed.ways import LORA_MEAN, Changes, PlainRegressor, adapted_flops, our_step, plain_step, random_bert
from lyric_utils._packed import Packing
from lyric_utils.classical import embedding_ridge
from lyric_utils.models import score_songs
from lyric_utils.profiles import LORA_PAPER, LORA_TUNED
from lyric_utils.songs import fingerprint_songs
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


def test_another_encoder_is_read_as_ours_is(encoder, monkeypatch):
    monkeypatch.setattr(larger_encoder, "load_network", lambda source: (encoder.tokenizer, encoder.network))
    lyrics = ["la la la, a sunny day\n" * 150, "rain", "rain and sun and rain\nand nothing else"]
    chunks = lu.chunk_lyrics(lyrics, encoder.tokenizer)
    ours = lu.extract_features(encoder, chunks, adapted_layers=4)
    theirs = larger_encoder.embed(lyrics, "any")[:, -4:].mean(axis=1)
    assert chunks.per_song[0] > 1
    np.testing.assert_allclose(theirs, ours.pooled("distinct", 4), atol=1e-5)


def test_extrapolate_recovers_a_power_law():
    """Errors made to fall as 0.04 + 0.06 * (n / 300) ** -0.5: the fit finds what they are at sizes not measured."""
    truth, sizes = np.tile([0.1, 0.9], 200), np.array([300, 600, 1200, 2400])
    errors = np.sqrt(0.04 + 0.06 * (sizes / 300) ** -0.5)
    predictions = [truth + error for error in errors]
    table = extrapolate(sizes, truth, predictions, [4800, 30_000], artists=np.arange(400), resamples=5)
    expected = 1 - (0.04 + 0.06 * (np.array([4800, 30_000]) / 300) ** -0.5) / truth.var()
    np.testing.assert_allclose(table["value"], expected, atol=1e-3)
    assert (table["low"] <= table["value"] + 1e-3).all()
    assert (table["value"] <= table["high"] + 1e-3).all()
    with pytest.raises(lu.LyricsError, match="four or more sizes"):
        extrapolate([1, 2, 3], [0.1, 0.2], [[0.1, 0.2]] * 3, [10], ["a", "b"])


@pytest.fixture
def problem(sample, tiny_encoder):
    """The sample as the methods are fitted on it."""
    songs = sample.sort_values("split", key=lambda side: side.map({"train": 0, "validation": 1, "test": 2}))
    songs = songs.reset_index(drop=True)
    chunks = lu.chunk_lyrics(songs["lyrics"], tiny_encoder.tokenizer)
    sides = [np.flatnonzero(songs["split"] == side) for side in ("train", "validation", "test")]
    return Problem(
        songs, tiny_encoder, chunks, lambda layers: lu.extract_features(tiny_encoder, chunks, layers), *sides
    )


@pytest.fixture
def results(problem, tmp_path, monkeypatch):
    """Empty folders for results and checkpoints, and the sample in place of the subset."""
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(measure, "load_problem", lambda split_by: problem)
    return tmp_path


def test_every_method_is_fitted_in_one_way():
    for method in METHODS.values():
        assert sum(map(bool, (method.fit, method.recipe, method.encoded))) == 1
    assert methods.column_of("blend", 43, songs=300) == "blend-300-43"
    assert methods.column_of("blend_ridge", 43) == "blend_ridge"


def test_measuring_writes_predictions_costs_and_the_shipped_checkpoint(problem, results):
    for name in ("char_structure_ridge", "embedding_ridge_4", "blend_ridge", "baseline"):
        measure.measure(measure.Run(name))
    table = pd.read_csv(results / "artist.csv")
    assert table["row"].tolist() == problem.songs["row"].iloc[problem.held].tolist()
    parts = table[["char_structure_ridge", "embedding_ridge_4"]].mean(axis=1)
    expected = problem.mean_valence + 1.15 * (parts - problem.mean_valence)
    np.testing.assert_allclose(table["blend_ridge"], expected.clip(0, 1), atol=2e-5)
    costs = json.loads((results / "runs.json").read_text())
    assert list(costs)[-1] == "artist/baseline-42"
    assert len(costs["artist/baseline-42"]["history"]) == 20
    [checkpoint] = (results / "checkpoints").iterdir()
    shipped = lu.load_results(checkpoint)
    assert shipped.config["training_songs"] == fingerprint_songs(problem.songs.iloc[problem.train])
    np.testing.assert_allclose(shipped.predictions["prediction"], table["baseline-42"], atol=1e-4)


def test_a_part_of_the_training_songs_is_a_run_of_its_own(problem, results):
    run = measure.Run("lora", songs=40)
    assert run.name == "artist/lora-40-42"
    assert set(run.problem.train) < set(problem.train)
    quick = Method("", recipe=replace(LORA_TUNED, epochs=1, init="mean", distillation_weight=0.0))
    trained = quick.train(run.problem)
    features = problem.features(4).subset(problem.held)
    expected = score_songs(trained.model, trained.model.inputs_from(features))
    np.testing.assert_allclose(trained.prediction, expected, atol=1e-6)


def test_results_of_other_songs_are_not_overwritten(problem, results):
    measure.measure(measure.Run("constant"))
    with pytest.raises(lu.LyricsError, match=r"artist\.csv: measured on other songs"):
        methods.read_predictions("artist", problem.songs.iloc[problem.train])


def test_the_stored_split_is_kept(sample, tmp_path, monkeypatch):
    sample[["artist", "title", "lyrics", "valence"]].to_csv(tmp_path / "songs.csv", index_label="row")
    monkeypatch.setenv("LYRICS_DATA", str(tmp_path / "songs.csv"))
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    stored = {"train": [0, 1, 5], "validation": [2], "test": [3, 9]}
    (tmp_path / "split_rows.json").write_text(json.dumps({"artist": stored}))
    problem = methods.load_problem.__wrapped__("artist")
    sides = {"train": problem.train, "validation": problem.validation, "test": problem.held}
    assert {name: problem.songs["row"].iloc[side].tolist() for name, side in sides.items()} == stored
    anew = methods.load_problem.__wrapped__("song")
    stored = json.loads((tmp_path / "split_rows.json").read_text())
    assert stored["song"]["test"] == anew.songs["row"].iloc[anew.held].tolist()
    data = replace(problem, features=lambda _: lu.extract_features(problem.encoder, problem.chunks)).data(4)
    assert len(data.features["test"].pooled("mean")) == len(data.split.test) == len(data.chunks["test"].per_song) == 2


def test_the_folds_have_no_artist_twice(problem, monkeypatch):
    monkeypatch.setattr(methods, "load_problem", lambda split_by: problem)
    folds = methods.load_folds.__wrapped__()
    held = np.concatenate([fold.held for fold in folds])
    assert sorted(held) == sorted([*problem.train, *problem.validation])
    for fold in folds:
        assert set(problem.songs["artist"].iloc[fold.train]).isdisjoint(problem.songs["artist"].iloc[fold.held])


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
