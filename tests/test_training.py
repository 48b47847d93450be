"""What a user relies on in training: it learns, by the recipe, only what should, and survives being stopped."""

import itertools
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import child, save_checkpoint
from sklearn.dummy import DummyRegressor
from torch import nn

import lyric_utils as lu
from lyric_utils import training
from lyric_utils.features import CachedFeatures, EncoderFeatures, OnTheFlyFeatures, encode_chunks
from lyric_utils.models import score_songs
from lyric_utils.profiles import BASELINE, FULL, LORA_PAPER, LORA_TUNED
from lyric_utils.training import Examples, fit, make_examples

SONGS = [
    "Sunny side up and the radio on",
    "Nobody came to the funeral but rain",
    "We won the cup, we won the cup, sing it till the morning " * 60,
    "Cold tea, cold feet, cold letter on the mat",
    "Blue bicycle, downhill, no hands",
    "I sold the ring on Tuesday and I ate alone",
]
VALENCE = np.array([0.8, 0.05, 0.95, 0.15, 0.9, 0.1])


def examples_for(model, songs=SONGS, valence=VALENCE):
    chunks, recipe = lu.chunk_lyrics(songs, model.encoder.tokenizer), model.recipe
    features = EncoderFeatures(None, encode_chunks(model.encoder, chunks, recipe.adapted_layers), chunks.song_index)
    pooled = features.pooled(recipe.pooling, recipe.pooled_layers)
    return Examples(model.inputs_from_chunks(chunks), np.asarray(valence, float), pooled)


def train(model, **options):
    """The history, without the seconds, of a training on the songs above."""
    examples = examples_for(model)
    history = fit(model, examples, examples, **options)
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in history]


def copied(parameters):
    return {name: values.detach().clone() for name, values in parameters.items()}


def assert_same(parameters, others):
    assert parameters.keys() == others.keys()
    for name, values in parameters.items():
        assert torch.equal(values, others[name]), name


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def quick(recipe, **changes):
    """A recipe that trains in little time; its head starts without lessons."""
    return replace(recipe, **({"epochs": 3, "batch_songs": 2, "init": "mean"} | changes))


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("recipe", [BASELINE, LORA_TUNED, LORA_PAPER, FULL], ids=["baseline", "lora", "paper", "full"])
def test_training_changes_exactly_the_trainable_parameters(recipe, tiny_encoder):
    model = lu.build_model(tiny_encoder, quick(recipe, learning_rate=1e-2, head_learning_rate=1e-2))
    trainable = copied(model.trainable_parameters())
    frozen = {name: values.clone() for name, values in model.state_dict().items() if name not in trainable}
    history = train(model)
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]
    assert all(torch.equal(frozen[name], values) for name, values in model.state_dict().items() if name in frozen)
    now = model.trainable_parameters()
    changed = {name for name in trainable if not torch.equal(trainable[name], now[name])}
    # nothing shifts a softmax that adds the same to all of its arguments, as the bias of the key does
    assert trainable.keys() - changed <= {name for name in trainable if name.endswith("self.key.bias")}


@pytest.mark.parametrize("recipe", [BASELINE, LORA_TUNED], ids=["baseline", "lora"])
def test_training_learns(recipe, encoder):
    model = lu.build_model(encoder, quick(recipe, epochs=8, learning_rate=3e-3, head_learning_rate=3e-3))
    songs = SONGS[:2] + SONGS[3:]
    examples = examples_for(model, songs, valence := np.delete(VALENCE, 2))
    history = fit(model, examples, examples)
    assert history[-1]["train_loss"] < 0.5 * valence.var()
    prediction = model.predict(songs)
    assert prediction[valence > 0.5].mean() > 0.3 + prediction[valence < 0.5].mean()


def test_best_epoch_is_kept(encoder):
    model = lu.build_model(encoder, quick(BASELINE, epochs=8))
    validation = examples_for(model, SONGS, 1 - VALENCE)  # labels that contradict the training songs
    history = fit(model, examples_for(model), validation)
    best = min(epoch["validation_mse"] for epoch in history)
    assert np.mean((score_songs(model, validation.inputs) - validation.valence) ** 2) == pytest.approx(best, abs=1e-6)
    assert history[-1]["validation_mse"] > best + 0.01


@pytest.mark.parametrize(
    "recipe",
    [quick(BASELINE, init="random"), quick(LORA_TUNED, init="kernel", epochs=2), quick(FULL, epochs=2)],
    ids=["baseline", "lora", "full"],
)
def test_fitting_always_starts_from_the_recipes_start(recipe, tiny_encoder, tmp_path):
    """However often it is called on one model, and on a trained model that was loaded, whose residuals are gone."""
    model = lu.build_model(tiny_encoder, recipe)
    first = train(model), copied(model.trainable_parameters())
    assert train(model) == first[0]
    assert_same(model.trainable_parameters(), first[1])
    model.residuals = [0.1]
    save_checkpoint(model, tmp_path / "model")
    loaded = lu.load_model(tmp_path / "model", tiny_encoder)
    assert_same(loaded.trainable_parameters(), first[1])
    assert loaded.residuals == [0.1]
    assert train(loaded) == first[0]
    assert_same(loaded.trainable_parameters(), first[1])
    assert loaded.residuals is None


