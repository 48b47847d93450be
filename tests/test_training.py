"""What a user relies on in training: it learns, by the recipe, only what should, and survives being killed."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save
from torch import nn

import lyric_utils as lu
from lyric_utils import models, training
from lyric_utils.frozen import LiveRows, StoredRows, encode_chunks
from lyric_utils.profiles import BASELINE, LORA_PAPER, LORA_TUNED
from lyric_utils.songs import remove_leftovers

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
    frozen = lu.FrozenPass(None, *encode_chunks(model.encoder, chunks, recipe.adapted_layers), chunks.song_index)
    vectors = frozen.song_vectors(recipe.pooling, recipe.pooled_layers)
    return lu.Examples(model.rows_of(chunks), np.asarray(valence, float), vectors)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def quick(recipe, **changes):
    return replace(recipe, **({"epochs": 3, "batch_songs": 2} | changes))


@pytest.mark.parametrize("recipe", [BASELINE, LORA_TUNED, LORA_PAPER], ids=["baseline", "lora", "lora_paper"])
def test_training_changes_exactly_the_trainable_weights(recipe, tiny_encoder):
    model = lu.build_model(tiny_encoder, quick(recipe, learning_rate=1e-2, head_learning_rate=1e-2))
    trainable = {name: weight.clone() for name, weight in model.trainable_state().items()}
    frozen = {name: w.clone() for name, w in model.state_dict().items() if name not in trainable}
    history = lu.train(model, examples_for(model), examples_for(model), seed=0)
    assert [line["epoch"] for line in history] == [1, 2, 3]
    assert all(torch.equal(frozen[name], weight) for name, weight in model.state_dict().items() if name in frozen)
    assert not any(torch.equal(trainable[name], weight) for name, weight in model.trainable_state().items())


@pytest.mark.parametrize("recipe", [BASELINE, LORA_TUNED], ids=["baseline", "lora"])
def test_training_learns(recipe, encoder):
    model = lu.build_model(encoder, quick(recipe, epochs=12, learning_rate=2e-3, head_learning_rate=2e-3))
    history = lu.train(model, examples_for(model), examples_for(model), seed=0)
    assert history[-1]["train_loss"] < 0.25 * VALENCE.var()
    prediction = model.predict(SONGS)
    assert prediction[VALENCE > 0.5].mean() > 0.3 + prediction[VALENCE < 0.5].mean()


def test_best_epoch_is_kept(encoder):
    model = lu.build_model(encoder, quick(BASELINE, epochs=8, start="mean"))
    validation = examples_for(model, SONGS, 1 - VALENCE)  # labels that contradict the training songs
    history = lu.train(model, examples_for(model), validation, seed=0)
    best = min(line["validation_mse"] for line in history)
    assert np.mean((lu.score_songs(model, validation.rows) - validation.valence) ** 2) == pytest.approx(best, abs=1e-6)
    assert history[-1]["validation_mse"] > best + 0.01


def test_start_at_mean_predicts_the_training_mean(tiny_encoder):
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    model.start_at(0.37)
    np.testing.assert_allclose(model.predict(SONGS), 0.37, atol=1e-6)


def test_cached_and_live_rows_give_the_same_losses(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path))
    losses = []
    for cached in (True, False):
        model = without_dropout(lu.build_model(tiny_encoder, quick(LORA_TUNED, adapter_dropout=0.0)))
        chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer)
        frozen = lu.run_frozen(tiny_encoder, chunks)
        rows = frozen.states if cached else model.rows_of(chunks)
        assert isinstance(rows, StoredRows if cached else LiveRows)
        examples = lu.Examples(rows, VALENCE, frozen.song_vectors("distinct", model.recipe.pooled_layers))
        history = lu.train(model, examples, examples, seed=0)
        losses.append([line["train_loss"] for line in history])
    np.testing.assert_allclose(*losses, atol=5e-4)


@pytest.mark.parametrize("loss_on", ["song", "chunk"])
def test_splitting_a_step_into_passes_changes_nothing(loss_on, tiny_encoder, monkeypatch):
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda: False)
    losses = []
    for limit in (100_000, 20):
        monkeypatch.setattr(training, "pack", lambda lengths, limit=limit: lu.frozen.pack(lengths, limit))
        recipe = quick(LORA_TUNED, adapter_dropout=0.0, batch_songs=6, loss_on=loss_on, learning_rate=1e-2)
        model = without_dropout(lu.build_model(tiny_encoder, recipe))
        history = lu.train(model, examples_for(model), examples_for(model), seed=0)
        losses.append([line["train_loss"] for line in history])
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_loss_on_song_and_on_chunk_differ_for_long_songs_only(tiny_encoder, monkeypatch):
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda: False)

    def first_loss(songs, valence, loss_on):
        recipe = quick(LORA_TUNED, start="random", epochs=1, batch_songs=9, loss_on=loss_on)
        model = without_dropout(lu.build_model(tiny_encoder, recipe))
        return lu.train(model, examples_for(model, songs, valence), examples_for(model), seed=0)[0]["train_loss"]

    short, short_valence = SONGS[:2], VALENCE[:2]
    assert first_loss(short, short_valence, "song") == pytest.approx(first_loss(short, short_valence, "chunk"))
    assert first_loss(SONGS, VALENCE, "song") != pytest.approx(first_loss(SONGS, VALENCE, "chunk"), rel=1e-3)


def test_learning_rate_warms_up_and_falls():
    recipe = replace(LORA_TUNED, warmup=0.2, schedule="linear")
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(1))], "peak": 0.1}])
    rates = []
    for progress in (0.0, 0.1, 0.2, 0.6, 1.0):
        training.set_learning_rate(optimizer, recipe, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.05, 0.0], atol=1e-12)


RUN = textwrap.dedent("""
    import os, signal, sys
    import lyric_utils as lu
    from lyric_utils import training
    from tests.test_training import *

    def run(tiny_encoder, resume_file, kill_after=None):
        model = lu.build_model(tiny_encoder, quick(LORA_TUNED, epochs=4))
        if kill_after is not None:
            record = training._Run.record
            def dying_record(self, **epoch):
                if len(self.history) == kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                record(self, **epoch)
            training._Run.record = dying_record
        history = lu.train(model, examples_for(model), examples_for(model), seed=0, resume_file=resume_file)
        return model, history
