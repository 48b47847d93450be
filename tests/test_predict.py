"""Bulk prediction: every row once and in order, in bounded memory, whatever the rows are and whoever kills it."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import child, two_processes

import lyric_utils as lu
from lyric_utils import predict
from lyric_utils.checkpoints import shipped_folder

WORDS = ["river", "morning", "kitchen", "window", "garden", "letter", "summer", "station", "winter", "harbour"]
COUNT = 50


@pytest.fixture
def table(tmp_path):
    """A table of 50 songs in the Kaggle schema, without labels; every seventh has no words."""
    path = tmp_path / "songs.csv"
    lyrics = [f"I sat by the {WORDS[n % 10]}\nand the {WORDS[n // 10]} was all I knew" for n in range(COUNT)]
    lyrics = ["12 ... !" if n % 7 == 0 else text for n, text in enumerate(lyrics)]
    columns = {"artist": "Ann", "seq": lyrics, "song": [f'"{n}",\nlive' for n in range(COUNT)]}
    pd.DataFrame(columns, index=range(100, 100 + COUNT)).to_csv(path)
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(predict, "BLOCK", 8)


def scored(table, untrained, out, **options):
    predict.score_table(table, untrained, out, **options)
    return pd.read_csv(out, keep_default_na=False, na_values={"prediction": [""]}, dtype={"row": str})


def test_streaming_equals_whole(table, untrained, tmp_path, capsys):
    result = scored(table, untrained, tmp_path / "scored.csv")
    assert result.columns.tolist() == ["row", "artist", "title", "prediction"]
    assert result["row"].tolist() == [str(row) for row in range(100, 100 + COUNT)]
    assert result["title"].tolist() == [f'"{n}", live' for n in range(COUNT)]
    assert "42 songs scored, 8 rows without words left empty" in capsys.readouterr().out
    has_words = result["prediction"].notna()
    assert (~has_words).tolist() == [n % 7 == 0 for n in range(COUNT)]
    lyrics = lu.read_songs(table, ["lyrics"])["lyrics"][has_words]
    expected = lu.load_model(untrained).predict(lyrics.tolist())
    np.testing.assert_allclose(result["prediction"][has_words], expected, atol=2e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored.csv", "songs.csv"]


@pytest.mark.parametrize("kind", [".xlsx", ".pkl", ".jsonl"])
def test_other_kinds_of_table_give_the_same(kind, table, untrained, tmp_path):
    read = lu.read_songs(table, ["lyrics"])
    other = tmp_path / f"songs{kind}"
    if kind == ".pkl":
        lu.save_songs(read.assign(valence=0.5), other)
    elif kind == ".xlsx":
        read.to_excel(other, index=False)
    else:
        read.to_json(other, orient="records", lines=True)
    predict.score_table(table, untrained, tmp_path / "a.csv")
    predict.score_table(other, untrained, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_lyrics_alone_and_a_folder_of_texts(untrained, tmp_path):
    (tmp_path / "songs").mkdir()
    lyrics = [f"I sat by the {word}" for word in WORDS]
    for number, text in enumerate(lyrics):
        (tmp_path / "songs" / f"song {number}.txt").write_text(text)
    pd.DataFrame({"lyrics": lyrics}).to_csv(tmp_path / "songs.csv", index=False)
    alone = scored(tmp_path / "songs.csv", untrained, tmp_path / "a.csv")
    texts = scored(tmp_path / "songs", untrained, tmp_path / "b.csv")
    assert texts["title"].tolist() == [f"song {number}" for number in range(10)]
    assert alone["prediction"].tolist() == texts["prediction"].tolist()
    assert set(alone["artist"]) == set(alone["title"]) == {""}


class Constant:
    """A model that needs no time; it notes how many songs it is given at once."""

    def __init__(self):
        self.most = 0

    def predict(self, lyrics, interval):
        self.most = max(self.most, len(lyrics))
        return np.full(len(lyrics), 0.5)


def use(model, monkeypatch):
    monkeypatch.setattr("lyric_utils.checkpoints.load_model", lambda folder: model)


def stopped(table, untrained, out, **options) -> Path:
    """What a run leaves that is stopped in its second block."""

    def score_one(*arguments):
        if next(blocks) == 2:
            raise KeyboardInterrupt
        return score_block(*arguments)

    blocks, score_block = itertools.count(1), predict._score_block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "_score_block", score_one)
        with pytest.raises(KeyboardInterrupt):
            predict.score_table(table, untrained, out, **options)
    [part] = out.parent.glob(f"{out.name}.????????.part")
    assert len(part.read_bytes().splitlines()) == 1 + 8
    return part


def test_memory_is_that_of_a_block(untrained, tmp_path, monkeypatch):
    table, rows = tmp_path / "long.csv", 800
    with open(table, "w") as file:
        file.write("artist,title,lyrics\n")
        file.writelines(f"Ann,{n},{'words ' * 1_000}\n" for n in range(rows))
    size = table.stat().st_size
    model, held, most_held = Constant(), itertools.count(), 0
    use(model, monkeypatch)
    score_block = predict._score_block

    def noting(regressor, block, interval):
        nonlocal most_held
        most_held = max(most_held, len(block))
        next(held)
        return score_block(regressor, block, interval)

    monkeypatch.setattr(predict, "_score_block", noting)
    monkeypatch.setattr("lyric_utils.songs.count_not_english", len)
    tracemalloc.start()
    predict.score_table(table, untrained, tmp_path / "scored.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_held == model.most == 8
    assert next(held) == rows / 8
    assert peak < size / 5
    assert len((tmp_path / "scored.csv").read_bytes().splitlines()) == rows + 1


@pytest.mark.parametrize("torn", [0, 5, 28, 29, 30, 400, 560, 10**6])
def test_resume_after_a_kill_gives_the_same_bytes(torn, table, untrained, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.csv", tmp_path / "scored.csv"
    use(Constant(), monkeypatch)
    predict.score_table(table, untrained, whole)
    part = stopped(table, untrained, out)
    part.write_bytes(whole.read_bytes()[:torn])
    predict.score_table(table, untrained, out, resume=True)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored.csv", "songs.csv", "whole.csv"]


def test_resume_scores_only_what_is_missing(table, untrained, tmp_path, monkeypatch, capsys):
    out, model = tmp_path / "scored.csv", Constant()
    use(model, monkeypatch)
    given = []
    model.predict = lambda lyrics, interval: given.extend(lyrics) or np.full(len(lyrics), 0.5)
    predict.score_table(table, untrained, out)
    assert len(given) == 42
    lines = out.read_bytes().splitlines(keepends=True)
    out.unlink()
    part = stopped(table, untrained, out)
    part.write_bytes(b"".join(lines[: 1 + 43]))
    given.clear()
    predict.score_table(table, untrained, out, resume=True)
    assert len(given) == sum(n % 7 != 0 for n in range(40, COUNT))
    assert capsys.readouterr().out.count("42 songs scored, 8 rows") == 2


def test_what_a_stopped_run_left_is_never_deleted(table, untrained, tmp_path, monkeypatch):
    use(Constant(), monkeypatch)
    out = tmp_path / "scored.csv"
    left = stopped(table, untrained, out)
    left.write_text("precious")
    with pytest.raises(lu.LyricsError, match=r"\.part: left by .* --resume to go on with it, or delete it"):
        predict.score_table(table, untrained, out)
    assert left.read_text() == "precious"
    table.write_bytes(table.read_bytes().replace(b"harbour", b"harbor"))  # near the end
    for resume in (True, False):
        with pytest.raises(lu.LyricsError, match=r"\.part: left by .* of other songs, model or interval: delete it"):
            predict.score_table(table, untrained, out, resume=resume)
    left.rename(tmp_path / "other.csv.0123abcd.part")
    predict.score_table(table, untrained, out)
    assert (tmp_path / "other.csv.0123abcd.part").exists()


@pytest.mark.parametrize(("name", "status"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_stopped_run_goes_on_with_resume(name, status, table, untrained, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.csv", tmp_path / "scored.csv"
    blocks, score_block = itertools.count(1), predict._score_block

    def signalled(*arguments):
        if next(blocks) == 4:
            os.kill(os.getpid(), signal.Signals[name])
        return score_block(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "_score_block", signalled)
        patch.setattr(sys, "argv", ["predict", *map(str, (table, "--model", untrained, "--out", out))])
        with child(predict.main) as stopped:
            assert stopped.wait() == status, stopped.message()
            said = stopped.message()
    [part] = tmp_path.glob("scored.csv.*.part")
    assert len(part.read_bytes().splitlines()) == 1 + 3 * 8
    assert not out.exists()
    if name == "SIGINT":
        assert f"interrupted: {part} is kept, and the same command with --resume" in said
        assert "Traceback" not in said
    predict.score_table(table, untrained, out, resume=True)
    predict.score_table(table, untrained, whole)
    assert out.read_bytes() == whole.read_bytes()


def test_interrupted_standard_input_leaves_nothing(table, untrained, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_score_block", interrupted)
    command = ["predict", "-", "--model", str(untrained), "--out", str(tmp_path / "scored.csv")]
    monkeypatch.setattr(sys, "argv", command)
    with open(table) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(SystemExit) as stopped:
            predict.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted: nothing is kept.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["songs.csv"]


def test_standard_input_to_the_shipped_model_from_any_folder(table, tmp_path):
    command = [sys.executable, "-m", "lyric_utils.predict", "-", "--out", "scored.csv"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    text = table.read_text()
    done = subprocess.run(command, capture_output=True, text=True, input=text, cwd=tmp_path, env=environment)
    assert "scored.csv: 42 songs scored" in done.stdout, done.stderr
    given = scored(table, shipped_folder("blend"), tmp_path / "given.csv")
    piped = pd.read_csv(tmp_path / "scored.csv")
    np.testing.assert_allclose(piped["prediction"], given["prediction"], atol=2e-5)
    with pytest.raises(lu.LyricsError, match="standard input is read once"):
        predict.score_table(Path("-"), None, tmp_path / "new.csv", resume=True)


def test_help_is_quick():
    script = "import resource, sys; sys.argv[1:] = ['--help']\nfrom lyric_utils import predict\ntry:\n predict.main()\n"
    script += "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, has_torch = done.stdout.splitlines()[-1].split()
    assert float(seconds) < 1
    assert has_torch == "False"


def test_two_processes_score_every_song_once_and_in_order(table, untrained, tmp_path, monkeypatch):
    out, whole, notes = tmp_path / "scored.csv", tmp_path / "whole.csv", tmp_path / "notes.txt"
    predict.score_table(table, untrained, whole)
    score_block = predict._score_block

    def noting(model, songs, interval):
        with open(notes, "a") as file:
            file.writelines(f"{row}\n" for row in songs["row"])
        return score_block(model, songs, interval)

    monkeypatch.setattr(predict, "_score_block", noting)
    with two_processes(lambda: predict.score_table(table, untrained, out)) as both:
        assert [process.wait() for process in both] == [0, 0], [process.message() for process in both]
        said = [process.message() for process in both]
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(notes.read_text().split()) == [str(row) for row in range(100, 100 + COUNT)]
    assert sorted(text.count("42 songs scored") for text in said) == [0, 1]


WEIRD = [
    b"0,Ann,A,a song of the river",
    b"",
    b"1,Ann",
    b"five,\x00Ann,E,a NUL\x00 in the words",
    b"6,Ann,F,\xf0\x9f\x98\x80 \xf0\x9f\x8e\xb5 !!",
    b"7,Ann,G,\xef\xbf\xbd \xe2\x80\x8b",
    b"8,,,",
    b'9,"Ann\r\nand ""Ben""",H,"two\nlines, and a comma"',
    b"10,Ann,I," + b"never " * 2_000,
    b"11,Ann,J,\xe6\xad\x8c\xe3\x81\x86 \xd8\xba\xd9\x86\xd8\xa7\xd8\xa1",
]


