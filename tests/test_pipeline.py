"""What a user relies on from a table of songs to a model: it is trained on these songs, and nothing shipped is lost."""

import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SONGS, child, run_python

import lyric_utils as lu
from lyric_utils import checkpoints, train, training
from lyric_utils.blend import BlendRegressor
from lyric_utils.models import score_songs
from lyric_utils.pipeline import add_songs, load_split, resume_file_of, save_trained, train_model
from lyric_utils.profiles import BASELINE, BLEND, LORA_TUNED, PROFILES, Profile

QUICK = {"epochs": 3, "init": "mean", "distillation_weight": 0.0}
RECIPES = {
    "baseline": replace(BASELINE, epochs=3),
    "lora": replace(LORA_TUNED, **QUICK),
    "blend": replace(BLEND, **QUICK),
}


@pytest.fixture(scope="module")
def data(encoder_folder, sample):
    """The 30 shortest songs of the sample and the tiny encoder, as a profile of its own."""
    profile = Profile("tiny", "sample", None, str(encoder_folder), (0.6, 0.2, 0.2), "song", RECIPES)
    short = sample.iloc[sample["lyrics"].str.len().argsort()[:30]].drop(columns="split").reset_index(drop=True)
    return lu.prepare(profile, lu.split_songs(short, fractions=profile.fractions, by="song"))


