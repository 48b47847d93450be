"""What a user relies on in the two models: what trains, how songs are scored, what a checkpoint brings back."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from transformers import BertConfig, BertModel

import lyric_utils as lu
from lyric_utils.encoders import as_encoder
from lyric_utils.models import read_batch, soft_targets
from lyric_utils.profiles import BASELINE, BLEND, FULL, LORA_PAPER, LORA_TUNED

SONGS = [
    "The harbour lights are out and I have nobody to call",
    "Dance on the tables, the bakery's open, there's cake for us all " * 60,
    "Grey rain",
]


def save(model, folder):
    songs = pd.DataFrame({"row": range(3), "artist": "A", "title": "T", "lyrics": SONGS, "valence": [0.1, 0.9, 0.3]})
    prediction = model.predict(SONGS)
    lu.save_model(
        model,
        folder,
        profile="sample",
        seed=1,
        history=[{"epoch": 1, "train_loss": 0.1, "validation_mse": 0.1, "seconds": 1.0}],
        predictions=lu.tabulate_predictions(songs, np.array([1, 3, 1]), prediction),
        metrics=lu.score(songs["valence"], prediction),
    )
    return prediction


def shaken(model):
    """The model with noise on everything that trains, so that nothing stands at its start; scores near a half."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.trainable_state().values():
            weight.add_(0.05 * torch.randn_like(weight))
        model.output_layer.weight.mul_(0.2)
        model.output_layer.bias.fill_(0.5)
    return model


@pytest.fixture(params=["baseline", "lora", "lora_paper", "full", "blend"])
def model(request, tiny_encoder):
    recipes = {"baseline": BASELINE, "lora": LORA_TUNED, "lora_paper": LORA_PAPER, "full": FULL, "blend": LORA_TUNED}
    model = shaken(lu.build_model(tiny_encoder, recipes[request.param]))
    if request.param == "blend":
        return lu.blend(model, lu.text_ridge().fit(SONGS * 5, [0.1, 0.9, 0.3] * 5), 0.45, BLEND)
    return model


def test_full_size_bert_trains_exactly_adapters_and_head(encoder):
    bert = as_encoder("random", encoder.tokenizer, BertModel(BertConfig(), add_pooling_layer=False))
    trainable = lu.build_model(bert, LORA_PAPER).trainable_state()
    adapters = {name: weight for name, weight in trainable.items() if "lora_" in name}
    head = {name: weight for name, weight in trainable.items() if name.startswith("head.")}
    assert adapters.keys() | head.keys() == trainable.keys()
    assert sum(weight.numel() for weight in adapters.values()) == 4 * 2 * (2 * 4 * 768)
    assert sum(weight.numel() for weight in head.values()) == 768 * 128 + 128 + 128 + 1
    adapted = {(int(name.split("layer.")[1].split(".")[0]), name.split(".self.")[1].split(".")[0]) for name in adapters}
    assert adapted == {(layer, matrix) for layer in (8, 9, 10, 11) for matrix in ("query", "value")}


def test_lora_starts_as_the_frozen_encoder_and_scales_by_alpha_over_rank(tiny_encoder):
    lora = lu.build_model(tiny_encoder, replace(LORA_TUNED, rank=4, alpha=12)).eval()
    ids = torch.tensor([tiny_encoder.tokenizer("a short line")["input_ids"]])
    with torch.no_grad():
        plain = tiny_encoder.network(ids).last_hidden_state
        assert torch.equal(plain, lora.adapted(ids).last_hidden_state)
    assert lora.adapted_layers[0].attention.self.query.scaling["default"] == 12 / 4


def test_building_lora_leaves_the_encoder_as_it_was(tiny_encoder):
    modules = {name: type(module) for name, module in tiny_encoder.network.named_modules()}
    ids = torch.tensor([tiny_encoder.tokenizer("a short line")["input_ids"]])
    with torch.no_grad():
        before = tiny_encoder.network(ids).last_hidden_state
        lu.build_model(tiny_encoder, LORA_TUNED)
        assert torch.equal(tiny_encoder.network(ids).last_hidden_state, before)
    assert {name: type(module) for name, module in tiny_encoder.network.named_modules()} == modules
    assert not any(module.training for module in tiny_encoder.network.modules())