def test_weird_rows_never_stop_it(untrained, tmp_path):
    table = tmp_path / "weird.csv"
    table.write_bytes(b"\xef\xbb\xbf,artist,song,seq\r\n" + b"\r\n".join(WEIRD) + b"\r\n")
    result = scored(table, untrained, tmp_path / "scored.csv")
    assert result["row"].tolist() == ["0", "1", "2", "6", "7", "8", "9", "10", "11"]
    assert result["row"][result["prediction"].notna()].tolist() == ["0", "2", "9", "10", "11"]
    assert result["prediction"].dropna().between(0, 1).all()
    assert result["artist"][6] == 'Ann and "Ben"'


def test_songs_in_other_languages_are_scored_and_counted(untrained, tmp_path, capsys):
    german = "Wir gehen heute Abend durch die Stadt und niemand weiß, wohin der Weg uns führen wird."
    pd.DataFrame({"lyrics": [german, "We walked along the river, and the morning was warm and wide", "12"]}).to_csv(
        tmp_path / "a.csv"
    )
    result = scored(tmp_path / "a.csv", untrained, tmp_path / "scored.csv")
    assert result["prediction"].notna().tolist() == [True, True, False]
    assert "warning: 1 of the songs scored now are not in English" in capsys.readouterr().err


def test_names_are_text_in_a_spreadsheet_and_otherwise_as_they_were(untrained, tmp_path):
    table = tmp_path / "songs.csv"
    names = ['a "quoted" name', "comma, semicolon;", "tab\there", "\u2028line\x0bends\x1c", "名前", "50-50", "'tis"]
    formulas = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1+1"]
    pd.DataFrame({"title": names + formulas, "artist": names + formulas, "lyrics": "la la love"}).to_csv(
        table, index=False
    )
    predict.score_table(table, untrained, tmp_path / "scored.csv")
    with open(tmp_path / "scored.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [" ".join(name.split()) for name in names] + [f"'{name.strip()}" for name in formulas]
    assert [row["title"] for row in rows] == [row["artist"] for row in rows] == expected
    assert [row["row"] for row in rows] == [str(n) for n in range(len(expected))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("songs.csv", None),
        ("songs.csv", b""),
        ("songs.csv", b"\n\n\n"),
        ("songs.csv", b"artist,title,lyrics\n"),
        ("songs.csv", b"artist,title,valence\nAnn,A,0.5\n"),
        ("songs.csv", b"artist,title,lyrics,seq\nAnn,A,la,la\n"),
        ("songs.csv", b"artist,title,lyrics\n" + b"Ann,A,la\n" * 100 + b"Ann,A,la,la\n"),
        ("songs.csv", b'artist,title,lyrics\nAnn,A,"' + b"la la\n" * 10_000),
        ("songs.xlsx", b"no workbook"),
        ("songs.pkl", b"no pickle"),
        ("songs.txt", b"artist,title,lyrics\nAnn,A,la\n"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(name, content, untrained, tmp_path):
    table = tmp_path / name
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(lu.LyricsError, match=name):
        predict.score_table(table, untrained, tmp_path / "new" / "scored.csv")
    assert not (tmp_path / "new").exists()


def test_places_that_cannot_be_written(table, untrained, tmp_path):
    (tmp_path / "link.csv").symlink_to(table)
    before = table.read_bytes()
    for out, message in {
        tmp_path: "is a directory",
        Path(os.devnull): "not a regular file",
        table: "exists and is something else",
        tmp_path / "link.csv": "exists and is something else",
        table / "scored.csv": "cannot be written",
    }.items():
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(lu.LyricsError, match=message):
                predict.score_table(table, untrained, out, **options)
    assert table.read_bytes() == before


@pytest.fixture
def calibrated(untrained, tmp_path_factory):
    """The same checkpoint with residuals of nine songs, for intervals up to 0.9."""
    folder = shutil.copytree(untrained, tmp_path_factory.mktemp("calibrated") / "baseline")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"residuals": [0.01 * n for n in range(1, 10)]}))
    return folder


