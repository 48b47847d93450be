"""What a user relies on in the models: what trains, how songs are scored, what the simple models teach them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SONGS, disturb
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel

import lyric_utils as lu
from lyric_utils.blend import BlendRegressor, blend_predictions, fit_blend
from lyric_utils.classical import (
    char_tfidf_ridge,
    embedding_ridge,
    nystroem_ridge,
    structural_features,
    word_tfidf_ridge,
)
from lyric_utils.distillation import initialise_head, soft_targets
from lyric_utils.encoders import as_encoder
from lyric_utils.features import extract_features
from lyric_utils.models import read_batch, score_songs
from lyric_utils.profiles import BASELINE, BLEND, FULL, LORA_PAPER, LORA_TUNED

# ---------------------------------------------------------------- what trains


def test_full_size_bert_trains_exactly_adapters_and_head(encoder):
    bert = as_encoder("random", encoder.tokenizer, BertModel(BertConfig(), add_pooling_layer=False))
    trainable = lu.build_model(bert, LORA_PAPER).trainable_parameters()
    adapters = {name: values for name, values in trainable.items() if "lora_" in name}
    head = {name: values for name, values in trainable.items() if name.startswith("head.")}
    assert adapters.keys() | head.keys() == trainable.keys()
    assert sum(values.numel() for values in adapters.values()) == 4 * 2 * (2 * 4 * 768)
    assert sum(values.numel() for values in head.values()) == 768 * 128 + 128 + 128 + 1
    adapted = {(int(name.split("layer.")[1].split(".")[0]), name.split(".self.")[1].split(".")[0]) for name in adapters}
    assert adapted == {(layer, matrix) for layer in (8, 9, 10, 11) for matrix in ("query", "value")}


def test_target_modules_say_which_linear_layers_carry_adapters(tiny_encoder):
    """Those of the feed-forward part among them, which PyTorch and not our own kernels then run."""
    model = lu.build_model(tiny_encoder, replace(LORA_TUNED, target_modules=("key", "intermediate.dense")))
    adapters = [name.partition(".lora_")[0] for name in model.trainable_parameters() if "lora_" in name]
    adapted = {name.split(".", 6)[-1] for name in adapters}
    assert adapted == {"attention.self.key", "intermediate.dense"}
    before = model.predict(SONGS)
    assert not np.allclose(disturb(model).predict(SONGS), before, atol=1e-3)


def test_lora_starts_as_the_frozen_encoder_and_scales_by_alpha_over_rank(tiny_encoder):
    lora = lu.build_model(tiny_encoder, replace(LORA_TUNED, rank=4, alpha=12)).eval()
    ids = torch.tensor([tiny_encoder.tokenizer("a short line")["input_ids"]])
    with torch.no_grad():
        plain = tiny_encoder.network(ids).last_hidden_state
        assert torch.equal(plain, lora.adapted(ids).last_hidden_state)
    assert lora.adapted_layers[0].attention.self.query.scaling["default"] == 12 / 4


@pytest.mark.parametrize("recipe", [LORA_TUNED, FULL], ids=["lora", "full"])
def test_building_a_model_leaves_the_encoder_as_it_was(recipe, tiny_encoder):
    modules = {name: type(module) for name, module in tiny_encoder.network.named_modules()}
    ids = torch.tensor([tiny_encoder.tokenizer("a short line")["input_ids"]])
    with torch.no_grad():
        before = tiny_encoder.network(ids).last_hidden_state
        model = disturb(lu.build_model(tiny_encoder, replace(recipe, attention_dropout=0.5))).train()
        assert torch.equal(tiny_encoder.network(ids).last_hidden_state, before)
    assert {name: type(module) for name, module in tiny_encoder.network.named_modules()} == modules
    assert not any(module.training for module in tiny_encoder.network.modules())
    assert not any(values.requires_grad for values in tiny_encoder.network.parameters())
    assert model.adapted_layers[0].training


@pytest.mark.parametrize("family", ["tiny_encoder", "tiny_mpnet"])
def test_full_fine_tuning_trains_all_layers(request, family):
    """And nothing else, such as the weights of distances that the layers of MPNet share."""
    encoder = request.getfixturevalue(family)
    trained = lu.build_model(encoder, FULL).trainable_parameters()
    layers = sum(values.numel() for values in encoder.layers.parameters())
    assert sum(values.numel() for name, values in trained.items() if not name.startswith("head.")) == layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "warm"}, "init='warm'"),
        ({"pooling": "max"}, "pooling='max'"),
        ({"pooled_layers": 5}, "pooled_layers=5"),
        ({"pooled_layers": 2, "pooling": "cls"}, "pooled_layers=2"),
        ({"adapted_layers": 7}, "adapted_layers=7"),
        ({"rank": 0}, "rank=0"),
        ({"model": "blend"}, "fit_blend"),
        ({"model": "mlp"}, "model='mlp': .*'baseline', 'lora', 'full'"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused(changes, message, tiny_encoder):
    with pytest.raises(lu.LyricsError, match=message):
        lu.build_model(tiny_encoder, replace(LORA_TUNED, **changes))


# ---------------------------------------------------------------- how songs are scored


def test_prediction_is_one_score_per_song_within_0_and_1(model):
    prediction = model.predict(SONGS)
    assert prediction.shape == (3,)
    assert ((prediction >= 0) & (prediction <= 1)).all()
    assert model.predict([]).shape == (0,)
    np.testing.assert_allclose(model.predict(text for text in SONGS[::-1]), prediction[::-1], atol=1e-5)
    with pytest.raises(lu.LyricsError, match=r"\[brackets\]"):
        model.predict(SONGS[0])


def test_an_interval_lies_around_the_prediction_and_grows_with_its_probability(model):
    model.residuals = [number / 100 for number in range(1, 20)]  # at 0.5 the tenth of them
    prediction, widths = model.predict(SONGS), []
    for level in (0.5, 0.9, 0.95, 0.99):
        found = model.predict(SONGS, interval=level)
        assert found.shape == (3, 3)
        np.testing.assert_array_equal(found[:, 0], prediction)
        assert (found[:, 1] >= 0).all()
        assert (found[:, 1] <= prediction).all()
        assert (prediction <= found[:, 2]).all()
        assert (found[:, 2] <= 1).all()
        widths.append(found[:, 2] - found[:, 1])
        if level == 0.5:
            np.testing.assert_allclose(found[:, 1:].T, [(prediction - 0.1).clip(0), (prediction + 0.1).clip(max=1)])
    assert (np.diff(widths, axis=0) >= 0).all()
    np.testing.assert_array_equal(found[:, 1:], [[0, 1]] * 3)  # 19 songs do not tell so much
    assert model.predict([], interval=0.9).shape == (0, 3)


@pytest.mark.parametrize("interval", [0, 1, 1.5, -0.1, 90, "0.9", True, np.nan, np.inf, [0.9]])
def test_an_interval_of_no_probability_is_refused(interval, tiny_encoder):
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    for model.residuals in (None, [0.1] * 9):
        with pytest.raises(lu.LyricsError, match=r"^interval=.*: "):
            model.predict(SONGS, interval=interval)


def test_a_model_without_residuals_gives_no_interval(model):
    with pytest.raises(lu.LyricsError, match=r"no residuals .* Retrain it"):
        model.predict(SONGS, interval=0.9)


def test_songs_that_are_not_english_are_scored_with_one_warning_that_counts_them(model):
    french = "Je ne regrette rien de ce que nous avons vécu ensemble sous la pluie de novembre"
    with pytest.warns(UserWarning, match="1 of 4 songs are not in English") as warned:
        assert len(model.predict([*SONGS, french])) == 4
    assert len(warned) == 1


def test_long_song_scores_the_mean_of_its_chunks(tiny_encoder):
    lora = disturb(lu.build_model(tiny_encoder, LORA_TUNED)).eval()
    chunks = lu.chunk_lyrics([SONGS[1]], tiny_encoder.tokenizer)
    assert len(chunks.input_ids) > 1
    inputs = lora.inputs_from_chunks(chunks)
    with torch.no_grad():
        batches = [read_batch(lora, inputs, np.array([item])) for item in range(len(chunks.input_ids))]
        scores = [lora(*batch).item() for batch in batches]
    assert lora.predict([SONGS[1]])[0] == pytest.approx(np.clip(np.mean(scores), 0, 1), abs=1e-5)


def test_cached_features_give_the_predictions_of_the_lyrics(model, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path))
    model = getattr(model, "encoder_model", model)
    chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer)
    for _ in ("filled", "found"):
        features = extract_features(tiny_encoder, chunks, model.recipe.adapted_layers)
        np.testing.assert_allclose(score_songs(model, model.inputs_from(features)), model.predict(SONGS), atol=1e-4)


def test_features_of_other_layers_are_refused(tiny_encoder, tmp_path, monkeypatch):
    """The layers between would run twice, or never."""
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path))
    features = extract_features(tiny_encoder, lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer), adapted_layers=4)
    with pytest.raises(lu.LyricsError, match="adapted_layers=6"):
        lu.build_model(tiny_encoder, FULL).inputs_from(features)


@pytest.mark.parametrize("rescale", [1.0, 1.2, 9.0])
def test_a_blend_is_the_weighted_mean_of_its_two_models_moved_away_from_the_mean(rescale, tiny_encoder):
    songs = pd.DataFrame({"lyrics": SONGS * 5, "valence": [0.1, 0.9, 0.3] * 5})
    lora, recipe = disturb(lu.build_model(tiny_encoder, LORA_TUNED)), replace(BLEND, text_weight=0.3, rescale=rescale)
    blend = fit_blend(lora, songs, recipe)
    mean, text = songs["valence"].mean(), char_tfidf_ridge().fit(songs["lyrics"], songs["valence"]).predict(SONGS)
    expected = mean + rescale * (0.7 * lora.predict(SONGS) + 0.3 * text.clip(0, 1) - mean)
    np.testing.assert_allclose(blend.predict(SONGS), expected.clip(0, 1), atol=1e-6)
    parts = blend.encoder_model.predict(SONGS), blend.text_model.predict(SONGS), blend.mean_valence, recipe
    np.testing.assert_array_equal(blend.predict(SONGS), blend_predictions(*parts))
    assert isinstance(blend, BlendRegressor)
    assert not isinstance(blend, nn.Module)


# ---------------------------------------------------------------- a pooler of one's own


class AttentionPooler(nn.Module):
    """A weighted mean over the tokens of the last layer, the weights learned."""

    def __init__(self, hidden_size):
        super().__init__()
        self.weigh = nn.Linear(hidden_size, 1)

    def forward(self, outputs, packing, token_weights):
        chunks = outputs[-1].split(packing.lengths)
        return torch.stack([(self.weigh(chunk).softmax(0) * chunk).sum(0) for chunk in chunks])


@pytest.mark.parametrize("recipe", [LORA_TUNED, LORA_PAPER, FULL], ids=["lora", "lora_paper", "full"])
def test_a_pooler_is_called_in_place_of_the_recipes_pooling(recipe, tiny_encoder):
    """One whose weights are all alike gives the mean."""
    pooler = AttentionPooler(tiny_encoder.hidden_size)
    nn.init.zeros_(pooler.weigh.weight)
    model = disturb(lu.build_model(tiny_encoder, recipe))
    pooled = lu.build_model(tiny_encoder, recipe, pooler=pooler)
    mean = lu.build_model(tiny_encoder, replace(recipe, pooling="mean", pooled_layers=1))
    for other in (pooled, mean):
        other.load_state_dict(model.state_dict(), strict=False)
    np.testing.assert_allclose(pooled.predict(SONGS), mean.predict(SONGS), atol=1e-5)
    assert not np.allclose(pooled.predict(SONGS), model.predict(SONGS), atol=1e-4)


# ---------------------------------------------------------------- simple models, and what they teach


def test_simple_baselines_fit_and_predict():
    lyrics = ["happy dance tonight", "cold grave alone", "happy party dance", "alone in the cold"] * 5
    valence = np.array([0.9, 0.1, 0.8, 0.2] * 5)
    for make in (word_tfidf_ridge, lambda: char_tfidf_ridge(structure=False), char_tfidf_ridge):
        ridge = make().fit(lyrics, valence)
        assert ridge.predict(["happy dance", "cold alone"]) @ [1, -1] > 0.3
    assert ridge.predict(["happily dancing", "colder"]) @ [1, -1] > 0.1  # n-grams know words they never met
    vectors = np.random.default_rng(0).normal(size=(60, 8))
    assert embedding_ridge().fit(vectors, vectors[:, 0]).score(vectors, vectors[:, 0]) > 0.9


def test_structural_features_tell_how_long_a_song_is_and_how_much_it_repeats():
    """Labels that follow the structure alone, on songs of the same words: n-grams tell nothing of them."""
    lines = ["walking down the road", "singing to the rain", "waiting for the sun", "running with the wind"]
    songs = ["\n".join(lines * count) for count in range(1, 9)] + ["\n".join(lines[:1] * 4 * n) for n in range(1, 9)]
    valence = np.array([0.05 * count for count in range(1, 9)] + [0.5 + 0.05 * count for count in range(1, 9)])
    ridge = char_tfidf_ridge().fit(songs * 3, np.tile(valence, 3))
    assert np.corrcoef(ridge.predict(songs), valence)[0, 1] > 0.9
    (_, _), (_, structure) = ridge[0].transformer_list
    assert np.abs(structure.transform(["la " * 9_000, "\n".join(["two words"] * 900)])).max() <= 2


def test_a_song_in_one_line_tells_nothing_of_its_lines():
    features = structural_features(["one line", "another, and a longer line than the first", "of two\nlines"])
    np.testing.assert_array_equal(features[0, 2:], features[1, 2:])
    np.testing.assert_allclose(features[2], np.log([3, 3, 1.5, 1]))


@given(st.lists(st.text("abc '!\r\né", max_size=30), max_size=5))
def test_structural_features_count_words_and_lines_whatever_case_and_punctuation(songs):
    features = structural_features(songs)
    assert features.shape == (len(songs), 4)
    words, distinct_words, words_per_line, distinct_lines = features.T
    np.testing.assert_array_equal(features, structural_features([song.upper() + " ?!" for song in songs]))
    twice = structural_features([f"{song}\n{song}" for song in songs]).T
    sung, several = words > 0, [len([line for line in song.splitlines() if line.strip(" '!")]) > 1 for song in songs]
    np.testing.assert_allclose(twice[0][sung], words[sung] + np.log(2))
    np.testing.assert_array_equal(twice[1], distinct_words)
    np.testing.assert_allclose(twice[2][several], words_per_line[several])
    np.testing.assert_allclose(twice[3][several], distinct_lines[several] - np.log(2))


@pytest.mark.parametrize("pooled_layers", [1, 3])
def test_an_initialised_head_predicts_as_kernel_ridge_regression(pooled_layers, tiny_encoder, tmp_path, monkeypatch):
    """From the frozen encoder's pooled vectors, those of long songs included."""
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path))
    songs = [" ".join(SONGS[0].split()[cut:]) for cut in range(9)] + SONGS[1:]
    valence = np.linspace(0.2, 0.8, len(songs))
    features = extract_features(tiny_encoder, lu.chunk_lyrics(songs, tiny_encoder.tokenizer))
    vectors = features.pooled("distinct", pooled_layers)
    model = lu.build_model(tiny_encoder, replace(LORA_TUNED, pooled_layers=pooled_layers))
    initialise_head(model, vectors, valence)
    expected = nystroem_ridge(*vectors.shape).fit(vectors, valence).predict(vectors)
    np.testing.assert_allclose(model.predict(songs), expected, atol=0.02)
    assert np.std(expected) > 0.05
    assert all(values.grad is None for values in model.parameters())