def test_cached_and_computed_features_give_the_same_losses(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path))
    losses = []
    for cached in (True, False):
        model = without_dropout(lu.build_model(tiny_encoder, quick(LORA_TUNED, lora_dropout=0.0)))
        chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer)
        inputs = lu.extract_features(tiny_encoder, chunks).hidden_states if cached else model.inputs_from_chunks(chunks)
        assert isinstance(inputs, CachedFeatures if cached else OnTheFlyFeatures)
        examples = Examples(inputs, VALENCE)
        losses.append([epoch["train_loss"] for epoch in fit(model, examples, examples)])
    np.testing.assert_allclose(*losses, atol=5e-4)


@pytest.mark.parametrize("loss_on", ["song", "chunk"])
def test_splitting_a_step_into_micro_batches_changes_nothing(loss_on, tiny_encoder, monkeypatch):
    losses = []
    for limit in (100_000, 20):
        monkeypatch.setattr(training, "TOKENS_PER_BATCH", limit)
        recipe = quick(LORA_TUNED, lora_dropout=0.0, batch_songs=6, loss_on=loss_on, learning_rate=1e-2)
        history = train(without_dropout(lu.build_model(tiny_encoder, recipe)), precision="float32")
        losses.append([epoch["train_loss"] for epoch in history])
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_loss_on_song_and_on_chunk_differ_for_long_songs_only(tiny_encoder):
    def first_loss(songs, valence, loss_on):
        recipe = quick(LORA_TUNED, init="random", epochs=1, batch_songs=9, loss_on=loss_on)
        model = without_dropout(lu.build_model(tiny_encoder, recipe))
        return fit(model, *[examples_for(model, songs, valence)] * 2, precision="float32")[0]["train_loss"]

    short, short_valence = SONGS[:2], VALENCE[:2]
    assert first_loss(short, short_valence, "song") == pytest.approx(first_loss(short, short_valence, "chunk"))
    assert first_loss(SONGS, VALENCE, "song") != pytest.approx(first_loss(SONGS, VALENCE, "chunk"), rel=1e-3)


def test_learning_rate_warms_up_and_falls():
    recipe = replace(LORA_TUNED, warmup=0.2, schedule="linear")
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(1))], "peak": 0.1}])
    rates = []
    for done in (0.0, 0.1, 0.2, 0.6, 1.0):
        training.set_learning_rate(optimizer, recipe, done)
        rates.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.05, 0.0], atol=1e-12)


def test_diverging_run_says_so(tiny_encoder):
    model = lu.build_model(tiny_encoder, quick(BASELINE, init="mean", epochs=1))
    examples = examples_for(model)
    with pytest.raises(lu.LyricsError, match="no longer a number"):
        fit(model, examples._replace(valence=VALENCE * 1e30), examples)


# ---------------------------------------------------------------- what an ablation may replace


def test_dropped_attention_changes_training_and_no_prediction(tiny_encoder):
    recipes = [quick(LORA_TUNED, init="random", lora_dropout=0.0, attention_dropout=share) for share in (0.0, 0.5)]
    models = [lu.build_model(tiny_encoder, recipe) for recipe in recipes]
    assert models[0].predict(SONGS).tolist() == models[1].predict(SONGS).tolist()
    assert train(models[0])[0]["train_loss"] != train(models[1])[0]["train_loss"]


class LearnedMean(nn.Module):
    """The mean over the tokens of learned shares of the layers."""

    def __init__(self, shares):
        super().__init__()
        self.shares = nn.Parameter(torch.tensor(shares))

    def forward(self, outputs, packing, token_weights):
        mixed = sum(share * output for share, output in zip(self.shares, outputs, strict=True))
        return torch.stack([chunk.mean(0) for chunk in mixed.split(packing.lengths)])