def test_an_interval_adds_two_columns(table, calibrated, tmp_path, capsys):
    plain = scored(table, calibrated, tmp_path / "plain.csv")
    result = scored(table, calibrated, tmp_path / "scored.csv", interval=0.9)
    assert "42 songs scored, 8 rows without words left empty" in capsys.readouterr().out
    pd.testing.assert_frame_equal(result[plain.columns], plain)
    assert result.columns.tolist() == [*plain.columns, "low", "high"]
    has_words, ends = plain["prediction"].notna(), result[["low", "high"]].apply(pd.to_numeric)
    assert ends[~has_words].isna().all(axis=None)
    expected = np.stack([plain["prediction"] - 0.09, plain["prediction"] + 0.09], axis=1)[has_words].clip(0, 1)
    np.testing.assert_allclose(ends[has_words], expected, atol=2e-5)


@pytest.mark.parametrize(("begun", "wanted"), [(None, 0.9), (0.9, None), (0.9, 0.8)])
def test_a_run_is_resumed_with_its_own_interval_alone(begun, wanted, table, calibrated, tmp_path):
    out, whole = tmp_path / "scored.csv", tmp_path / "whole.csv"
    part = stopped(table, calibrated, out, interval=begun)
    before = part.read_bytes()
    with pytest.raises(lu.LyricsError, match=r"\.part: left by .* of other songs, model or interval: delete it"):
        predict.score_table(table, calibrated, out, resume=True, interval=wanted)
    assert part.read_bytes() == before
    predict.score_table(table, calibrated, out, resume=True, interval=begun)
    predict.score_table(table, calibrated, whole, interval=begun)
    assert out.read_bytes() == whole.read_bytes()


