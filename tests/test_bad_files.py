"""The collection of bad_files.py, one by one: refused with an error of our own, or survived, all rows accounted for."""

import copyreg
import os
import pickle
import pickletools
import re
import resource
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import cache as remembered
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bad_files import (
    BAD_CHECKPOINTS,
    BAD_ENCODERS,
    BAD_FRAMES,
    BAD_NAMES,
    BAD_STATES,
    BAD_TABLES,
    CANARY,
    EXTENSION_CODES,
    HOSTILE_PICKLES,
    KINDS,
    MARKS,
    OTHER_ENCODERS,
    PLACES,
    ROW,
    WORDS,
    WRONG_VALUES,
    in_kind,
    song_pickle,
)
from conftest import full_disk
from safetensors.torch import save_file

import lyric_utils as lu
from lyric_utils import predict, training
from lyric_utils._files import replacing, visible
from lyric_utils.blend import BlendRegressor
from lyric_utils.checkpoints import HASHES, shipped_folder
from lyric_utils.classical import char_tfidf_ridge
from lyric_utils.encoders import hash_encoder
from lyric_utils.profiles import BASELINE, BLEND, LORA_TUNED, Profile, Recipe
from lyric_utils.songs import fingerprint_songs
from lyric_utils.tables import BOUNDS
from lyric_utils.training import Examples

PREDICTIONS = pd.DataFrame(
    {"row": [3, 7], "artist": ["1975", "nan"], "title": ["River", "Roof, or: \"Rain\""],
     "words": [17, 9], "chunks": [1, 1], "valence": [0.5, 0.25], "prediction": [0.5, 0.5]}
)  # fmt: skip
RESULTS = {
    "profile": "sample",
    "history": [{"epoch": 1, "train_loss": 0.1, "validation_mse": 0.2, "seconds": 1.0}],
    "predictions": PREDICTIONS,
    "metrics": {"mse": 0.05, "r2": 0.1},
}


@pytest.fixture(scope="session")
def sound(tiny_encoder, encoder_folder, tmp_path_factory):
    """Sound checkpoints of the tiny encoder, and that encoder itself."""
    folder = tmp_path_factory.mktemp("sound")
    lora = lu.build_model(tiny_encoder, LORA_TUNED, seed=0)
    text_model = char_tfidf_ridge().fit([WORDS, "Nothing but rain"] * 5, [0.1, 0.9] * 5)
    for model in (lu.build_model(tiny_encoder, BASELINE, seed=0), lora, BlendRegressor(lora, text_model, 0.45, BLEND)):
        lu.save_model(model, folder / model.recipe.model, **RESULTS)
    shutil.copytree(encoder_folder, folder / "encoder")
    return folder