def test_frozen_layers_stay_in_evaluation_mode(tiny_encoder):
    lora = lu.build_model(tiny_encoder, LORA_TUNED).train()
    assert not tiny_encoder.layers[0].training
    assert lora.adapted_layers[0].training


def test_prediction_is_the_mean_over_chunks_within_0_and_1(model):
    prediction = model.predict(SONGS)
    assert prediction.shape == (3,)
    assert ((prediction >= 0) & (prediction <= 1)).all()
    assert model.predict([]).shape == (0,)
    np.testing.assert_allclose(model.predict(SONGS[::-1]), prediction[::-1], atol=1e-5)


def test_long_song_scores_the_mean_of_its_chunks(tiny_encoder):
    lora = shaken(lu.build_model(tiny_encoder, LORA_TUNED))
    lora.start_at(0.5)
    chunks = lu.chunk_lyrics([SONGS[1]], tiny_encoder.tokenizer)
    assert len(chunks.input_ids) > 1
    rows = lora.rows_of(chunks)
    with torch.no_grad():
        batches = [read_batch(rows, np.array([item]), "cpu") for item in range(len(chunks.input_ids))]
        scores = [lora.eval()(*batch).item() for batch in batches]
    assert lora.predict([SONGS[1]])[0] == pytest.approx(np.clip(np.mean(scores), 0, 1), abs=1e-5)


def test_cached_path_equals_live_path(model, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path))
    chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer)
    layers = model.recipe.adapted_layers
    for _ in ("filled", "found"):
        cached = lu.score_songs(model, model.rows_of_pass(lu.run_frozen(tiny_encoder, chunks, layers)))
        live = lu.score_songs(model, model.rows_of(chunks))
        np.testing.assert_allclose(cached, live, atol=1e-4)


def test_save_and_load_give_the_same_predictions(model, tiny_encoder, tmp_path):
    prediction = save(model, tmp_path / "model")
    assert len(set(prediction)) == len(SONGS)
    loaded = lu.load_model(tmp_path / "model", tiny_encoder)
    np.testing.assert_array_equal(loaded.predict(SONGS), prediction)
    results = lu.load_results(tmp_path / "model")
    np.testing.assert_allclose(results.predictions["prediction"], prediction, rtol=1e-4)
    assert results.config["recipe"]["model"] == model.recipe.model
    assert "lyrics" not in results.predictions.columns


def test_stock_peft_loads_the_adapter(tiny_encoder, tmp_path):
    lora = shaken(lu.build_model(tiny_encoder, LORA_TUNED))
    save(lora, tmp_path / "lora")
    fresh = BertModel(tiny_encoder.network.config, add_pooling_layer=False)
    fresh.load_state_dict(tiny_encoder.network.state_dict())
    stock = PeftModel.from_pretrained(fresh, tmp_path / "lora").eval()
    ids = torch.tensor([tiny_encoder.tokenizer(SONGS[0])["input_ids"]])
    with torch.no_grad():
        adapted = lora.eval().adapted(ids).last_hidden_state
        torch.testing.assert_close(stock(ids).last_hidden_state, adapted)
        assert not torch.allclose(tiny_encoder.network(ids).last_hidden_state, adapted)


def test_a_checkpoint_names_no_path_of_this_machine(tmp_path, encoder):
    lora = lu.build_model(encoder, LORA_TUNED)
    save(lora, tmp_path / "lora")
    for path in (tmp_path / "lora").iterdir():
        if path.suffix in (".json", ".md", ".csv"):
            assert "/site-packages/" not in path.read_text()
            assert str(tmp_path) not in path.read_text()


def test_floors_fit_and_predict():
    words = ["happy dance tonight", "cold grave alone", "happy party dance", "alone in the cold"] * 5
    valence = np.array([0.9, 0.1, 0.8, 0.2] * 5)
    for analyzer in ("word", "char_wb"):
        ridge = lu.tfidf_ridge(analyzer).fit(words, valence)
        assert ridge.predict(["happy dance", "cold alone"]) @ [1, -1] > 0.3
    assert ridge.predict(["happily dancing", "colder"]) @ [1, -1] > 0.1  # letters know words they never met
    vectors = np.random.default_rng(0).normal(size=(60, 8))
    assert lu.frozen_ridge().fit(vectors, vectors[:, 0]).score(vectors, vectors[:, 0]) > 0.9


