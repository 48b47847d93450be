"""What holds of any input: a reader gives every row or one sentence, a writer leaves the old or the whole new."""

import builtins
import csv
import io
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bad_files import KINDS, ROW, WORDS, in_kind
from conftest import RECIPES, disturb, save_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lyric_utils as lu
from lyric_utils._files import replacing, write_file
from lyric_utils.tables import COLUMNS, read_blocks


@contextmanager
def told(part: object = ""):
    """What is done within may be refused in one line of at most 500 characters with that part; yields its message."""
    messages = []
    with suppress(lu.LyricsError):
        try:
            yield messages
        except lu.LyricsError as error:
            messages.append(str(error))
            raise
    for message in messages:
        assert message.isprintable()
        assert len(message) <= 500
        assert str(part) in message


@pytest.fixture(scope="session")
def folder():
    """Gives an empty folder for every example."""
    with tempfile.TemporaryDirectory() as name:

        def make() -> Path:
            shutil.rmtree(name)
            Path(name).mkdir()
            return Path(name)

        yield make


# ---------------------------------------------------------------- the reader

ROWS = [ROW | {"lyrics": f"{WORDS} {n}", "title": f'"{n}", río'} for n in range(3)]
SOUND = {kind: in_kind(kind, *ROWS) for kind in KINDS}


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A sound file in which some places are replaced, removed, doubled or filled with anything."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        middle = draw(st.one_of(st.binary(max_size=8), st.just(content[start:end] * 2), st.sampled_from(PARTS)))
        content = content[:start] + middle + content[end:]
    return content


PARTS = [
    b'"',
    b",",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"[",
    b"{}",
    b"null",
    b"NaN",
    b"1e999",
    b"\x94",
    b"h\x00",
]


def check_reading(path: Path) -> None:
    """Read a file in the ways there are; all agree on its rows, each of which is kept or named as dropped."""
    with told(path) as refused:
        songs = lu.read_songs(path)
    if refused:
        return
    assert len(songs) > 0
    assert songs.columns[:5].tolist() == ["row", *COLUMNS]
    assert songs["row"].dtype == int
    with told("is missing" if path.suffix in (".json", ".jsonl") else "never") as refused:  # from a record at the start
        one_by_one = pd.concat(read_blocks(path, 1))
        assert one_by_one["row"].tolist() == songs["row"].tolist()
        assert one_by_one["lyrics"].map(repr).tolist() == songs["lyrics"].map(repr).tolist()
    with told(f"No usable song among {len(songs)} rows") as refused:
        kept, report = lu.clean_songs(songs)
    if refused:
        return
    assert report.rows_in == len(songs) == len(kept) + len(report.dropped)
    assert sorted([*kept["row"], *report.dropped["row"]]) == sorted(songs["row"])
    assert kept["valence"].between(0, 1).all()
    assert kept["lyrics"].map(str.strip).all()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_bytes_are_a_table_or_a_sentence(kind, folder, data):
    path = folder() / f"songs{kind}"
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=300), damaged(SOUND[kind]), damaged(SOUND[kind]))))
    check_reading(path)


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
tables = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, cells)), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".json", ".jsonl", ".pkl"])
@given(rows=tables)
@example(rows=[dict.fromkeys(COLUMNS, "")])
@example(rows=[dict.fromkeys(COLUMNS, '"'), dict.fromkeys(COLUMNS, "\r\n"), dict.fromkeys(COLUMNS, "\ufeff")])
def test_any_cells_come_back_as_they_were(kind, folder, rows):
    """But for empty ones, which are missing in a table of text."""
    path = folder() / f"songs{kind}"
    if kind in (".csv", ".tsv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter="," if kind == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
        expected = [{name: cell or None for name, cell in row.items()} for row in rows]
    else:
        path.write_bytes(in_kind(kind, *rows))
        expected = rows
    found = lu.read_songs(path)
    assert found[COLUMNS].to_dict("records") == expected
    assert found["row"].tolist() == [*range(len(rows))]


@pytest.mark.parametrize("kind", KINDS)
@given(
    rows=st.lists(
        st.one_of(st.none(), st.integers(), st.floats(), st.text("0123456789.eE+-_ ", max_size=8)), min_size=1
    )
)
@example(rows=[2**53 + 1, 2**63 - 1, -(2**63) + 1, 2**63])
@example(rows=["1e3", "1.0", "1_000", " 7 ", "٣"])
def test_any_row_number_is_a_whole_number_or_the_position(kind, folder, rows):
    path = folder() / f"songs{kind}"
    if kind == ".xlsx":
        rows = [str(row) for row in rows]
    path.write_bytes(in_kind(kind, *[{"row": row} | ROW for row in rows]))
    found = lu.read_songs(path)["row"].tolist()
    for position, (row, number) in enumerate(zip(rows, found, strict=True)):
        spelled = str(row).strip()
        if re.fullmatch(r"[+-]?\d+", spelled) and abs(int(spelled)) < 2**63:
            assert number == int(spelled)
        else:
            with suppress(ValueError, TypeError, OverflowError):
                assert number in (position, float(spelled))
                continue
            assert number == position


# ---------------------------------------------------------------- the validator

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def checkpoint(tiny_encoder, tmp_path_factory):
    """Makes a checkpoint in which one file has another content, given a function of what it had."""
    sound, copy = (tmp_path_factory.mktemp("checkpoint") / name for name in ("sound", "copy"))
    save_checkpoint(disturb(lu.build_model(tiny_encoder, RECIPES["lora"])), sound)
    shutil.copytree(sound, copy)

    def make(name: str, change) -> Path:
        for file in sound.iterdir():
            if (content := change(file.read_bytes()) if file.name == name else file.read_bytes()) != (
                copy / file.name
            ).read_bytes():
                (copy / file.name).write_bytes(content)
        return copy

    return make


@st.composite
def changed_json(draw, content: bytes) -> bytes:
    return json.dumps(draw(changed(json.loads(content)))).encode()


@st.composite
def changed(draw, content):
    """A sound JSON content in which one value, at any depth, is anything else or missing."""
    if isinstance(content, dict) and content and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(content)))
        inner = {} if draw(st.integers(0, 9)) == 0 else {name: draw(changed(content[name]))}
        return {key: value for key, value in content.items() if key != name} | inner
    if isinstance(content, list) and content and draw(st.booleans()):
        return [draw(changed(content[0])), *content[1:]]
    return draw(json_values)