def test_an_initialised_head_is_nonlinear_and_leaves_out_dimensions_that_are_zero_but_for_rounding(tiny_encoder):
    """MiniLM's last layer has such: scaled to unit variance they would have carried weights beyond all numbers."""
    rng = np.random.default_rng(0)
    mood, noise = rng.normal(size=(400, 1)), rng.normal(size=(400, tiny_encoder.hidden_size))
    vectors, valence = (3 + 2 * mood + 0.2 * noise).astype(np.float32), 0.5 + 0.2 * np.tanh(mood[:, 0] ** 2 - 1)
    vectors[:, 0] *= 1e-33
    train, held = vectors[:300], vectors[300:]
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    initialise_head(model, train, valence[:300])
    predicted = model.head(torch.from_numpy(held)).detach().numpy()
    kernel = nystroem_ridge(*train.shape).fit(train, valence[:300]).predict(held)
    linear = embedding_ridge().fit(train, valence[:300]).predict(held)
    assert np.corrcoef(predicted, kernel)[0, 1] > 0.95
    assert np.corrcoef(predicted, valence[300:])[0, 1] > np.corrcoef(linear, valence[300:])[0, 1] + 0.1


def test_a_head_is_initialised_with_songs_that_all_have_one_valence(tiny_encoder):
    vectors = np.random.default_rng(0).normal(size=(20, tiny_encoder.hidden_size)).astype(np.float32)
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    initialise_head(model, vectors, np.full(20, 0.7))
    np.testing.assert_allclose(model.head(torch.from_numpy(vectors)).detach(), 0.7, atol=1e-3)