def test_text_ridge_hears_how_long_a_song_is_and_how_much_it_repeats():
    """Labels that follow the form alone, on songs of the same words: letters tell nothing of them."""
    lines = ["walking down the road", "singing to the rain", "waiting for the sun", "running with the wind"]
    songs = ["\n".join(lines * count) for count in range(1, 9)] + ["\n".join(lines[:1] * 4 * n) for n in range(1, 9)]
    valence = np.array([0.05 * count for count in range(1, 9)] + [0.5 + 0.05 * count for count in range(1, 9)])
    ridge = lu.text_ridge().fit(songs * 3, np.tile(valence, 3))
    assert np.corrcoef(ridge.predict(songs), valence)[0, 1] > 0.9
    (_, _), (_, form) = ridge[0].transformer_list
    assert np.abs(form.transform(["la " * 9_000, "\n".join(["two words"] * 900)])).max() <= 2


def test_a_song_in_one_line_tells_nothing_of_its_lines():
    form = lu.models.measure_form(["one line", "another, and a longer line than the first", "of two\nlines"])
    np.testing.assert_array_equal(form[0, 2:], form[1, 2:])
    np.testing.assert_allclose(form[2], np.log([3, 3, 1.5, 1]))


@given(st.lists(st.text("abc '!\r\né", max_size=30), max_size=5))
def test_form_counts_words_and_lines_whatever_case_and_punctuation(songs):
    form = lu.models.measure_form(songs)
    assert form.shape == (len(songs), 4)
    words, distinct_words, words_a_line, distinct_lines = form.T
    np.testing.assert_array_equal(form, lu.models.measure_form([song.upper() + " ?!" for song in songs]))
    twice = lu.models.measure_form([f"{song}\n{song}" for song in songs]).T
    sung, several = words > 0, [len([line for line in song.splitlines() if line.strip(" '!")]) > 1 for song in songs]
    np.testing.assert_allclose(twice[0][sung], words[sung] + np.log(2))
    np.testing.assert_array_equal(twice[1], distinct_words)
    np.testing.assert_allclose(twice[2][several], words_a_line[several])
    np.testing.assert_allclose(twice[3][several], distinct_lines[several] - np.log(2))


@pytest.mark.parametrize("stretch", [1.0, 1.2, 9.0])
def test_a_blend_is_the_weighted_mean_of_its_two_models_moved_away_from_the_mean(stretch, tiny_encoder):
    lora, words = shaken(lu.build_model(tiny_encoder, LORA_TUNED)), lu.text_ridge().fit(SONGS * 5, [0.1, 0.9, 0.3] * 5)
    recipe = replace(BLEND, words_share=0.3, stretch=stretch)
    expected = 0.45 + stretch * (0.7 * lora.predict(SONGS) + 0.3 * words.predict(SONGS).clip(0, 1) - 0.45)
    found = lu.blend(lora, words, 0.45, recipe).predict(SONGS)
    np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-6)


def test_full_fine_tuning_trains_all_layers_and_leaves_the_encoder_alone(tiny_encoder):
    trained = lu.build_model(tiny_encoder, FULL).trainable_state()
    layers = sum(weight.numel() for weight in tiny_encoder.layers.parameters())
    assert sum(weight.numel() for name, weight in trained.items() if not name.startswith("head.")) == layers
    assert not any(weight.requires_grad for weight in tiny_encoder.network.parameters())


@pytest.mark.parametrize("pooled_layers", [1, 3])
def test_start_at_kernel_predicts_as_kernel_ridge_regression(pooled_layers, tiny_encoder, tmp_path, monkeypatch):
    """The untrained model reads the frozen encoder's song vectors by a curve, those of long songs included."""
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path))
    songs = [" ".join(SONGS[0].split()[cut:]) for cut in range(9)] + SONGS[1:]
    valence = np.linspace(0.2, 0.8, len(songs))
    frozen = lu.run_frozen(tiny_encoder, lu.chunk_lyrics(songs, tiny_encoder.tokenizer))
    vectors = frozen.song_vectors("distinct", pooled_layers)
    model = lu.build_model(tiny_encoder, replace(LORA_TUNED, pooled_layers=pooled_layers))
    model.start_at_kernel(vectors, valence)
    expected = lu.kernel_ridge(*vectors.shape).fit(vectors, valence).predict(vectors)
    np.testing.assert_allclose(model.predict(songs), expected, atol=0.02)
    assert np.std(expected) > 0.05
    assert all(weight.grad is None for weight in model.parameters())