@pytest.fixture(autouse=True)
def shipped(tmp_path, monkeypatch):
    """A working folder of its own, and a place for shipped checkpoints that is not the real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "trained_models")
    return tmp_path / "trained_models"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_seconds(history):
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in history]


def assert_same(model, other):
    parameters, others = model.trainable_parameters(), other.trainable_parameters()
    assert all(torch.equal(values, others[name]) for name, values in parameters.items())


# ---------------------------------------------------------------- loaded or trained


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_is_trained_once_and_loaded_afterwards(name, data, capsys):
    trained, results = lu.train_or_load(data, name)
    assert f"{name}: trained for 3 epochs" in (said := capsys.readouterr().out)
    assert f"saved in runs/tiny/{name}" in said
    loaded, again = lu.train_or_load(data, name)
    assert f"{name}: loaded from tiny/{name}, trained on these songs before" in capsys.readouterr().out
    np.testing.assert_array_equal(loaded.predict(SONGS), trained.predict(SONGS))
    validation = data.split.validation
    errors = np.abs(validation["valence"] - trained.predict(validation["lyrics"]))
    np.testing.assert_allclose(trained.residuals, np.sort(errors), atol=1e-3)
    np.testing.assert_array_equal(loaded.predict(SONGS, interval=0.5), trained.predict(SONGS, interval=0.5))
    assert again.predictions.equals(results.predictions)
    assert again.history == results.history
    test, prediction = data.split.test, trained.predict(data.split.test["lyrics"])
    np.testing.assert_allclose(results.predictions["prediction"], prediction, atol=1e-3)
    assert results.predictions["row"].tolist() == test["row"].tolist()
    assert results.metrics["mse"] == pytest.approx(lu.score(test["valence"], prediction)["mse"], rel=0.01)


def test_a_blend_is_trained_as_its_two_models(data):
    blend, lora = (train_model(RECIPES[name], data) for name in ("blend", "lora"))
    assert isinstance(blend.model, BlendRegressor)
    assert_same(blend.model.encoder_model, lora.model)
    assert without_seconds(blend.history) == without_seconds(lora.history)
    np.testing.assert_allclose(blend.prediction, blend.model.predict(data.split.test["lyrics"]), atol=1e-3)


def other_songs(data):
    train_songs = data.split.train
    return data._replace(split=data.split._replace(train=train_songs.assign(valence=1 - train_songs["valence"])))


def other_test_songs(data):
    """The songs of the test side alone: their predictions would be shown as those of others."""
    return data._replace(split=data.split._replace(test=data.split.test.assign(row=data.split.test["row"] + 900)))


def other_profile(**changes):
    return lambda data: data._replace(profile=replace(data.profile, **changes))


CHANGES = {
    "nothing": lambda data: data,
    "songs": other_songs,
    "test songs": other_test_songs,
    "recipe": other_profile(recipes=RECIPES | {"baseline": replace(BASELINE, epochs=3, learning_rate=1e-4)}),
    "epochs": other_profile(recipes=RECIPES | {"baseline": replace(BASELINE, epochs=2)}),
    "seed": other_profile(seed=7),
    "name": other_profile(name="other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_shipped_checkpoint_serves_its_own_songs_recipe_and_seed_alone(change, data, shipped, capsys):
    save_trained(train_model(RECIPES["baseline"], data), data, shipped / "baseline")
    before, changed = contents(shipped), CHANGES[change](data)
    model, results = lu.train_or_load(changed, "baseline")
    said = capsys.readouterr().out
    assert contents(shipped) == before
    if change == "nothing":
        assert "baseline: loaded from trained_models/baseline" in said
    else:
        assert f"saved in runs/{changed.profile.name}/baseline" in said
        assert model.seed == changed.profile.seed
        assert model.recipe == changed.profile.recipes["baseline"]
        assert results.predictions["row"].tolist() == changed.split.test["row"].tolist()


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_training_anew_leaves_the_shipped_checkpoint_alone(by, data, shipped, monkeypatch, capsys):
    save_trained(train_model(RECIPES["baseline"], data), data, shipped / "baseline")
    before = contents(shipped)
    monkeypatch.setenv("LYRICS_RETRAIN", "1" if by == "environment" else "0")
    for _ in range(2):
        lu.train_or_load(data, "baseline", retrain=True if by == "argument" else None)
        assert "trained for 3 epochs" in capsys.readouterr().out
    assert contents(shipped) == before
    lu.train_or_load(data, "baseline", retrain=False)
    assert "loaded from" in capsys.readouterr().out


def test_a_recipe_that_the_profile_lacks_is_named(data):
    with pytest.raises(lu.LyricsError, match=r"'lora_paper'.*baseline, lora, blend"):
        lu.train_or_load(data, "lora_paper")


def test_features_too_shallow_for_a_recipe_are_refused(data):
    with pytest.raises(lu.LyricsError, match="adapted_layers=5"):
        train_model(replace(RECIPES["lora"], adapted_layers=5), data)


# ---------------------------------------------------------------- interrupted


def interrupt(monkeypatch, epoch):
    """Ctrl-C in the validation of that epoch."""
    calls = []

    def score_or_stop(*arguments):
        calls.append(arguments)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return score_songs(*arguments)

    monkeypatch.setattr(training, "score_songs", score_or_stop)


@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_training_goes_on_to_the_same_model(name, data, monkeypatch, capsys):
    whole = train_model(RECIPES[name], data)
    with monkeypatch.context() as patched:
        interrupt(patched, epoch=2)
        with pytest.raises(KeyboardInterrupt):
            lu.train_or_load(data, name)
    assert "the finished epochs are kept" in capsys.readouterr().out
    model, results = lu.train_or_load(data, name)
    assert without_seconds(results.history) == without_seconds(whole.history)
    assert_same(model, whole.model)
    np.testing.assert_array_equal(model.predict(SONGS), whole.model.predict(SONGS))
    assert os.listdir("runs/tiny") == [name]


def test_interrupted_before_an_epoch_is_finished_nothing_is_kept(data, monkeypatch, capsys):
    interrupt(monkeypatch, epoch=1)
    with pytest.raises(KeyboardInterrupt):
        lu.train_or_load(data, "baseline")
    assert "nothing is kept" in capsys.readouterr().out
    assert not resume_file_of("runs/tiny/baseline").exists()


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(encoder_folder, monkeypatch, capsys):
    """Runs `python -m lyric_utils.train` on the sample; returns exit code and what was printed."""
    monkeypatch.setitem(PROFILES, "sample", replace(PROFILES["sample"], encoder=str(encoder_folder)))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", "--profile", "sample", "--model", "baseline", *arguments])
        code = 0
        try:
            train.main()
        except SystemExit as stop:
            code = stop.code
        return code, "".join(capsys.readouterr())

    monkeypatch.setenv("LYRICS_EPOCHS", "4")
    return run


def test_the_command_trains_into_runs(command, sample_data, tmp_path):
    code, said = command()
    assert code == 0
    assert "saved runs/sample/baseline: mse 0." in said
    profile = lu.load_profile("sample")
    expected = train_model(profile.recipes["baseline"], sample_data)
    assert_same(lu.load_model("runs/sample/baseline", sample_data.encoder), expected.model)
    assert command("--seed", "7", "--out", "other")[0] == 0
    assert lu.load_results("other").config["seed"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "runs"]


@pytest.mark.parametrize("out", ["trained_models/baseline", "trained_models/new", "trained_models", "letters"])
def test_the_command_overwrites_nothing_that_is_not_the_users_own_checkpoint(out, command, shipped, data, tmp_path):
    """And says so before it trains."""
    save_trained(train_model(RECIPES["baseline"], data), data, shipped / "baseline")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    before = contents(tmp_path)
    code, said = command("--out", out)
    assert code.startswith(f"error: {out}: ")
    assert "songs kept" not in said
    assert contents(tmp_path) == before


def test_the_command_neither_deletes_nor_takes_up_a_stopped_training_unasked(command, sample_data, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, epoch=3)
        code, said = command()
    assert code == 130
    assert "the same command with --resume" in said
    state = resume_file_of("runs/sample/baseline")
    before = state.read_bytes()
    code, _ = command()
    assert code.startswith(f"error: {state}: ")
    assert "--resume" in code
    assert state.read_bytes() == before
    assert command("--resume")[0] == 0
    assert not state.exists()
    whole = train_model(lu.load_profile("sample").recipes["baseline"], sample_data)
    assert_same(lu.load_model("runs/sample/baseline", sample_data.encoder), whole.model)


def test_ctrl_c_ends_the_command_with_one_sentence(command, monkeypatch):
    monkeypatch.setenv("LYRICS_EPOCHS", "1000000")
    monkeypatch.setattr(sys, "argv", ["train", "--profile", "sample", "--model", "baseline"])
    state = resume_file_of("runs/sample/baseline")
    with child(train.main) as process:
        process.wait_until(state.is_file)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait() == 130
        *_, said = process.message().splitlines()
    assert said == "interrupted: the same command with --resume goes on after the last finished epoch."
    assert state.is_file()


# ---------------------------------------------------------------- quick to start


HEAVY = "{'torch', 'transformers', 'sklearn', 'pandas', 'peft', 'accelerate', 'scipy'}"


@pytest.mark.parametrize("module", ["train", "predict"])
def test_help_loads_no_library(module):
    code = f"""