""")


def test_killed_run_resumes_to_the_same_weights(tiny_encoder, tmp_path):
    script = RUN + textwrap.dedent("""
        from tests.conftest import make_tiny_encoder
        run(make_tiny_encoder(), sys.argv[1], kill_after=2)
    """)
    resume_file = tmp_path / "run.resume.safetensors"
    killed = subprocess.run([sys.executable, "-c", script, str(resume_file)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert "model.head.layers.0.weight" in load_file(resume_file)

    namespace = {}
    exec(RUN, namespace)
    resumed, resumed_history = namespace["run"](tiny_encoder, resume_file)
    whole, whole_history = namespace["run"](tiny_encoder, None)
    for name, weight in whole.trainable_state().items():
        assert torch.equal(weight, resumed.trainable_state()[name]), name
    for line, other in zip(whole_history, resumed_history, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}


def test_a_resumed_run_learns_no_start(tiny_encoder, tmp_path, monkeypatch):
    file = tmp_path / "run.resume.safetensors"
    model, resumed = (lu.build_model(tiny_encoder, quick(LORA_TUNED)) for _ in range(2))
    examples = examples_for(model)
    history = lu.train(model, examples, examples, seed=0, resume_file=file)
    monkeypatch.delattr(models.FineTunedRegressor, "start_at_kernel")
    assert lu.train(resumed, examples, examples, seed=0, resume_file=file) == history
    assert resumed.predict(SONGS).tolist() == model.predict(SONGS).tolist()


def test_state_of_another_run_is_refused(tiny_encoder, tmp_path):
    file = tmp_path / "run.resume.safetensors"
    model = lu.build_model(tiny_encoder, quick(BASELINE))
    lu.train(model, examples_for(model), examples_for(model), seed=0, resume_file=file)
    with pytest.raises(lu.LyricsError, match="another run"):
        lu.train(model, examples_for(model), examples_for(model), seed=1, resume_file=file)


def flip_bit(content, position):
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def rewritten(content, **changes):
    """The same state with other tensors or metadata, each given as a function of what was there."""
    length = int.from_bytes(content[:8], "little")
    parts = {"tensors": load(content), "metadata": json.loads(content[8 : 8 + length])["__metadata__"]}
    parts |= {name: change(parts[name]) for name, change in changes.items()}
    return save(**parts)


def with_progress(metadata, change):
    return metadata | {"progress": json.dumps(change(json.loads(metadata["progress"])))}


DAMAGE = {
    "nothing": lambda content: b"",
    "cut short": lambda content: content[:100],
    "one byte missing": lambda content: content[:-1],
    "one byte more": lambda content: content + b"x",
    "no state at all": lambda content: save({"weight": torch.zeros(1)}),
    "bit of the length": lambda content: flip_bit(content, 1),
    "bit of a name": lambda content: flip_bit(content, content.index(b"mlp.0.weight")),
    "bit of a loss": lambda content: flip_bit(content, content.index(b"train_loss") + 16),
    "first bit of the weights": lambda content: flip_bit(content, 8 + int.from_bytes(content[:8], "little")),
    "last bit of the weights": lambda content: flip_bit(content, len(content) - 1),
    "no metadata": lambda content: save(load(content)),
    "progress is no JSON": lambda content: rewritten(content, metadata=lambda was: was | {"progress": "{"}),
    "progress is no dict": lambda content: rewritten(content, metadata=lambda was: was | {"progress": "[]"}),
    "progress is a number": lambda content: rewritten(content, metadata=lambda was: was | {"progress": "1"}),
    "no history": lambda content: rewritten(
        content, metadata=lambda was: with_progress(was, lambda state: state | {"history": None})
    ),
    "history with a gap": lambda content: rewritten(
        content, metadata=lambda was: with_progress(was, lambda state: state | {"history": state["history"][1:]})
    ),
    "no weights": lambda content: rewritten(content, tensors=lambda was: {}),
    "a weight missing": lambda content: rewritten(
        content, tensors=lambda was: {name: was[name] for name in was if name != "model.mlp.0.weight"}
    ),
    "a best weight missing": lambda content: rewritten(
        content, tensors=lambda was: {name: was[name] for name in was if name != "best.mlp.0.weight"}
    ),
    "a weight of another shape": lambda content: rewritten(
        content, tensors=lambda was: was | {"model.mlp.0.weight": torch.zeros(1)}
    ),
    "a weight of another kind": lambda content: rewritten(
        content, tensors=lambda was: was | {"model.mlp.0.bias": was["model.mlp.0.bias"].double()}
    ),
    "a moment missing": lambda content: rewritten(
        content, tensors=lambda was: {name: was[name] for name in was if name != "optimizer.0.exp_avg"}
    ),
    "a moment of another shape": lambda content: rewritten(
        content, tensors=lambda was: was | {"optimizer.0.exp_avg": torch.zeros(1)}
    ),
    "one tensor more": lambda content: rewritten(content, tensors=lambda was: was | {"model.more": torch.zeros(1)}),
}


@pytest.fixture(scope="module")
def state(tiny_encoder, tmp_path_factory):
    """The file of a training after its last epoch, and a function that goes on from a file."""
    file = tmp_path_factory.mktemp("state") / "run.resume.safetensors"
    model = lu.build_model(tiny_encoder, quick(BASELINE))
    examples = examples_for(model)

    def go_on(content):
        file.write_bytes(content)
        return lu.train(model, examples, examples, seed=0, resume_file=file)

    history = lu.train(model, examples, examples, seed=0, resume_file=file)
    content = file.read_bytes()
    assert go_on(content) == history
    return content, go_on


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_state_is_refused(damage, state):
    content, go_on = state
    with pytest.raises(lu.LyricsError, match=r"run\.resume\.safetensors.*damaged"):
        go_on(DAMAGE[damage](content))


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    kept = [tmp_path / name for name in ("lora", "lora.resume.safetensors", ".lora.notes", ".lora2.x.tmp", ".x.7.tmp")]
    left = [tmp_path / name for name in (".lora.k3b.tmp", ".lora.resume.safetensors.77.tmp")]
    for path in (*kept, *left):
        path.mkdir() if path.suffix == "" else path.write_text("")
    (tmp_path / ".lora.abc.tmp" / "new").mkdir(parents=True)
    remove_leftovers(tmp_path / "lora")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_diverging_run_says_so(tiny_encoder):
    model = lu.build_model(tiny_encoder, quick(BASELINE, epochs=1))
    with torch.no_grad():
        model.output_layer.bias.fill_(float("nan"))
    with pytest.raises(lu.LyricsError, match="no longer a number"):
        lu.train(model, examples_for(model), examples_for(model), seed=0)


def test_a_kernel_start_asks_for_vectors(tiny_encoder):
    model = lu.build_model(tiny_encoder, quick(LORA_TUNED))
    examples = examples_for(model)._replace(vectors=None)
    with pytest.raises(lu.LyricsError, match="make_examples"):
        lu.train(model, examples, examples)


def test_examples_soften_the_training_side_only(encoder):
    """On the shipped songs: validation and test keep their valence, the training targets move."""
    profile = lu.load_profile("sample")
    songs, _ = lu.clean_songs(lu.load_source(profile))
    split = lu.split_songs(songs, profile.seed, profile.fractions, profile.split_by)
    chunks = {
        side: lu.chunk_lyrics(table["lyrics"].tolist(), encoder.tokenizer) for side, table in split._asdict().items()
    }
    frozen = {side: lu.run_frozen(encoder, chunks[side]) for side in chunks}
    model = lu.build_model(encoder, replace(LORA_TUNED, soft_targets=0.5))
    examples = lu.make_examples(model, split, frozen)
    for side in ("validation", "test"):
        np.testing.assert_array_equal(examples[side].valence, getattr(split, side)["valence"])
    assert np.std(examples["train"].valence) < 0.9 * np.std(split.train["valence"])
    hard = lu.make_examples(lu.build_model(encoder, LORA_PAPER), split, frozen)
    np.testing.assert_array_equal(hard["train"].valence, split.train["valence"])
