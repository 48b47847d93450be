"""No command and no function loses what a user has, whatever stands at the target, and whoever else writes or kills."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SONGS, child, full_disk, save_checkpoint
from filelock import FileLock

import lyric_utils as lu
from lyric_utils import features, predict, training
from lyric_utils.profiles import BASELINE
from lyric_utils.training import Examples

WORDS = ["river", "morning", "kitchen", "window", "garden", "letter", "summer", "station", "winter", "harbour"]


def states(folder: Path) -> dict:
    """All that is in a folder, and what tells whether it was written to; never opened unless it is a regular file."""
    found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    kept = {name: (about.st_ino, about.st_mode, about.st_size) for name, about in found.items()}
    regular = [name for name, about in found.items() if stat.S_ISREG(about.st_mode)]
    return kept | {name: (*kept[name], (folder / name).read_bytes()) for name in regular}


@pytest.fixture
def checkpoint(untrained, tmp_path):
    return shutil.copytree(untrained, tmp_path / "model" / "baseline")


def write_table(path: Path, count: int, words: str = "") -> Path:
    lyrics = [
        f"I sat by the {WORDS[n % 10]} {words}\nand the {WORDS[n // 10 % 10]} was all I knew" for n in range(count)
    ]
    lyrics = ["12 ... !" if n % 7 == 0 else text for n, text in enumerate(lyrics)]
    pd.DataFrame({"artist": "Ann", "title": range(count), "lyrics": lyrics}).to_csv(path, index=False)
    return path


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "songs.csv", 50)


class Constant:
    """A model that needs no time."""

    def predict(self, lyrics, interval):
        return np.full(len(lyrics), 0.5)


@pytest.fixture
def quick(monkeypatch):
    """Blocks of eight songs, and a model that needs no time."""
    monkeypatch.setattr(predict, "BLOCK", 8)
    monkeypatch.setattr("lyric_utils.checkpoints.load_model", lambda folder: Constant())


def run(*arguments) -> None:
    """The command, in this process or a copy of it."""
    sys.argv = ["predict", *map(str, arguments)]
    predict.main()


# ---------------------------------------------------------------- what stands at --out

FOREIGN = {
    "a letter": b"dear",
    "an empty file": b"",
    "a song table": b"row,artist,title,lyrics,valence\n1,Ann,River,la,0.5\n",
    "a table with notes": b"row,artist,title,prediction,notes\n1,Ann,River,0.5,mine\n",
    "a table that another program saved": b"row,artist,title,prediction\r\n1,Ann,River,0.5\r\n",
    "a letter about a table": b"dear,\nrow,artist,title,prediction\n",
    "a table with a mark": b"\xef\xbb\xbfrow,artist,title,prediction\n1,Ann,River,0.5\n",
}
TARGETS: dict[str, Callable[[Path, Path, Path], Path | None]] = {
    "the table": lambda folder, table, model: table,
    "the table by another way": lambda folder, table, model: folder / "model" / ".." / table.name,
    "a link to the table": lambda folder, table, model: (folder / "out").symlink_to(table),
    "a link to a link to the table": lambda folder, table, model: (
        (folder / "link").symlink_to(table), (folder / "out").symlink_to("link")
    ),
    "the table under a second name": lambda folder, table, model: (folder / "out").hardlink_to(table),
    "a folder": lambda folder, table, model: (folder / "out").mkdir(),
    "a pipe": lambda folder, table, model: os.mkfifo(folder / "out"),
    "a socket": lambda folder, table, model: os.mknod(folder / "out", stat.S_IFSOCK | 0o666),
    "a device": lambda folder, table, model: Path(os.devnull),
    "a link to a device": lambda folder, table, model: (folder / "out").symlink_to(os.devnull),
    "a link to itself": lambda folder, table, model: (folder / "out").symlink_to(folder / "out"),
    "below a file": lambda folder, table, model: table / "scored.csv",
    **{
        f"the model's {name}": lambda folder, table, model, name=name: model / name
        for name in ("config.json", "model.safetensors", "history.json", "predictions.csv", "README.md", "new.csv")
    },
    "a link into the model's folder": lambda folder, table, model: (folder / "out").symlink_to(model / "new.csv"),
    "the model's folder": lambda folder, table, model: model,
    **{
        name: lambda folder, table, model, content=content: (folder / "out").write_bytes(content) and None
        for name, content in FOREIGN.items()
    },
}  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("option", [None, "--overwrite", "--resume"])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_table_of_predictions_is_never_replaced(target, option, table, checkpoint, tmp_path):
    """However it is reached, and whatever option is given: it is named, and all is as it was."""
    made = TARGETS[target](tmp_path, table, checkpoint)
    out = made if isinstance(made, Path) else tmp_path / "out"
    before, device = states(tmp_path), os.stat(os.devnull)
    options = [option] if option else []
    with pytest.raises(SystemExit, match=r"^error: ") as stopped:
        run(table, "--model", checkpoint, "--out", out, *options)
    assert os.path.realpath(out) in stopped.value.code or str(out) in stopped.value.code
    assert states(tmp_path) == before
    assert os.stat(os.devnull).st_rdev == device.st_rdev


@pytest.mark.usefixtures("quick")
def test_a_table_of_predictions_is_replaced_when_that_is_said_and_not_before(table, checkpoint, tmp_path, monkeypatch):
    arguments = table, "--model", checkpoint, "--out", tmp_path / "scored.csv"
    run(*arguments)
    first = (tmp_path / "scored.csv").read_bytes()
    monkeypatch.setattr(Constant, "predict", lambda self, lyrics, interval: np.full(len(lyrics), 0.25))
    with pytest.raises(SystemExit, match=r"error: .*scored\.csv: exists already\. Add --overwrite"):
        run(*arguments)
    with pytest.raises(SystemExit, match=r"error: .*scored\.csv: is complete already\. Add --overwrite"):
        run(*arguments, "--resume")
    assert (tmp_path / "scored.csv").read_bytes() == first
    run(*arguments, "--overwrite")
    assert (tmp_path / "scored.csv").read_bytes() == first.replace(b"0.50000", b"0.25000")
    assert sorted(os.listdir(tmp_path)) == ["model", "scored.csv", "songs.csv"]


@pytest.mark.usefixtures("quick")
def test_a_replacement_that_is_stopped_leaves_the_table_before(table, checkpoint, tmp_path, monkeypatch):
    arguments = table, "--model", checkpoint, "--out", tmp_path / "scored.csv", "--overwrite"
    run(*arguments)
    before = (tmp_path / "scored.csv").read_bytes()
    with monkeypatch.context() as patch:
        blocks = iter(range(4))
        patch.setattr(Constant, "predict", lambda self, lyrics, interval: np.full(len(lyrics), 0.1 * next(blocks)))
        with pytest.raises(SystemExit):
            run(*arguments)
    assert (tmp_path / "scored.csv").read_bytes() == before
    run(*arguments, "--resume")
    assert (tmp_path / "scored.csv").read_bytes() != before  # of the stopped run and of this one
    assert sorted(os.listdir(tmp_path)) == ["model", "scored.csv", "songs.csv"]


@pytest.mark.usefixtures("quick")
def test_new_places_are_made_and_links_are_followed(table, checkpoint, tmp_path):
    run(table, "--model", checkpoint, "--out", tmp_path / "new" / "folder" / "scored.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere.csv")
    run(table, "--model", checkpoint, "--out", tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    whole = (tmp_path / "new" / "folder" / "scored.csv").read_bytes()
    assert (tmp_path / "elsewhere.csv").read_bytes() == whole


@pytest.mark.usefixtures("quick")
def test_songs_are_not_written_among_songs(checkpoint, tmp_path):
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "one.txt").write_text("I sat by the river")
    before = states(tmp_path)
    with pytest.raises(SystemExit, match="lies among the songs"):
        run(tmp_path / "songs", "--model", checkpoint, "--out", tmp_path / "songs" / "two.txt")
    assert states(tmp_path) == before


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume"]], ids=str)
def test_files_with_names_like_those_of_a_run_are_never_removed(option, table, checkpoint, tmp_path):
    """Nor changed; where such a file is in the way, it is named."""
    for name in (".scored.csv.lock", "scored.csv.tmp", "scored.csv.part", "scored.csv~", ".scored.csv.12345678.tmp"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".scored.csv.abcdefgh.tmp").mkdir()
    (tmp_path / ".scored.csv.abcdefgh.tmp" / "lock").write_text("mine")
    before = states(tmp_path)
    run(table, "--model", checkpoint, "--out", tmp_path / "scored.csv", *option)
    (tmp_path / "scored.csv").unlink()
    assert states(tmp_path) == before
    for content in ("mine", "", "row,artist", "row,artist,title,prediction\n"):
        (tmp_path / "scored.csv.12345678.part").write_text(content)
        before = states(tmp_path)
        with pytest.raises(SystemExit, match=r"scored\.csv\.12345678\.part: left by"):
            run(table, "--model", checkpoint, "--out", tmp_path / "scored.csv", *option)
        assert states(tmp_path) == before


# ---------------------------------------------------------------- two at once


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("tables", ["of one table", "of two tables"])
@pytest.mark.parametrize("temporary", ["one folder", "two folders"])
def test_of_two_predictions_into_one_table_one_wins(tables, temporary, table, checkpoint, tmp_path, monkeypatch):
    """The other ends in one sentence; each waits for the end of the other, or for half a second, before it scores."""
    sources = [table, write_table(tmp_path / "other.csv", 40) if tables == "of two tables" else table]
    whole = []
    for number, source in enumerate(sources):
        run(source, "--model", checkpoint, "--out", tmp_path / f"whole {number}.csv")
        whole.append((tmp_path / f"whole {number}.csv").read_bytes())
    out, ended = tmp_path / "scored.csv", tmp_path / "ended"
    score_block = predict._score_block

    def wait_and_score(*arguments):
        started = time.perf_counter()
        while not ended.exists() and time.perf_counter() - started < 0.5:
            time.sleep(0.001)
        return score_block(*arguments)

    def score(number):
        def command():
            (tmp_path / f"temporary {number}").mkdir()
            tempfile.tempdir = str(tmp_path / f"temporary {number}") if temporary == "two folders" else None
            try:
                run(sources[number], "--model", checkpoint, "--out", out)
            finally:
                ended.touch()

        return command

    monkeypatch.setattr(predict, "_score_block", wait_and_score)
    with child(score(0)) as one, child(score(1)) as other:
        codes = [one.wait(), other.wait()]
        said = [one.message(), other.message()]
    assert sorted(codes) == [0, 1], said
    winner, loser = codes.index(0), codes.index(1)
    assert out.read_bytes() == whole[winner]
    assert "songs scored" in said[winner]
    assert said[loser].startswith(f"error: {out}: ")
    assert said[loser].count("\n") == 1
    assert not [*tmp_path.glob("*.part")]


def test_of_two_trainings_with_one_state_one_goes_on(tiny_encoder, tmp_path, monkeypatch, capsys):
    """Also where the other one stands still."""
    chunks = lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer)
    model = lu.build_model(tiny_encoder, replace(BASELINE, epochs=2))
    examples = [Examples(model.inputs_from_chunks(chunks), np.array([0.1, 0.9, 0.3]))] * 2
    train_step, state = training.train_step, tmp_path / "state.pt"

    def stand_still(*arguments):
        os.kill(os.getpid(), signal.SIGSTOP)
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", stand_still)
        with child(lambda: lu.fit(model, *examples, state)) as other:
            os.waitpid(other.pid, os.WUNTRACED)
            patch.setattr(training, "train_step", train_step)
            with pytest.raises(lu.LyricsError, match=r"state.*another process"):
                lu.fit(model, *examples, state)
            assert not state.exists()
    history = lu.fit(model, *examples, state)
    assert [line["epoch"] for line in history] == [1, 2]
    assert os.listdir(tmp_path) == ["state.pt"]


# ---------------------------------------------------------------- kills


def test_ten_kills_at_random_moments_are_resumed_to_the_same_bytes(untrained, tmp_path, monkeypatch):
    """Of a real model, each killed in a new run and once more in the run that goes on."""
    table = write_table(tmp_path / "songs.csv", 192)
    monkeypatch.setattr(predict, "BLOCK", 16)
    arguments = table, "--model", untrained, "--out"
    with child(lambda: run(*arguments, tmp_path / "whole.csv")) as first:
        assert first.wait() == 0, first.message()
    whole, out = (tmp_path / "whole.csv").read_bytes(), tmp_path / "scored.csv"
    draw, kept = random.Random(16), []

    def size() -> int:
        return max((part.stat().st_size for part in tmp_path.glob("scored.csv.*.part")), default=-1)

    for _ in range(5):
        for options in ([], ["--resume"]):
            moment = draw.randint(max(size(), 0), len(whole))
            with child(lambda options=options: run(*arguments, out, *options)) as killed:
                killed.wait_until(lambda moment=moment: out.exists() or size() >= moment)
            kept.append(size())
        with child(lambda: run(*arguments, out, "--resume")) as resumed:
            code = resumed.wait()
        if code:  # it was complete before it was killed
            assert "is complete already" in resumed.message()
        assert out.read_bytes() == whole
        assert not [*tmp_path.glob("*.part")]
        out.unlink()
    assert len({size for size in kept if 0 < size < len(whole)}) >= 4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", ["the last song", "a song less", "a song more", "a title", "the order"])
def test_a_table_that_changed_after_a_kill_is_noticed(change, checkpoint, tmp_path, monkeypatch):
    """Behind its first MiB; what was scored is kept, for the table as it was."""
    table = write_table(tmp_path / "songs.csv", 100, "la " * 5_000)
    arguments = table, "--model", checkpoint, "--out", tmp_path / "scored.csv"
    run(*arguments[:-1], tmp_path / "whole.csv")
    before = table.read_bytes()
    assert len(before) > 2**20
    with monkeypatch.context() as patch:
        blocks = iter([0.5, 0.5, 0.5, 0.5])
        patch.setattr(Constant, "predict", lambda self, lyrics, interval: np.full(len(lyrics), next(blocks)))
        with pytest.raises(SystemExit):
            run(*arguments)
    [part] = tmp_path.glob("scored.csv.*.part")
    kept = part.read_bytes()
    songs = lu.read_songs(table, ["lyrics"])[["artist", "title", "lyrics"]]
    changed = {
        "the last song": songs.assign(lyrics=[*songs["lyrics"][:-1], "I knew it"]),
        "a song less": songs[:-1],
        "a song more": pd.concat([songs, songs[-1:]]),
        "a title": songs.assign(title=[*songs["title"][:-1], "100"]),
        "the order": pd.concat([songs[:-2], songs[:-3:-1]]),
    }
    changed[change].to_csv(table, index=False)
    for options in ([], ["--resume"], ["--overwrite"]):
        with pytest.raises(SystemExit, match=r"\.part: left by a run that was stopped; it is of other songs"):
            run(*arguments, *options)
    assert part.read_bytes() == kept
    table.write_bytes(before)
    run(*arguments, "--resume")
    assert (tmp_path / "scored.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_model_that_changed_after_a_kill_is_noticed(table, checkpoint, tmp_path, monkeypatch):
    arguments = table, "--model", checkpoint, "--out", tmp_path / "scored.csv"
    with monkeypatch.context() as patch:
        blocks = iter([0.5, 0.5, 0.5])
        patch.setattr(Constant, "predict", lambda self, lyrics, interval: np.full(len(lyrics), next(blocks)))
        with pytest.raises(SystemExit):
            run(*arguments)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"seed": 7}))
    with pytest.raises(SystemExit, match="of other songs, model or interval"):
        run(*arguments, "--resume")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("killed", [False, True])
def test_a_table_that_changes_while_it_is_scored_is_noticed(killed, checkpoint, tmp_path, monkeypatch):
    """Where the run is stopped first, or the table changes back, nothing of the other one is taken."""
    table = write_table(tmp_path / "songs.csv", 100, "la " * 5_000)
    before, score_block, blocks = table.read_bytes(), predict._score_block, []
    arguments = table, "--model", checkpoint, "--out", tmp_path / "scored.csv"

    def score(model, songs, interval):
        blocks.append(songs)
        if len(blocks) == 2:
            table.write_bytes(before.replace(b"Ann", b"Ben"))
        if killed and len(blocks) == 12:
            raise MemoryError
        return score_block(model, songs, interval)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "_score_block", score)
        with pytest.raises(SystemExit, match="error: " if killed else "changed while"):
            run(*arguments)
    assert not (tmp_path / "scored.csv").exists()
    table.write_bytes(before)
    run(*arguments, *(["--resume"] if [*tmp_path.glob("*.part")] else []))
    assert b"Ben" not in (tmp_path / "scored.csv").read_bytes()


def test_the_part_is_named_where_the_table_is_a_link(table, checkpoint, tmp_path, quick, monkeypatch, capsys):
    def interrupted(self, lyrics, interval):
        if interrupted_after.pop():
            raise KeyboardInterrupt
        return np.full(len(lyrics), 0.5)

    interrupted_after = [True, False, False]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "elsewhere" / "scored.csv")
    monkeypatch.setattr(Constant, "predict", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(table, "--model", checkpoint, "--out", tmp_path / "out.csv")
    [part] = (tmp_path / "elsewhere").glob("*.part")
    assert stopped.value.code == 130
    assert f"interrupted: {part} is kept" in capsys.readouterr().err


# ---------------------------------------------------------------- saved songs and models


TABLE = pd.DataFrame({"artist": ["Ann"], "title": ["River"], "lyrics": ["We walked along"], "valence": [0.5]})


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"dear"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"lyric_utils.songs: how I made them"),
        lambda path: path.write_bytes(b"artist,title,lyrics,valence\n"),
        lambda path: pd.Series([1, 2]).to_pickle(path),
        lambda path: path.write_bytes(b"\x80\x04\x95" + b"lyric_utils.songs" * 20),
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to(os.devnull),
        lambda path: path.symlink_to(path),
    ],
)
def test_songs_replace_no_file_of_another_kind(make, tmp_path):
    make(path := tmp_path / "songs.pkl")
    before = states(tmp_path)
    with pytest.raises(lu.LyricsError, match=r"songs\.pkl: "):
        lu.save_songs(TABLE, path)
    assert states(tmp_path) == before


def test_songs_replace_songs(tmp_path):
    lu.save_songs(TABLE, tmp_path / "songs.pkl")
    (tmp_path / "songs.pkl").chmod(0o640)
    lu.save_songs(TABLE.assign(artist="Ben"), tmp_path / "songs.pkl")
    assert lu.load_songs(tmp_path / "songs.pkl")["artist"].tolist() == ["Ben"]
    assert stat.S_IMODE((tmp_path / "songs.pkl").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: (folder / "letter.txt").write_text("dear"),
        lambda folder: (folder / "more").mkdir(),
        lambda folder: (folder / ".git").mkdir(),
        lambda folder: (folder / "README.md").write_text("how I made it"),
        lambda folder: (folder / "mine.safetensors").write_bytes(b"weights"),
        lambda folder: (folder / "config.json").write_text('{"mine": 1}'),
        lambda folder: (
            (folder / "config.json").write_text('{"mine": 1}'),
            (folder / "a.safetensors").write_bytes(b"x"),
        ),
        lambda folder: (folder / "model.safetensors").mkdir(),
    ],
)
def test_a_model_replaces_no_folder_of_another_kind(make, tiny_encoder, tmp_path):
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder")
    before = states(tmp_path)
    with pytest.raises(lu.LyricsError, match="folder"):
        save_checkpoint(lu.build_model(tiny_encoder, BASELINE), tmp_path / "folder")
    assert states(tmp_path) == before


@pytest.mark.parametrize("name", ["letter.txt", "notes", "mine.safetensors"])
def test_a_model_replaces_no_checkpoint_with_more_in_it(name, tiny_encoder, checkpoint, tmp_path):
    (checkpoint / name).write_text("dear")
    before = states(tmp_path)
    with pytest.raises(lu.LyricsError, match=name):
        save_checkpoint(lu.build_model(tiny_encoder, BASELINE), checkpoint)
    assert states(tmp_path) == before


def save_and_die(model, folder: Path, name: str):
    """Save a model, and be killed right after one of the calls that move folders."""

    def move(path, target):
        moved(path, target)
        os._exit(9)

    moved = getattr(Path, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, name, move)
        save_checkpoint(model, folder)


@pytest.mark.parametrize("then", ["fails", "is saved", "is killed again"])
@pytest.mark.parametrize("after", ["rename", "replace"])
def test_a_checkpoint_comes_back_after_a_kill(after, then, tiny_encoder, tmp_path):
    """Killed between the two renames, or right after the second: one of the two checkpoints is there again."""
    folder, old, new = tmp_path / "model", *(lu.build_model(tiny_encoder, BASELINE, seed) for seed in (1, 2))
    expected = save_checkpoint(old, folder), new.predict(SONGS)
    with child(lambda: save_and_die(new, folder, after)) as killed:
        assert killed.wait() == 9, killed.message()
    assert folder.exists() == (after == "replace")
    if then == "is killed again":
        with child(lambda: save_and_die(new, folder, "rename")) as killed:
            assert killed.wait() == 9
    if then == "is saved":
        save_checkpoint(new, folder)
    else:
        with full_disk(), pytest.raises(lu.LyricsError, match="cannot be written"):
            save_checkpoint(new, folder)
    found = lu.load_model(folder, tiny_encoder).predict(SONGS)
    np.testing.assert_array_equal(found, expected[then == "is saved" or after == "replace"])
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("length", [3, 60, 200])
def test_checkpoints_with_long_names_do_not_mix(length, tiny_encoder, tmp_path):
    """The leftovers of one are not taken for those of another whose name begins in the same way."""
    one, other = (tmp_path / ("x" * length + end) for end in ("1", "2"))
    old, new = (lu.build_model(tiny_encoder, BASELINE, seed) for seed in (1, 2))
    expected = save_checkpoint(old, one)
    with child(lambda: save_and_die(new, one, "rename")) as killed:
        assert killed.wait() == 9
    save_checkpoint(new, other)
    with full_disk(), pytest.raises(lu.LyricsError):
        save_checkpoint(new, one)
    np.testing.assert_array_equal(lu.load_model(one, tiny_encoder).predict(SONGS), expected)
    assert sorted(os.listdir(tmp_path)) == [one.name, other.name]


@pytest.mark.parametrize("temporary", ["one folder", "two folders"])
def test_a_writer_leaves_alone_what_another_one_is_writing(temporary, tiny_encoder, tmp_path, monkeypatch):
    """The second is told, and the first one is not disturbed, wherever they keep their temporary files."""
    models = [lu.build_model(tiny_encoder, BASELINE, seed) for seed in (1, 2)]
    folder = tmp_path / "model"
    save_checkpoint(models[0], folder)

    def stand_still(*arguments):
        os.kill(os.getpid(), signal.SIGSTOP)
        return "a card"

    def save():
        tempfile.tempdir = str(tmp_path_of_child) if temporary == "two folders" else tempfile.tempdir
        save_checkpoint(models[1], folder)

    tmp_path_of_child = Path(tempfile.mkdtemp())
    with monkeypatch.context() as patch:
        patch.setattr("lyric_utils.checkpoints.model_card", stand_still)
        with child(save) as first:
            os.waitpid(first.pid, os.WUNTRACED)
            patch.undo()
            with pytest.raises(lu.LyricsError, match=r"model: another process"):
                save_checkpoint(models[0], folder)
            os.kill(first.pid, signal.SIGCONT)
            assert first.wait() == 0, first.message()
    np.testing.assert_array_equal(lu.load_model(folder, tiny_encoder).predict(SONGS), models[1].predict(SONGS))
    assert os.listdir(tmp_path) == ["model"]
    shutil.rmtree(tmp_path_of_child)


# ---------------------------------------------------------------- the cache


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_a_disk_that_fills_while_features_are_written(tiny_encoder, chunks, cache):
    """Ends in one sentence, never in a signal, and leaves nothing."""
    with child(lambda: extract_on_a_full_disk(tiny_encoder, chunks)) as writer:
        assert writer.wait() == 1, writer.message()
        said = writer.message()
    assert "no place for a cache" in said
    assert "LYRICS_CACHE" in said
    assert entries(cache) == []
    assert len(lu.extract_features(tiny_encoder, chunks).vectors) == 9


def extract_on_a_full_disk(encoder, chunks):
    try:
        with full_disk():
            lu.extract_features(encoder, chunks)
    except lu.LyricsError as error:
        raise SystemExit(str(error)) from error


def test_a_stopped_process_that_fills_an_entry_is_not_waited_for(tiny_encoder, chunks, cache, monkeypatch, capsys):
    """That it makes no progress is told, and the features are those of any other run."""
    expected = lu.extract_features(tiny_encoder, chunks)
    items = np.arange(len(chunks.lengths))
    states_before = expected.hidden_states.read(items)[0]
    shutil.rmtree(cache)

    def stand_still(*arguments):
        os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(features, "PATIENCE", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(features, "encode_chunks", stand_still)
        with child(lambda: lu.extract_features(tiny_encoder, chunks)) as stopped:
            os.waitpid(stopped.pid, os.WUNTRACED)
            patch.undo()
            monkeypatch.setenv("LYRICS_CACHE", str(cache))
            monkeypatch.setattr(features, "PATIENCE", 0.1)
            started = time.perf_counter()
            found = lu.extract_features(tiny_encoder, chunks)
            assert time.perf_counter() - started < 10
    assert "makes no progress" in capsys.readouterr().out
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    torch.testing.assert_close(found.hidden_states.read(items)[0].float(), states_before.float(), atol=2e-3, rtol=0)
    again = lu.extract_features(tiny_encoder, chunks)  # the other one is dead now
    np.testing.assert_array_equal(again.vectors, expected.vectors)
    assert len(entries(cache)) == 1


def test_a_lock_that_is_held_by_a_stopped_process_is_told(tiny_encoder, chunks, cache, monkeypatch, capsys):
    """Even where that process is none of this package."""
    lu.extract_features(tiny_encoder, chunks)
    [entry] = entries(cache)
    shutil.rmtree(entry)

    def hold():
        with FileLock(entry.with_name(f".{entry.name}.lock")):
            os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(features, "PATIENCE", 0.1)
    with child(hold) as holder:
        os.waitpid(holder.pid, os.WUNTRACED)
        lu.extract_features(tiny_encoder, chunks)
    assert "makes no progress" in capsys.readouterr().out
    assert entries(cache) == []


@pytest.mark.parametrize(
    "damage", ["a claim of 4 TB", "a pickle", "a pipe", "a device", "a folder", "a link to itself"]
)
@pytest.mark.parametrize("name", ["states.npy", "vectors.npy"])
def test_a_damaged_entry_is_made_anew(name, damage, tiny_encoder, chunks, cache):
    expected = lu.extract_features(tiny_encoder, chunks).vectors
    [entry] = entries(cache)
    (entry / name).unlink()
    if damage == "a claim of 4 TB":
        with open(entry / name, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
            np.lib.format.write_array_header_1_0(file, header)
    elif damage == "a pickle":
        np.save(entry / name, np.array([{}], dtype=object), allow_pickle=True)
    else:
        make = {
            "a pipe": os.mkfifo,
            "a device": lambda path: path.symlink_to("/dev/zero"),
            "a folder": Path.mkdir,
            "a link to itself": lambda path: path.symlink_to(path),
        }
        make[damage](entry / name)
    np.testing.assert_array_equal(lu.extract_features(tiny_encoder, chunks).vectors, expected)
    assert entries(cache) == [entry]
    assert {"states.npy", "vectors.npy"} <= {*os.listdir(entry)}
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in entry.iterdir())


@pytest.mark.parametrize("home", ["nobody's", "not writable"])
def test_without_a_home_folder_the_cache_says_what_to_set(home, tiny_encoder, chunks, tmp_path, monkeypatch):
    """As in a container, whose user may have none."""

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LYRICS_CACHE")
    if home == "nobody's":
        monkeypatch.setattr(Path, "expanduser", no_home)
    else:
        (tmp_path / "home").write_text("a file")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(lu.LyricsError, match="LYRICS_CACHE"):
        lu.extract_features(tiny_encoder, chunks)
    with pytest.raises(lu.LyricsError, match=r"LYRICS_(CACHE|DATA)"):
        lu.load_source(lu.load_profile("subset"))


# ---------------------------------------------------------------- standard output

PRINTS = """
from argparse import Namespace
from lyric_utils._command import run_command
run_command(lambda arguments: print({text}), Namespace(), str)
"""
STREAMS = {  # what the shell does with standard output -> exit codes that tell the truth
    ">&-": {0, 1},
    ">/dev/full": {1},
    "| head -c 0": {0, 1},
    "2>&-": {0},
    ">&- 2>&-": {0, 1},
    ">/dev/full 2>/dev/full": {1},
    "<&-": {0},
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("encoding", "text"), [("utf-8", "'long' * 100_000"), ("ascii", "'\\U0001f3b5 \\udcff'")], ids=["long", "strange"]
)
def test_a_command_that_cannot_print_ends_without_a_traceback(encoding, stream, text, tmp_path):
    command = f'"{sys.executable}" -c "$SCRIPT" {stream}'
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": encoding,
        "SCRIPT": PRINTS.format(text=text),
    }
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert done.returncode in STREAMS[stream], done.stderr


@pytest.mark.usefixtures("quick")
def test_predictions_are_whole_where_nothing_can_be_printed(table, checkpoint, tmp_path):
    """With a standard output that is full."""

    def command():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        run(table, "--model", checkpoint, "--out", tmp_path / "scored.csv")

    with child(command) as done:
        assert done.wait() == 1
        assert done.message() == "error: standard output: no space left on device.\n"
    assert len((tmp_path / "scored.csv").read_text().splitlines()) == 51
    assert sorted(os.listdir(tmp_path)) == ["model", "scored.csv", "songs.csv"]


def test_standard_input_that_is_closed_is_told(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit, match=r"^error: standard input") as stopped:
        run("-", "--model", checkpoint, "--out", tmp_path / "scored.csv")
    assert "NoneType" not in stopped.value.code