def test_tables_with_and_without_an_interval_replace_one_another(table, calibrated, tmp_path):
    out, headers = tmp_path / "scored.csv", []
    for interval in (None, 0.9, 0.5, None):
        predict.score_table(table, calibrated, out, overwrite=True, interval=interval)
        headers.append(out.read_bytes().splitlines()[0])
    plain, wide = b"row,artist,title,prediction", b"row,artist,title,prediction,low,high"
    assert headers == [plain, wide, wide, plain]
    for header in (plain + b",mine", wide + b",mine", plain + b",low"):
        out.write_bytes(header + b"\n")
        with pytest.raises(lu.LyricsError, match="exists and is something else"):
            predict.score_table(table, calibrated, out, overwrite=True)


@pytest.mark.parametrize(
    ("interval", "message"),
    [("90", r"interval=90\.0: "), ("nan", "interval=nan: "), ("0.9", "no residuals"), ("most", "invalid float value")],
)
def test_an_interval_that_cannot_be_given_is_refused_before_anything_is_written(
    interval, message, table, untrained, tmp_path, monkeypatch, capsys
):
    command = ["predict", table, "--model", untrained, "--out", tmp_path / "new" / "a.csv", "--interval", interval]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    with pytest.raises(SystemExit) as stopped:
        predict.main()
    assert re.search(message, f"{stopped.value.code}{capsys.readouterr().err}")
    assert not (tmp_path / "new").exists()


def test_command(table, untrained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "scored.csv"
    monkeypatch.setattr(sys, "argv", ["predict", str(table), "--model", str(untrained), "--out", str(out), "--resume"])
    predict.main()
    assert "42 songs scored" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["predict", str(tmp_path / "none.csv"), "--model", str(untrained)])
    with pytest.raises(SystemExit, match=r"error: .*none\.csv: no such file"):
        predict.main()