def test_start_at_kernel_bends_where_a_line_cannot_and_leaves_out_dimensions_that_are_zero_but_for_rounding(
    tiny_encoder,
):
    """MiniLM's last layer has such: scaled to unit variance they would have carried weights beyond all numbers."""
    rng = np.random.default_rng(0)
    mood, noise = rng.normal(size=(400, 1)), rng.normal(size=(400, tiny_encoder.hidden_size))
    vectors, valence = (3 + 2 * mood + 0.2 * noise).astype(np.float32), 0.5 + 0.2 * np.tanh(mood[:, 0] ** 2 - 1)
    vectors[:, 0] *= 1e-33
    train, held = vectors[:300], vectors[300:]
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    model.start_at_kernel(train, valence[:300])
    predicted = model.head(torch.from_numpy(held)).detach().numpy()
    kernel = lu.kernel_ridge(*train.shape).fit(train, valence[:300]).predict(held)
    line = lu.frozen_ridge().fit(train, valence[:300]).predict(held)
    assert np.corrcoef(predicted, kernel)[0, 1] > 0.95
    assert np.corrcoef(predicted, valence[300:])[0, 1] > np.corrcoef(line, valence[300:])[0, 1] + 0.1
    again = lu.build_model(tiny_encoder, LORA_TUNED)
    again.start_at_kernel(train, valence[:300])
    assert torch.equal(again.head(torch.from_numpy(held)), model.head(torch.from_numpy(held)))


def test_start_at_kernel_takes_songs_that_all_have_one_valence(tiny_encoder):
    vectors = np.random.default_rng(0).normal(size=(20, tiny_encoder.hidden_size)).astype(np.float32)
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    model.start_at_kernel(vectors, np.full(20, 0.7))
    np.testing.assert_allclose(model.head(torch.from_numpy(vectors)).detach(), 0.7, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "warm"}, "start='warm'"),
        ({"pooled_layers": 5}, "pooled_layers=5"),
        ({"pooled_layers": 2, "pooling": "cls"}, "pooled_layers=2"),
        ({"adapted_layers": 7}, "adapted_layers=7"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused(changes, message, tiny_encoder):
    with pytest.raises(lu.LyricsError, match=message):
        lu.build_model(tiny_encoder, replace(LORA_TUNED, **changes))


def test_soft_targets_lie_between_valence_and_what_other_artists_songs_predict():
    rng = np.random.default_rng(0)
    happy = rng.uniform(size=100) < 0.5
    lyrics = [f"{'dance sun' if is_happy else 'cold grave'} word{rng.integers(9)}" for is_happy in happy]
    valence = np.where(happy, 0.8, 0.2) + rng.normal(0, 0.1, 100)
    songs = pd.DataFrame({"artist": rng.integers(20, size=100), "lyrics": lyrics, "valence": valence})
    vectors = rng.normal(size=(100, 4)) + happy[:, None]
    np.testing.assert_array_equal(soft_targets(songs, vectors, 0.0), valence)
    teachers = soft_targets(songs, vectors, 1.0)
    np.testing.assert_allclose(soft_targets(songs, vectors, 0.25), 0.75 * valence + 0.25 * teachers)
    signal = np.where(happy, 0.8, 0.2)
    assert np.mean((teachers - signal) ** 2) < 0.8 * np.mean((valence.mean() - signal) ** 2)
    changed = songs.assign(valence=np.where(songs["artist"] == 3, 0.0, valence))
    others = songs["artist"] != 3
    assert not np.allclose(soft_targets(changed, vectors, 1.0)[others], teachers[others])
    np.testing.assert_allclose(soft_targets(changed, vectors, 1.0)[~others], teachers[~others])


def test_soft_targets_of_too_few_songs_are_refused():
    songs = pd.DataFrame({"artist": list("aabb"), "lyrics": ["sun", "moon", "rain", "snow"], "valence": 0.5})
    with pytest.raises(lu.LyricsError, match="4 songs of 2 artists"):
        soft_targets(songs, np.zeros((4, 8)), 0.7)