@pytest.fixture(autouse=True)
def no_code_runs(tmp_path, monkeypatch):
    """The working folder is one where the canary would show up."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(CANARY).exists(), "a file ran code"


@pytest.fixture
def extensions(monkeypatch):
    """os.mkdir in the extension registry, known by name and also already in its cache, which asks no `find_class`."""
    monkeypatch.setattr(copyreg, "_extension_cache", copyreg._extension_cache)
    for code in EXTENSION_CODES:
        monkeypatch.setitem(copyreg._inverted_registry, code, ("os", "mkdir"))
        monkeypatch.setitem(copyreg._extension_cache, code, os.mkdir)


@contextmanager
def bounded():
    """What is done within takes less than 20 s, and 1 GiB of further memory."""
    limits, started = resource.getrlimit(resource.RLIMIT_AS), time.perf_counter()
    with suppress(FileNotFoundError):  # Linux alone says how much a process has
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        assert time.perf_counter() - started < 20


def refused(path: Path | str, function, *arguments) -> str:
    """The message of the LyricsError: one line of at most 500 characters that names the path."""
    with pytest.raises(lu.LyricsError) as caught, bounded():
        function(*arguments)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) <= 500
    assert message.isprintable()
    assert "MemoryError" not in message
    return message


def test_collection_is_large():
    one_by_one = sum(map(len, (BAD_TABLES, BAD_CHECKPOINTS, BAD_ENCODERS, OTHER_ENCODERS, BAD_STATES, BAD_FRAMES)))
    crossed = [(READERS, PLACES), (NAMED, BAD_NAMES), (ARGUMENTS, WRONG_VALUES)]
    assert one_by_one >= 750
    assert one_by_one + sum(len(what) * len(how) for what, how in crossed) >= 1_700


@pytest.mark.usefixtures("extensions")
@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table(name, tmp_path):
    table = BAD_TABLES[name]
    path = tmp_path / f"songs{table.suffix}"
    table.write(path)
    if table.rows is None:
        refused(path, lu.read_songs, path)
        if table.suffix == ".pkl":
            refused(path, lu.load_songs, path)
    else:
        with bounded():
            songs = lu.read_songs(path)
            kept, report = lu.clean_songs(songs)
        assert (len(songs), len(kept)) == table.rows
        assert report.rows_in == len(songs) == report.rows_kept + len(report.dropped)
        lu.save_songs(kept, tmp_path / "again.pkl")
        pd.testing.assert_frame_equal(lu.load_songs(tmp_path / "again.pkl"), kept, check_dtype=False)


@pytest.mark.parametrize("encoding", ["Latin-1", "Windows-1252", "Mac Roman", "GBK", "EUC-KR", "KOI8-R"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_a_line_in_another_encoding_is_named(kind, encoding, tmp_path):
    path, header = tmp_path / f"songs{kind}", kind != ".jsonl"
    BAD_TABLES[f"{kind}: {encoding}"].write(path)
    assert f"line {51 + header} is not UTF-8" in refused(path, lu.read_songs, path)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_is_named(kind, bound, tmp_path, monkeypatch):
    """A table is read up to each of them, and no further."""
    path = tmp_path / f"songs{kind}"
    path.write_bytes(in_kind(kind, *[ROW | {"title": "River " * 20}] * 30))
    enough = {"rows": 31, "columns": 5, "letters in a cell": 120, "letters": 30 * 400, "cells": 300}
    monkeypatch.setitem(BOUNDS, bound, enough[bound])
    assert len(lu.read_songs(path)) == 30
    monkeypatch.setitem(BOUNDS, bound, enough[bound] // 4)
    known_as = {"letters in a cell": "letters in a cell|field limit", "cells": "cells|values"}.get(bound, bound)
    assert re.search(known_as, refused(path, lu.read_songs, path))


@pytest.mark.parametrize("model", ["blend"], indirect=True)
@pytest.mark.parametrize("marks", [MARKS, "\u0344" * 100_000, "\u0301" * 100_000, "\u1ab0\u0316" * 50_000])
def test_combining_marks_take_no_time(marks, model):
    """In the words and in the names of artists, from cleaning to prediction."""
    songs = pd.DataFrame({"artist": [f"e{marks}{n}" for n in range(20)], "title": marks, "valence": 0.5})
    songs["lyrics"] = [f"{WORDS} {n} e" for n in range(20)]
    songs.loc[0, "lyrics"] += marks
    started = time.perf_counter()
    kept, _ = lu.clean_songs(songs)
    split = lu.split_songs(kept, by="song"), lu.split_songs(kept, fractions=(0.4, 0.3, 0.3))
    assert [sum(map(len, sides)) for sides in split] == [20, 20]
    fingerprint_songs(kept)
    model.predict([songs.loc[0, "lyrics"]])
    assert time.perf_counter() - started < 10


@pytest.mark.usefixtures("extensions")
@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles_do_run_code_elsewhere(name):
    """The collection has teeth: a plain `pickle.loads` makes the canary."""
    with suppress(Exception):  # some break off after the call
        pickle.loads(HOSTILE_PICKLES[name])
    Path(CANARY).rmdir()


def test_extensions_are_refused_uncached(tmp_path, monkeypatch):
    path = tmp_path / "songs.pkl"
    for code, name in zip(EXTENSION_CODES, ("EXT1", "EXT2", "EXT4"), strict=True):
        monkeypatch.setitem(copyreg._inverted_registry, code, ("os", "mkdir"))
        path.write_bytes(HOSTILE_PICKLES[name])
        assert name in refused(path, lu.load_songs, path)


def test_a_pickle_that_is_swapped_while_it_is_checked_runs_no_code(tmp_path, monkeypatch):
    """What is loaded are the bytes that were checked."""

    def swap(data):
        path.write_bytes(HOSTILE_PICKLES["STACK_GLOBAL REDUCE"])
        return genops(data)

    path, genops = tmp_path / "songs.pkl", pickletools.genops
    path.write_bytes(song_pickle())
    monkeypatch.setattr(pickletools, "genops", swap)
    assert lu.load_songs(path)["lyrics"].tolist() == [WORDS]
    refused(path, lu.load_songs, path)


def test_truncated_pickles(tmp_path):
    path, data = tmp_path / "songs.pkl", song_pickle()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused(path, lu.load_songs, path)


def test_flipped_pickles(tmp_path):
    """Any one bit flipped: refused, or read as a table whose rows are accounted for."""
    path, data = tmp_path / "songs.pkl", song_pickle()
    outcomes = {"refused": 0, "read": 0}
    for bit in range(0, 8 * len(data), 3):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            songs = lu.load_songs(path)
        except lu.LyricsError:
            outcomes["refused"] += 1
        else:
            assert list(songs.columns[:5]) == ["row", "artist", "title", "lyrics", "valence"]
            outcomes["read"] += 1
    assert min(outcomes.values()) > 0


# ---------------------------------------------------------------- checkpoints and encoders


HASHED_ONCE = {version: remembered(function) for version, function in HASHES.items()}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoint(name, tiny_encoder, sound, tmp_path, monkeypatch):
    monkeypatch.setattr("lyric_utils.checkpoints.HASHES", HASHED_ONCE)
    bad = BAD_CHECKPOINTS[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound / bad.model, folder)
    bad.damage(folder, sound / {"lora": "baseline", "baseline": "lora", "blend": "lora"}[bad.model])
    loaders = {
        "load_model": lambda: lu.load_model(folder, tiny_encoder),
        "load_results": lambda: lu.load_results(folder),
    }
    for loader, load in loaders.items():
        if loader in bad.refused_by:
            refused(folder, load)
        else:
            with bounded():
                load()


@pytest.mark.parametrize("model", ["baseline", "lora"])
def test_sound_checkpoint(model, tiny_encoder, sound):
    built = lu.build_model(tiny_encoder, {"baseline": BASELINE, "lora": LORA_TUNED}[model], seed=0).eval()
    loaded = lu.load_model(sound / model, tiny_encoder)
    np.testing.assert_array_equal(loaded.predict([WORDS, "rain"]), built.predict([WORDS, "rain"]))
    results = lu.load_results(sound / model)
    pd.testing.assert_frame_equal(results.predictions, PREDICTIONS, check_dtype=False)
    assert results.history == RESULTS["history"]
    assert results.metrics == RESULTS["metrics"]


def test_flipped_weights_are_all_noticed(tiny_encoder, sound, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound / "baseline", folder)
    data = (folder / "model.safetensors").read_bytes()
    for position in np.random.default_rng(0).integers(0, len(data), 15):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        (folder / "model.safetensors").write_bytes(flipped)
        refused(folder / "model.safetensors", lu.load_model, folder, tiny_encoder)


def test_flipped_json(sound, tmp_path):
    """A flip in a JSON file is refused, or changes one value and nothing else."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound / "baseline", folder)
    for name in ("config", "history", "metrics"):
        path = folder / f"{name}.json"
        data = path.read_bytes()
        for position in range(0, len(data), 7):
            flipped = bytearray(data)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            with suppress(lu.LyricsError):
                lu.load_results(folder)
        path.write_bytes(data)