def test_start_at_mean_predicts_a_constant(tiny_encoder):
    for recipe in (BASELINE, LORA_TUNED):
        model = lu.build_model(tiny_encoder, recipe).eval()
        model.start_at(0.37)
        np.testing.assert_allclose(model.predict(SONGS), 0.37, atol=1e-6)


def test_soft_targets_lie_between_valence_and_what_other_artists_songs_predict():
    rng = np.random.default_rng(0)
    happy = rng.uniform(size=100) < 0.5
    lyrics = [f"{'dance sun' if is_happy else 'cold grave'} word{rng.integers(9)}" for is_happy in happy]
    valence = np.where(happy, 0.8, 0.2) + rng.normal(0, 0.1, 100)
    songs = pd.DataFrame({"artist": rng.integers(20, size=100), "lyrics": lyrics, "valence": valence})
    vectors = rng.normal(size=(100, 4)) + happy[:, None]
    np.testing.assert_array_equal(soft_targets(songs, vectors, 0.0), valence)
    taught = soft_targets(songs, vectors, 1.0)
    np.testing.assert_allclose(soft_targets(songs, vectors, 0.25), 0.75 * valence + 0.25 * taught)
    signal = np.where(happy, 0.8, 0.2)
    assert np.mean((taught - signal) ** 2) < 0.8 * np.mean((valence.mean() - signal) ** 2)
    changed = songs.assign(valence=np.where(songs["artist"] == 3, 0.0, valence))
    others = songs["artist"] != 3
    assert not np.allclose(soft_targets(changed, vectors, 1.0)[others], taught[others])
    np.testing.assert_allclose(soft_targets(changed, vectors, 1.0)[~others], taught[~others])


def test_soft_targets_of_too_few_songs_are_refused():
    songs = pd.DataFrame({"artist": list("aabb"), "lyrics": ["sun", "moon", "rain", "snow"], "valence": 0.5})
    with pytest.raises(lu.LyricsError, match="4 songs of 2 artists"):
        soft_targets(songs, np.zeros((4, 8)), 0.7)