def test_a_pooler_starts_as_given_and_trains_at_the_rate_of_the_head(tiny_encoder):
    pooler = LearnedMean([0.1, 0.2, 0.3, 0.4])
    model = lu.build_model(tiny_encoder, quick(LORA_TUNED, learning_rate=0.0), pooler=pooler)
    assert model.trainable_parameters()["pooler.shares"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    first = train(model), copied(model.trainable_parameters())
    assert all(first[1]["pooler.shares"] != torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert train(model) == first[0]
    assert_same(model.trainable_parameters(), first[1])


def test_the_head_is_initialised_as_asked(tiny_encoder):
    """With the pooled vectors and the targets of the training songs."""
    asked = []
    model = lu.build_model(tiny_encoder, quick(LORA_TUNED, init="kernel", epochs=1))
    examples = examples_for(model)
    fit(model, examples, examples, initialise=lambda *arguments: asked.append(arguments))
    [(initialised, vectors, valence)] = asked
    assert initialised is model
    assert vectors is examples.pooled
    assert valence is examples.valence
    with pytest.raises(lu.LyricsError, match="make_examples"):
        fit(model, examples._replace(pooled=None), examples)


def test_float32_is_what_a_processor_without_bfloat16_trains_in(tiny_encoder, monkeypatch):
    model = lu.build_model(tiny_encoder, quick(LORA_TUNED))
    asked = train(model, precision="float32")
    mixed = train(model, precision="bfloat16")
    monkeypatch.setenv("LYRICS_PRECISION", "float32")
    assert train(model) == asked != mixed
    np.testing.assert_allclose(*[[epoch["train_loss"] for epoch in history] for history in (asked, mixed)], rtol=0.1)
    with pytest.raises(lu.LyricsError, match="precision='half'"):
        train(model, precision="half")


def test_examples_soften_the_training_side_only(sample_data):
    """On the shipped songs: validation and test keep their valence, the training targets move to the teachers."""
    teachers = [], []

    def teacher(number, prediction):
        def make(*shape):
            teachers[number].append(shape)
            return DummyRegressor(strategy="constant", constant=prediction)

        return make

    split, features = sample_data.split, sample_data.features
    model = lu.build_model(sample_data.encoder, replace(LORA_TUNED, distillation_weight=0.5))
    examples = make_examples(model, split, features, teachers=(teacher(0, 0.2), teacher(1, 0.6)))
    for side in ("validation", "test"):
        np.testing.assert_array_equal(examples[side].valence, getattr(split, side)["valence"])
    np.testing.assert_allclose(examples["train"].valence, (split.train["valence"] + 0.4) / 2)
    assert teachers[0] == [()] * 5
    assert [columns for _, columns in teachers[1]] == [sample_data.encoder.hidden_size] * 5
    softened = make_examples(model, split, features)["train"].valence
    assert np.std(softened) < 0.9 * np.std(split.train["valence"])
    plain = make_examples(lu.build_model(sample_data.encoder, LORA_PAPER), split, features)
    np.testing.assert_array_equal(plain["train"].valence, split.train["valence"])


# ---------------------------------------------------------------- stopped and resumed


@pytest.fixture
def one_thread():
    """As a forked copy of the process has; sums depend on the number in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_run_resumes_to_the_same_parameters(tiny_encoder, tmp_path, monkeypatch, one_thread):
    """Killed in its third epoch, so that two are kept."""
    file, epochs, recipe = tmp_path / "run.resume.pt", itertools.count(1), quick(LORA_TUNED, init="kernel", epochs=4)
    first, resumed, whole = (lu.build_model(tiny_encoder, recipe) for _ in range(3))

    def start(model, vectors, valence):
        model.start_at(0.2)

    def score_or_die(*arguments):
        return os.kill(os.getpid(), signal.SIGKILL) if next(epochs) == 3 else score_songs(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "score_songs", score_or_die)
        with child(lambda: train(first, resume_file=file, initialise=start)) as killed:
            assert killed.wait() == -9, killed.message()
    assert file.is_file()
    history = train(resumed, resume_file=file, initialise=lambda *_: pytest.fail("started anew"))
    assert history == train(whole, initialise=start)
    assert_same(resumed.trainable_parameters(), whole.trainable_parameters())


def test_state_of_another_run_is_refused(tiny_encoder, tmp_path):
    file = tmp_path / "run.resume.pt"
    train(lu.build_model(tiny_encoder, quick(BASELINE)), resume_file=file)
    for other in (lu.build_model(tiny_encoder, quick(BASELINE), seed=1), lu.build_model(tiny_encoder, BASELINE)):
        with pytest.raises(lu.LyricsError, match="another run"):
            train(other, resume_file=file)


def flip_bit(content, position):
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def test_damaged_state_is_refused(tiny_encoder, tmp_path):
    """Whichever bit it is that changed."""
    file = tmp_path / "run.resume.pt"
    model = lu.build_model(tiny_encoder, quick(BASELINE))
    history, content, examples = train(model, resume_file=file), file.read_bytes(), examples_for(model)
    flipped = [flip_bit(content, position) for position in range(0, len(content), len(content) // 20)]
    for damaged in [b"", content[:100], content[:-1], content + b"x", b"another file" * 100, *flipped]:
        file.write_bytes(damaged)
        with pytest.raises(lu.LyricsError, match=r"run\.resume\.pt: a damaged training state.*Delete it"):
            fit(model, examples, examples, resume_file=file)
        assert file.read_bytes() == damaged
    file.write_bytes(content)
    assert train(model, resume_file=file) == history