@pytest.mark.parametrize("name", BAD_ENCODERS)
def test_bad_encoder(name, sound, tmp_path):
    folder = shutil.copytree(sound / "encoder", tmp_path / "encoder")
    BAD_ENCODERS[name](folder)
    refused(folder, lu.load_encoder, str(folder))


@pytest.mark.parametrize("name", OTHER_ENCODERS)
def test_another_encoder_is_told_apart(name, tiny_encoder, sound, tmp_path):
    """It serves no checkpoint of ours, and no entry of the cache, whose key the hash is."""
    folder = shutil.copytree(sound / "encoder", tmp_path / "encoder")
    OTHER_ENCODERS[name](folder)
    other = lu.load_encoder(str(folder))
    assert "other parameters, settings or tokens" in refused(sound / "lora", lu.load_model, sound / "lora", other)
    assert hash_encoder(other) != hash_encoder(tiny_encoder)
    assert np.isfinite(
        lu.build_model(other, BASELINE, 0, 64, 16).predict([f"Déjà vu by the river, {WORDS} {'Ab' * 40}"])
    ).all()


def test_an_encoder_is_itself_again(tiny_encoder, sound):
    assert hash_encoder(lu.load_encoder(str(sound / "encoder"))) == hash_encoder(tiny_encoder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_are_used_as_they_are(dtype, tiny_encoder, sound, tmp_path):
    folder = shutil.copytree(sound / "encoder", tmp_path / "encoder")
    weights = {name: values.to(dtype) for name, values in tiny_encoder.network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoder = lu.load_encoder(str(folder))
    for name, values in encoder.network.state_dict().items():
        assert torch.equal(values, weights[name].float()), name
    model = lu.build_model(encoder, BASELINE)
    lu.save_model(model, tmp_path / "model", **RESULTS)
    np.testing.assert_array_equal(lu.load_model(tmp_path / "model", encoder).predict([WORDS]), model.predict([WORDS]))


@pytest.mark.parametrize("name", ["", "no such encoder", "no/such-encoder", "/no/such/folder", "..", "a" * 300])
def test_unknown_encoder(name):
    refused(Path(name), lu.load_encoder, name)


# ---------------------------------------------------------------- places and names


@contextmanager
def ordinary_user():
    """Root, whom no permission stops, steps back to an ordinary user."""
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65_534)
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def open_folder(monkeypatch):
    """A folder that any user may enter and write (those of pytest are closed), for temporary files as well."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def train(encoder, folder: Path):
    """A training of no length, whose state is kept in the folder."""
    chunks = lu.chunk_lyrics([WORDS, "Nothing but rain"], encoder.tokenizer)
    model = lu.build_model(encoder, replace(BASELINE, epochs=1))
    examples = Examples(model.inputs_from_chunks(chunks), np.array([0.1, 0.9]))
    lu.fit(model, examples, examples, folder / "resume.pt")


@pytest.fixture(scope="session")
def training_state(tiny_encoder, tmp_path_factory):
    """A model, its examples, and the state of a training that was stopped in its second epoch."""
    model = lu.build_model(tiny_encoder, replace(BASELINE, epochs=3))
    inputs = model.inputs_from_chunks(lu.chunk_lyrics([WORDS, "Nothing but rain"], tiny_encoder.tokenizer))
    sides, path = [Examples(inputs, np.array([0.1, 0.9]))] * 2, tmp_path_factory.mktemp("state") / "resume.pt"
    steps = iter([training.train_step])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", lambda *arguments: next(steps)(*arguments))
        with pytest.raises(lu.LyricsError, match="StopIteration"):
            lu.fit(model, *sides, path)
    return model, sides, path.read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", BAD_STATES)
def test_bad_state(name, training_state, tmp_path):
    """Of a training: refused, and kept as it is."""
    model, sides, content = training_state
    path = tmp_path / "resume.pt"
    path.write_bytes(BAD_STATES[name](training.read_state(content, path)))
    before = states(tmp_path)
    refused(path, lu.fit, model, *sides, path)
    assert states(tmp_path) == before


def test_a_sound_state_is_gone_on_with(training_state, tmp_path):
    model, sides, content = training_state
    (tmp_path / "resume.pt").write_bytes(content)
    assert [line["epoch"] for line in lu.fit(model, *sides, tmp_path / "resume.pt")] == [1, 2, 3]


def load_source(folder: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYRICS_DATA", str(folder / "songs.csv"))
        lu.load_source(lu.load_profile("subset"))


def extract(encoder, folder: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYRICS_CACHE", str(folder / "cache"))
        lu.extract_features(encoder, lu.chunk_lyrics([WORDS], encoder.tokenizer))


def score(table: Path, model: Path, out: Path):
    """Run the command, whose end in one sentence is that of a LyricsError here."""
    arguments = [table, "--model", model, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            predict.main()
    message = stopped.value.code
    assert message.startswith("error: ")
    assert message.isprintable()
    assert len(message) <= 507
    raise lu.LyricsError(message)


# What is read -> the function that reads it, and the places in which there is nothing to refuse.
READERS = {
    **{
        f"songs{kind}": (lambda encoder, folder, kind=kind: lu.read_songs(folder / f"songs{kind}"), ())
        for kind in (".csv", ".json", ".xlsx")
    },
    "songs.csv in predict": (
        lambda encoder, folder: score(folder / "songs.csv", folder / "baseline", folder / "scored.csv"),
        (),
    ),
    "songs.csv in LYRICS_DATA": (lambda encoder, folder: load_source(folder), ()),
    "songs.pkl in load_songs": (lambda encoder, folder: lu.load_songs(folder / "songs.pkl"), ()),
    "texts/one.txt": (lambda encoder, folder: lu.read_songs(folder / "texts"), ()),
    **{
        f"{model}/{name}": (lambda encoder, folder, model=model: lu.load_model(folder / model, encoder), ())
        for model, name in (
            ("baseline", "config.json"),
            ("lora", "adapter_model.safetensors"),
            ("blend", "words.safetensors"),
        )
    },
    **{
        f"blend/{name}": (lambda encoder, folder: lu.load_results(folder / "blend"), ())
        for name in ("metrics.json", "predictions.csv")
    },
    **{
        f"encoder/{name}": (lambda encoder, folder: lu.load_encoder(str(folder / "encoder")), fine)
        for name, fine in (
            ("config.json", ()),
            ("model.safetensors", ()),
            ("tokenizer.json", ()),
            ("tokenizer_config.json", ("nothing", "a folder", "a link to a folder")),
        )
    },
    "resume.pt": (train, ("nothing",)),
    "cache": (extract, ("nothing",)),
}


@pytest.fixture(scope="session")
def readable(tiny_encoder, sound, untrained, tmp_path_factory):
    """A sound file or folder for every reader, all of which have been run once and need to import nothing."""
    folder = tmp_path_factory.mktemp("readable") / "all"
    shutil.copytree(sound, folder)
    for kind in KINDS:
        (folder / f"songs{kind}").write_bytes(in_kind(kind, ROW))
    (folder / "texts").mkdir()
    (folder / "texts" / "one.txt").write_text(WORDS)
    (folder / "cache").mkdir()
    train(tiny_encoder, folder)
    predict.score_table(folder / "songs.csv", untrained, folder / "scored.csv")
    (folder / "scored.csv").unlink()
    for path in folder.rglob("*"):
        path.chmod(0o777)
    return folder


def states(folder: Path) -> dict:
    """All that is in a folder, and what tells whether it was written to."""
    found = {str(path): path.lstat() for path in folder.rglob("*")}
    return {path: (about.st_ino, about.st_mode, about.st_size, about.st_mtime_ns) for path, about in found.items()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reader", READERS)
def test_bad_place(reader, place, tiny_encoder, readable, open_folder):
    """What is not a regular file that one may read is told, and not waited for."""
    if (reader, place) in {("encoder/model.safetensors", "3 GiB of zeros"), ("cache", "a folder")}:
        pytest.skip("is mapped into memory, not read; is as it should be")
    read, fine = READERS[reader]
    where = reader.partition(" ")[0]
    for name in {where.partition("/")[0], "baseline"}:
        copy = shutil.copytree if (readable / name).is_dir() else shutil.copyfile
        copy(readable / name, open_folder / name)
    PLACES[place](open_folder / where)
    before = states(open_folder)
    with ordinary_user():
        if place in fine:
            read(tiny_encoder, open_folder)
            return
        refused(open_folder, read, tiny_encoder, open_folder)
    assert states(open_folder) == before


def save(model, folder: Path, **changes):
    lu.save_model(model, folder, **RESULTS | changes)


def with_setting(name: str, value: Path, function, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, os.fspath(value))
        function(*arguments)


SONGS = pd.DataFrame({name: [value] for name, value in ROW.items()})
NAMED = {  # what is done with a file or folder of that name, given a model
    **{
        f"read_songs {kind}": lambda path, model, kind=kind: lu.read_songs(f"{path}{kind}")
        for kind in (".csv", ".json", ".pkl", "", ".xls")
    },
    "load_songs": lambda path, model: lu.load_songs(path),
    "save_songs": lambda path, model: lu.save_songs(SONGS, path / "file" / "songs.pkl"),
    "load_model": lambda path, model: lu.load_model(path, model.encoder),
    "load_results": lambda path, model: lu.load_results(path),
    "save_model": lambda path, model: save(model, path / "file" / "model"),
    "load_encoder": lambda path, model: lu.load_encoder(path),
    "predict, of songs": lambda path, model: score(f"{path}.csv", "model", path.parent / "scored.csv"),
    "predict, of a model": lambda path, model: score(path.parent / "songs.csv", path, path.parent / "scored.csv"),
    "predict, to a table": lambda path, model: score(
        path.parent / "songs.csv", path.parent / "untrained", path / "file" / "scored.csv"
    ),
    "LYRICS_DATA": lambda path, model: with_setting("LYRICS_DATA", path, lu.load_source, lu.load_profile("subset")),
}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("function", NAMED)
def test_bad_name(function, name, tiny_encoder, untrained, tmp_path):
    """Of a file that is not there, or cannot be: the message spells out what could not be shown."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "songs.csv").write_bytes(in_kind(".csv", ROW))
    shutil.copytree(untrained, tmp_path / "untrained")
    path = tmp_path / BAD_NAMES[name]
    with suppress(OSError, ValueError):
        path.mkdir(parents=True)
        (path / "file").write_text("precious")
    if function.startswith(("LYRICS_DATA", "predict")) and "\0" in path.name:
        pytest.skip("neither an environment nor a command line has it")
    before = states(tmp_path)
    message = refused(visible(tmp_path), NAMED[function], path, lu.build_model(tiny_encoder, BASELINE))
    assert message.count(visible(tmp_path)) <= 2
    assert states(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["a NUL byte", "300 letters", "terminal escapes", "bytes that are no UTF-8", "line ends"]
)
@pytest.mark.parametrize("setting", ["LYRICS_PROFILE", "LYRICS_EPOCHS"])
def test_bad_setting(setting, name, monkeypatch):
    monkeypatch.setitem(os.environ, setting, BAD_NAMES[name].replace("\0", "\x01"))
    refused("", lu.load_profile)


# ---------------------------------------------------------------- arguments

PEOPLE = pd.concat([SONGS.assign(artist=f"Ann {n}", lyrics=f"{WORDS} {n}") for n in range(100)])
TRIO = [0.2, 0.5, 0.1], [0.1, 0.4, 0.3], [0.2, 0.5, 0.1]
NAMES = ("a text", "a number as text")  # which may be names
# Argument -> a function of what it is given and of an encoder.
ARGUMENTS = {
    "load_songs.path": lambda value, encoder: lu.load_songs(value),
    "read_songs.path": lambda value, encoder: lu.read_songs(value),
    "read_songs.needed": lambda value, encoder: lu.read_songs("songs.csv", value),
    "save_songs.songs": lambda value, encoder: lu.save_songs(value, "new.pkl"),
    "save_songs.path": lambda value, encoder: lu.save_songs(SONGS, value),
    "clean_songs.songs": lambda value, encoder: lu.clean_songs(value),
    "split_songs.songs": lambda value, encoder: lu.split_songs(value),
    "split_songs.seed": lambda value, encoder: lu.split_songs(PEOPLE, value),
    "split_songs.fractions": lambda value, encoder: lu.split_songs(PEOPLE, fractions=value),
    "split_songs.by": lambda value, encoder: lu.split_songs(PEOPLE, by=value),
    "draw_songs.songs": lambda value, encoder: lu.draw_songs(value, 1, 0),
    "draw_songs.count": lambda value, encoder: lu.draw_songs(PEOPLE, value, 0),
    "draw_songs.seed": lambda value, encoder: lu.draw_songs(PEOPLE, 1, value),
    "load_source.profile": lambda value, encoder: lu.load_source(value),
    "load_profile.name": lambda value, encoder: lu.load_profile(value),
    "average_by_song.values": lambda value, encoder: lu.average_by_song(value, [0, 0]),
    "average_by_song.song_index": lambda value, encoder: lu.average_by_song([1.0, 2.0], value),
    "chunk_lyrics.lyrics": lambda value, encoder: lu.chunk_lyrics(value, encoder.tokenizer),
    "chunk_lyrics.lyrics of": lambda value, encoder: lu.chunk_lyrics([value], encoder.tokenizer),
    "chunk_lyrics.tokenizer": lambda value, encoder: lu.chunk_lyrics([WORDS], value),
    "chunk_lyrics.max_length": lambda value, encoder: lu.chunk_lyrics([WORDS], encoder.tokenizer, value),
    "chunk_lyrics.stride": lambda value, encoder: lu.chunk_lyrics([WORDS], encoder.tokenizer, 512, value),
    "load_encoder.name": lambda value, encoder: lu.load_encoder(value),
    "extract_features.encoder": lambda value, encoder: lu.extract_features(value, chunks(encoder)),
    "extract_features.chunks": lambda value, encoder: lu.extract_features(encoder, value),
    "extract_features.adapted_layers": lambda value, encoder: lu.extract_features(encoder, chunks(encoder), value),
    "BaselineMLP.encoder": lambda value, encoder: lu.BaselineMLP(value, BASELINE),
    "BaselineMLP.recipe": lambda value, encoder: lu.BaselineMLP(encoder, value),
    "LoraRegressor.encoder": lambda value, encoder: lu.LoraRegressor(value, LORA_TUNED),
    "LoraRegressor.recipe": lambda value, encoder: lu.LoraRegressor(encoder, value),
    "LoraRegressor.pooler": lambda value, encoder: lu.LoraRegressor(encoder, LORA_TUNED, pooler=value),
    "build_model.encoder": lambda value, encoder: lu.build_model(value, BASELINE),
    "build_model.recipe": lambda value, encoder: lu.build_model(encoder, value),
    "build_model.seed": lambda value, encoder: lu.build_model(encoder, BASELINE, value),
    "build_model.max_length": lambda value, encoder: lu.build_model(encoder, BASELINE, 0, value).predict([WORDS]),
    "build_model.stride": lambda value, encoder: lu.build_model(encoder, BASELINE, 0, 512, value).predict([WORDS]),
    "predict.lyrics": lambda value, encoder: model(encoder).predict(value),
    "predict.lyrics of": lambda value, encoder: model(encoder).predict([value]),
    "predict.interval": lambda value, encoder: model(encoder).predict([], value),
    "fit.model": lambda value, encoder: lu.fit(value, *examples(encoder)),
    "fit.train_set": lambda value, encoder: lu.fit(model(encoder), value, examples(encoder)[1]),
    "fit.validation_set": lambda value, encoder: lu.fit(model(encoder), examples(encoder)[0], value),
    "fit.precision": lambda value, encoder: lu.fit(model(encoder), *examples(encoder), precision=value),
    "fit.valence": lambda value, encoder: lu.fit(
        model(encoder), *[side._replace(valence=value) for side in examples(encoder)]
    ),
    "load_model.folder": lambda value, encoder: lu.load_model(value, encoder),
    "load_model.encoder": lambda value, encoder: lu.load_model(shipped_folder("baseline"), value),
    "load_results.folder": lambda value, encoder: lu.load_results(value),
    "save_model.model": lambda value, encoder: save(value, Path("new")),
    "save_model.folder": lambda value, encoder: save(model(encoder), value),
    **{
        f"save_model.{name}": lambda value, encoder, name=name: save(model(encoder), "new", **{name: value})
        for name in ("profile", "history", "predictions", "metrics", "training_songs")
    },
    "prepare.profile": lambda value, encoder: lu.prepare(value),
    "prepare.split": lambda value, encoder: lu.prepare(lu.load_profile(), 0 if value is None else value),
    "train_or_load.data": lambda value, encoder: lu.train_or_load(value, "baseline"),
    "score.truth": lambda value, encoder: lu.score(value, [0.1, 0.2]),
    "score.prediction": lambda value, encoder: lu.score([0.1, 0.2], value),
    **{
        f"{function.__name__}.{argument}": lambda value, encoder, function=function, sides=sides, argument=argument: (
            function(*sides, **{argument: value})
        )
        for function, sides in ((lu.score_with_intervals, TRIO[:2]), (lu.paired_difference, TRIO))
        for argument in ("groups", "resamples", "seed", "level")
    },
}
RIGHT_VALUES = {  # the wrong values that are right for an argument
    **dict.fromkeys(("save_songs.songs", "clean_songs.songs", "draw_songs.songs"), ("a table",)),
    **dict.fromkeys(("save_songs.path", "save_model.folder", "save_model.profile"), NAMES),
    **dict.fromkeys(("chunk_lyrics.lyrics of", "predict.lyrics of"), NAMES),
    **dict.fromkeys(("draw_songs.count", "load_profile.name", "LoraRegressor.pooler", "fit.precision"), ("None",)),
    "predict.interval": ("None",),
    **dict.fromkeys(("score_with_intervals.groups", "paired_difference.groups", "load_model.encoder"), ("None",)),
    **dict.fromkeys(("score_with_intervals.seed", "paired_difference.seed"), ("None",)),
    "save_model.metrics": ("a dict",),
    "save_model.training_songs": NAMES,
}


def chunks(encoder):
    return lu.chunk_lyrics([WORDS], encoder.tokenizer)


def model(encoder):
    return lu.build_model(encoder, replace(BASELINE, epochs=1))


@remembered
def examples(encoder):
    return [Examples(model(encoder).inputs_from_chunks(chunks(encoder)), np.array([0.5]))] * 2


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_bad_argument(argument, tiny_encoder, tmp_path):
    """A wrong value is told in a sentence, or is a right one; nothing is written for it."""
    (tmp_path / "songs.csv").write_bytes(in_kind(".csv", ROW))
    for name, make in WRONG_VALUES.items():
        if name in RIGHT_VALUES.get(argument, ()):
            ARGUMENTS[argument](make(), tiny_encoder)
            continue
        before = states(tmp_path)
        try:
            refused("", ARGUMENTS[argument], make(), tiny_encoder)
        except BaseException as error:
            raise AssertionError(f"{argument} = {name}") from error
        assert states(tmp_path) == before, name


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("function", ["clean_songs", "split_songs", "save_songs"])
def test_bad_frame(function, name, tmp_path):
    """Refused, or every row is accounted for and comes back as it was."""
    songs = BAD_FRAMES[name]()
    try:
        with bounded():
            if function == "clean_songs":
                kept, report = lu.clean_songs(songs)
                assert len(kept) + len(report.dropped) == len(songs)
            elif function == "split_songs":
                assert sum(map(len, lu.split_songs(songs))) == len(songs)
            else:
                lu.save_songs(songs, tmp_path / "songs.pkl")
                found = lu.load_songs(tmp_path / "songs.pkl", [])[songs.columns]
                plain = songs.astype(object).where(songs.notna(), None)
                pd.testing.assert_frame_equal(found, plain, check_dtype=False)
    except lu.LyricsError as refused:
        message = str(refused)
        assert (len(message) <= 500, message.isprintable()) == (True, True)
        assert [*tmp_path.iterdir()] == []


SIZES = ("learning_rate", "head_learning_rate", "weight_decay", "rescale")


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_bad_recipe(field, tiny_encoder):
    """A field of the wrong type, or beyond its range, is refused and named wherever a recipe is taken."""
    for name in WRONG_VALUES.keys() - (["10**30"] if field in SIZES else []):
        recipe = replace(LORA_TUNED, **{field: WRONG_VALUES[name]()})
        message = refused("", lu.build_model, tiny_encoder, recipe)
        assert f"recipe.{field}" in message or (field, name) == ("target_modules", "a table"), name


@pytest.mark.parametrize("field", [field.name for field in fields(Profile)])
def test_bad_profile(field):
    right = dict.fromkeys(("max_length", "stride"), ("-1", "10**30")) | dict.fromkeys(("songs", "also"), ("None",))
    right |= dict.fromkeys(("name", "encoder", "split_by"), NAMES)
    for name in WRONG_VALUES.keys() - right.get(field, ()):
        profile = replace(lu.load_profile("sample"), **{field: WRONG_VALUES[name]()})
        for function in (lu.load_source, lu.prepare):
            assert f"profile.{field}" in refused("", function, profile), name


# ---------------------------------------------------------------- disks that do not take it


@contextmanager
def read_only(folder):
    """The folder takes no new file."""
    folder.chmod(0o555)
    try:
        with ordinary_user():
            yield
    finally:
        folder.chmod(0o755)


@contextmanager
def no_renaming(_):
    """Renaming into place fails at the last moment."""

    def fail(source, target, *_, **__):
        if Path(source).name in ("new",) or Path(source).suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(source, target)

    rename = os.rename
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", fail)
        patch.setattr(os, "replace", fail)
        yield


def contents(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("disk", [full_disk, read_only, no_renaming])
@pytest.mark.parametrize("there_before", [True, False])
def test_saving_songs_fails_without_a_trace(disk, there_before, open_folder):
    path = open_folder / "songs.pkl"
    songs = pd.DataFrame({"artist": ["a"], "title": ["b"], "lyrics": [WORDS * 1000], "valence": [0.5]})
    if there_before:
        lu.save_songs(songs.head(1).assign(lyrics="old"), path)
    before = contents(open_folder)
    with disk(open_folder):
        message = refused(path, lu.save_songs, songs, path)
    assert "cannot be written" in message
    assert contents(open_folder) == before


@pytest.mark.parametrize("disk", [full_disk, read_only, no_renaming])
@pytest.mark.parametrize("recipe", [BASELINE, LORA_TUNED], ids=lambda recipe: recipe.model)
@pytest.mark.parametrize("there_before", [True, False])
def test_saving_a_model_fails_without_a_trace(disk, recipe, there_before, tiny_encoder, sound, open_folder):
    folder = open_folder / "checkpoint"
    if there_before:
        shutil.copytree(sound / recipe.model, folder)
    before = contents(open_folder)
    model = lu.build_model(tiny_encoder, recipe, seed=1)
    with disk(open_folder):
        message = refused(folder, lambda: lu.save_model(model, folder, **RESULTS))
    assert "cannot be written" in message
    assert contents(open_folder) == before


def test_saving_where_something_else_stands(tiny_encoder, tmp_path):
    model = lu.build_model(tiny_encoder, BASELINE)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    for target in (precious, precious / "letter.txt", precious / "letter.txt" / "below"):
        before = contents(tmp_path)
        refused(target, lambda target=target: lu.save_model(model, target, **RESULTS))
        assert contents(tmp_path) == before
    songs = pd.DataFrame({"artist": ["a"], "title": ["b"], "lyrics": [WORDS], "valence": [0.5]})
    for target in (precious, precious / "letter.txt" / "below", precious / ("x" * 300)):
        refused(target, lu.save_songs, songs, target)
    assert contents(tmp_path) == before


def test_an_error_while_writing_leaves_the_old(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "b"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    before = contents(tmp_path)
    for target in (file, folder):
        with suppress(ZeroDivisionError), replacing(target) as new:
            new.mkdir() if target is folder else new.write_text("new")
            raise ZeroDivisionError
    assert contents(tmp_path) == before