@pytest.mark.parametrize("name", ["config.json", "history.json", "metrics.json"])
@given(data=st.data())
def test_any_json_is_taken_up_or_told_in_a_sentence(name, checkpoint, data):
    copy = checkpoint(name, lambda content: data.draw(changed_json(content)))
    with told(copy / name) as refused:
        results = lu.load_results(copy)
    if not refused:
        assert {"recipe", "encoder", "seed"} <= results.config.keys()
        assert all(np.isfinite(line["validation_mse"]) for line in results.history)
        assert all(value is None or isinstance(value, float | int) for value in results.metrics.values())


@settings(max_examples=50)
@given(data=st.data())
def test_any_config_gives_a_model_that_predicts_or_a_sentence(tiny_encoder, checkpoint, data):
    copy = checkpoint("config.json", lambda content: data.draw(changed_json(content)))
    with told(copy):
        model = lu.load_model(copy, tiny_encoder)
        assert 0 <= model.predict([WORDS])[0] <= 1


@pytest.mark.parametrize("name", ["predictions.csv", "head.safetensors", "adapter_model.safetensors"])
@settings(max_examples=30)
@given(data=st.data())
def test_any_bytes_in_a_checkpoint_are_noticed(name, tiny_encoder, checkpoint, data):
    content = (checkpoint("", None) / name).read_bytes()
    copy = checkpoint(name, lambda content: data.draw(damaged(content)))
    load = (lambda: lu.load_results(copy)) if name.endswith(".csv") else (lambda: lu.load_model(copy, tiny_encoder))
    with told(copy / name) as refused:
        load()
    assert refused or name.endswith(".csv") or (copy / name).read_bytes() == content


# ---------------------------------------------------------------- the writer

CALLS = [(os, "mkdir"), (os, "rename"), (os, "replace"), (os, "chmod"), (io, "open"), (builtins, "open")]
CLEANING = [(os, "open"), (os, "unlink"), (os, "rmdir"), (os, "scandir"), (os, "listdir")]


@contextmanager
def stopped_at(number: int, calls: list, stop):
    """Call `stop` instead of the call of that number, from 0, among some functions of the file system."""
    numbers = count()

    def counted(function):
        return lambda *arguments, **options: stop() if next(numbers) == number else function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module, name in calls:
            patch.setattr(module, name, counted(getattr(module, name)))
        yield numbers


def write(path: Path, is_folder: bool) -> None:
    """Write new content as `save_model` and `save_songs` do."""
    if not is_folder:
        return write_file(path, b"new " * 1000, b"old|new")
    with replacing(path) as new:
        new.mkdir()
        for name in ("a", "b"):
            (new / name).write_bytes(b"new " * 1000)


def content(path: Path) -> object:
    """What is there: None, bytes of a file, or names and bytes of a folder."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def place(path: Path, is_folder: bool, there_before: bool) -> None:
    if there_before and is_folder:
        path.mkdir()
        for name in ("a", "c"):
            (path / name).write_bytes(b"old")
    elif there_before:
        path.write_bytes(b"old")


def full():
    raise OSError(28, "No space left on device")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [full, interrupted])
@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_writer_that_is_stopped_leaves_the_old_or_the_whole_new(is_folder, there_before, stop, folder):
    """At any call of the file system, and nothing beside it; where the cleaning fails, the next writer does it."""
    write(whole := folder() / "target", is_folder)
    outcomes = set()
    for calls in (CALLS, CLEANING):
        for number in range(100):
            path = folder() / "target"
            place(path, is_folder, there_before)
            before = content(path)
            with stopped_at(number, calls, stop) as numbers:
                outcome = "interrupted"
                with suppress(KeyboardInterrupt), told(path) as refused:
                    write(path, is_folder)
                    outcome = "written"
            outcome = "refused" if refused else outcome
            outcomes.add(outcome)
            assert content(path) in ([content(whole)] if outcome == "written" else [before, content(whole)])
            if calls is CALLS:
                assert {*os.listdir(path.parent)} <= {"target"}
            write(path, is_folder)
            assert content(path) == content(whole)
            assert os.listdir(path.parent) == ["target"]
            if next(numbers) <= number:  # no more calls than that
                break
        assert 2 < number < 99
    assert outcomes == {"written", {full: "refused", interrupted: "interrupted"}[stop]}


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_writer_that_is_killed_leaves_the_old_or_the_whole_new(is_folder, there_before, folder):
    """At any call of the file system; a folder may be away until the next writer, which fails and brings it back."""
    write(whole := folder() / "target", is_folder)
    for number in range(100):
        path = folder() / "target"
        place(path, is_folder, there_before)
        before = content(path)
        if (child := os.fork()) == 0:
            with stopped_at(number, CALLS + CLEANING, lambda: os._exit(9)):
                write(path, is_folder)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        with pytest.raises(ZeroDivisionError), replacing(path):
            raise ZeroDivisionError
        assert content(path) in [before, content(whole)]
        assert {*os.listdir(path.parent)} <= {"target"}
        if not killed:
            break
    assert 10 < number < 99