import runpy, sys
sys.argv = ["{module}", "--help"]
try:
    runpy.run_module("lyric_utils.{module}", run_name="__main__")
except SystemExit as stop:
    print(stop.code, {HEAVY} & set(sys.modules))
"""
    done = run_python("-c", code)
    assert "usage: python -m lyric_utils" in done.stdout
    assert done.stdout.endswith("0 set()\n"), done.stdout + done.stderr


def test_importing_the_package_loads_no_library():
    done = run_python("-c", f"import lyric_utils, sys; print({HEAVY} & set(sys.modules), 'fit' in dir(lyric_utils))")
    assert done.stdout == "set() True\n", done.stderr


# ---------------------------------------------------------------- a second table


def test_songs_of_a_second_table_are_added_on_the_scale_of_the_first(sample):
    split = lu.split_songs(sample.iloc[:75].drop(columns="split"), by="song")
    others = sample.iloc[60:].drop(columns="split").assign(valence=np.linspace(0, 1, 90))
    train = add_songs(split, others, scale=0.5)
    added = train.iloc[len(split.train) :]
    assert train.iloc[: len(split.train)].equals(split.train)
    assert added["title"].tolist() == sample["title"].iloc[75:].tolist(), "songs of any side are not added again"
    assert added["valence"].mean() == pytest.approx(split.train["valence"].mean())
    assert np.ptp(added["valence"]) == pytest.approx(0.5 * np.ptp(others["valence"].iloc[15:]))


def test_two_tables_share_the_sides_of_their_artists(sample, tmp_path, monkeypatch, capsys):
    """The profile "both": its artists' sides are those of each table alone, and all it is tested on is of the first."""
    tables = {"billboard": sample.iloc[:90], "subset": sample.iloc[60:]}
    for name, songs in tables.items():
        songs.drop(columns="split").to_csv(tmp_path / f"{name}.csv", index=False)

    def read(profile):
        return lu.read_songs(tmp_path / f"{profile.source}.csv")

    monkeypatch.setattr("lyric_utils.pipeline.load_source", read)
    both, first, second = (load_split(PROFILES[name]) for name in ("both", "billboard", "subset"))
    assert both.test.equals(first.test)
    assert set(both.train["artist"]) == set(first.train["artist"]) | set(second.train["artist"])
    assert not set(both.train["artist"]) & (set(first.test["artist"]) | set(second.test["artist"]))
    assert "90 rows in, 90 songs kept" in capsys.readouterr().out
