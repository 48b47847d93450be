"""Bulk prediction: every row once and in order, in bounded memory, whatever the rows are and whoever kills it."""

import csv
import itertools
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lyric_utils as lu
from lyric_utils import predict, songs

WORDS = ["river", "morning", "kitchen", "window", "garden", "letter", "summer", "station", "winter", "harbour"]
COUNT = 50


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, encoder):
    """An untrained baseline of MiniLM, saved."""
    model = lu.build_model(encoder, lu.load_profile("sample").recipes["baseline"])
    folder = tmp_path_factory.mktemp("model") / "baseline"
    nothing = {"history": [], "metrics": {}, "predictions": pd.DataFrame(columns=[*lu.models.PREDICTION_COLUMNS])}
    lu.save_model(model, folder, profile="sample", seed=42, **nothing)
    return folder


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


def scored(table, checkpoint, out, **options):
    predict.score_table(table, checkpoint, out, **options)
    return pd.read_csv(out, keep_default_na=False, na_values={"prediction": [""]}, dtype={"row": str})


def test_streaming_equals_whole(table, checkpoint, tmp_path, capsys):
    result = scored(table, checkpoint, tmp_path / "scored.csv")
    assert result.columns.tolist() == ["row", "artist", "title", "prediction"]
    assert result["row"].tolist() == [str(row) for row in range(100, 100 + COUNT)]
    assert result["title"].tolist() == [f'"{n}", live' for n in range(COUNT)]
    assert "42 songs scored, 8 rows without words left empty" in capsys.readouterr().out
    has_words = result["prediction"].notna()
    assert (~has_words).tolist() == [n % 7 == 0 for n in range(COUNT)]
    lyrics = lu.read_songs(table, ["lyrics"])["lyrics"][has_words]
    expected = lu.load_model(checkpoint).predict(lyrics.tolist())
    np.testing.assert_allclose(result["prediction"][has_words], expected, atol=2e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored.csv", "songs.csv"]


@pytest.mark.parametrize("kind", [".xlsx", ".pkl"])
def test_other_kinds_of_table_give_the_same(kind, table, checkpoint, tmp_path):
    read = lu.read_songs(table, ["lyrics"])
    other = tmp_path / f"songs{kind}"
    if kind == ".pkl":
        lu.save_songs(read.assign(valence=0.5), other)
    else:
        read.to_excel(other, index=False)
    predict.score_table(table, checkpoint, tmp_path / "a.csv")
    predict.score_table(other, checkpoint, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


class Constant:
    """A model that needs no time; it notes how many songs it is given at once."""

    def __init__(self):
        self.most = 0

    def predict(self, lyrics):
        self.most = max(self.most, len(lyrics))
        return np.full(len(lyrics), 0.5)


def test_memory_is_that_of_a_block(checkpoint, tmp_path, monkeypatch):
    table, rows = tmp_path / "long.csv", 3_000
    with open(table, "w") as file:
        file.write("artist,title,lyrics\n")
        file.writelines(f"Ann,{n},{'words ' * 1_000}\n" for n in range(rows))
    size = table.stat().st_size
    model, held, most_held = Constant(), itertools.count(), 0
    monkeypatch.setattr(lu, "load_model", lambda folder: model)
    score_block = predict._score_block

    def noting(regressor, block):
        nonlocal most_held
        most_held = max(most_held, len(block))
        next(held)
        return score_block(regressor, block)

    monkeypatch.setattr(predict, "_score_block", noting)
    tracemalloc.start()
    predict.score_table(table, checkpoint, tmp_path / "scored.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_held == model.most == 8
    assert next(held) == rows / 8 + 1
    assert peak < size / 5
    assert len((tmp_path / "scored.csv").read_bytes().splitlines()) == rows + 1


@pytest.mark.parametrize("torn", [0, 5, 28, 29, 30, 400, 560, 10**6])
def test_resume_after_a_kill_gives_the_same_bytes(torn, table, checkpoint, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.csv", tmp_path / "scored.csv"
    monkeypatch.setattr(lu, "load_model", lambda folder: Constant())
    predict.score_table(table, checkpoint, whole)
    part = tmp_path / f"scored.csv.{predict._fingerprint(table, checkpoint)}.part"
    part.write_bytes(whole.read_bytes()[:torn])
    predict.score_table(table, checkpoint, out, resume=True)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored.csv", "songs.csv", "whole.csv"]


def test_resume_scores_only_what_is_missing(table, checkpoint, tmp_path, monkeypatch, capsys):
    out, model = tmp_path / "scored.csv", Constant()
    monkeypatch.setattr(lu, "load_model", lambda folder: model)
    given = []
    model.predict = lambda lyrics: given.extend(lyrics) or np.full(len(lyrics), 0.5)
    predict.score_table(table, checkpoint, out)
    assert len(given) == 42
    lines = out.read_bytes().splitlines(keepends=True)
    part = tmp_path / f"scored.csv.{predict._fingerprint(table, checkpoint)}.part"
    part.write_bytes(b"".join(lines[: 1 + 43]))
    given.clear()
    predict.score_table(table, checkpoint, out, resume=True)
    assert len(given) == sum(n % 7 != 0 for n in range(40, COUNT))
    assert capsys.readouterr().out.count("42 songs scored, 8 rows") == 2


def test_parts_of_other_runs(table, checkpoint, tmp_path):
    for name in ("scored.csv.0123abcd.part", "other.csv.0123abcd.part"):
        (tmp_path / name).write_text("of another table or model")
    predict.score_table(table, checkpoint, tmp_path / "scored.csv", resume=True)
    assert (tmp_path / "scored.csv.0123abcd.part").exists()
    predict.score_table(table, checkpoint, tmp_path / "scored.csv")
    assert not (tmp_path / "scored.csv.0123abcd.part").exists()
    assert (tmp_path / "other.csv.0123abcd.part").exists()


DIE_LATE = """
import os, signal, sys
from pathlib import Path
from lyric_utils import predict
predict.BLOCK = 8
score_block, blocks = predict._score_block, []
def dying(*arguments):
    blocks.append(1)
    if len(blocks) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return score_block(*arguments)
predict._score_block = dying
predict.score_table(*map(Path, sys.argv[1:]))
"""


def test_killed_run_goes_on_with_resume(table, checkpoint, tmp_path):
    whole, out = tmp_path / "whole.csv", tmp_path / "scored.csv"
    killed = subprocess.run([sys.executable, "-c", DIE_LATE, table, checkpoint, out], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    [part] = tmp_path.glob("scored.csv.*.part")
    assert len(part.read_bytes().splitlines()) == 1 + 3 * 8
    assert not out.exists()
    predict.score_table(table, checkpoint, out, resume=True)
    predict.score_table(table, checkpoint, whole)
    assert out.read_bytes() == whole.read_bytes()


IN_TWO = """
import sys
from pathlib import Path
from lyric_utils import predict
predict.BLOCK = 8
score_block = predict._score_block
def noting(model, rows):
    with open(sys.argv[4], "a") as file:
        file.writelines(f"{row[0]}\\n" for row in rows)
    return score_block(model, rows)
predict._score_block = noting
predict.score_table(*map(Path, sys.argv[1:4]))
"""


def test_two_processes_score_every_song_once_and_in_order(table, checkpoint, tmp_path):
    script, notes = tmp_path / "in_two.py", tmp_path / "notes.txt"
    script.write_text(IN_TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    out, whole = tmp_path / "scored.csv", tmp_path / "whole.csv"
    done = subprocess.run([*launch, table, checkpoint, out, notes], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    predict.score_table(table, checkpoint, whole)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(notes.read_text().split()) == [str(row) for row in range(100, 100 + COUNT)]
    assert done.stdout.count("42 songs scored") == 1


WEIRD = [
    b"0,Ann,A,a song of the river",
    b"",
    b"1,Ann",
    b"2,Ann,B,one,cell,too,many",
    b"3,Ann,C,caf\xe9 in the rain",
    b"4,Bj\xf6rk,D,the artist is not UTF-8",
    b"five,\x00Ann,E,a NUL\x00 in the words",
    b"6,Ann,F,\xf0\x9f\x98\x80 \xf0\x9f\x8e\xb5 !!",
    b"7,Ann,G,\xef\xbf\xbd \xe2\x80\x8b \xed\xa0\x80",
    b"8,,,",
    b'9,"Ann\r\nand ""Ben""",H,"two\nlines, and a comma"',
    b"10,Ann,I," + b"never " * 2_000,
    b"11,Ann,J,\xe6\xad\x8c\xe3\x81\x86 \xd8\xba\xd9\x86\xd8\xa7\xd8\xa1",
    b'12,Ann,K,"a quote that is never closed',
]


def test_weird_rows_never_stop_it(checkpoint, tmp_path):
    table = tmp_path / "weird.csv"
    table.write_bytes(b"\xef\xbb\xbf,artist,song,seq\r\n" + b"\r\n".join(WEIRD) + b"\r\n")
    result = scored(table, checkpoint, tmp_path / "scored.csv")
    assert result["row"].tolist() == ["0", "1", "2", "3", "4", "five", *map(str, range(6, 13))]
    assert result["row"][result["prediction"].notna()].tolist() == ["0", "five", "9", "10", "11", "12"]
    assert result["prediction"].dropna().between(0, 1).all()
    assert result["artist"][9] == 'Ann and "Ben"'
    assert result["artist"][4] == "Bj?rk"


def test_formulas_and_separators_come_back_as_they_were(checkpoint, tmp_path):
    table = tmp_path / "songs.csv"
    names = ["=1+1", 'a "quoted" name', "comma, semicolon;", "tab\there", "\u2028line\x0bends\x1c", "名前"]
    pd.DataFrame({"title": names, "artist": names, "lyrics": "la la love"}).to_csv(table, index=False)
    predict.score_table(table, checkpoint, tmp_path / "scored.csv")
    with open(tmp_path / "scored.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["title"] for row in rows] == [" ".join(name.split()) for name in names]
    assert [row["row"] for row in rows] == [str(n) for n in range(len(names))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("songs.csv", None),
        ("songs.csv", b""),
        ("songs.csv", b"\n\n\n"),
        ("songs.csv", b"artist,title,lyrics\n"),
        ("songs.csv", b"artist,title,valence\nAnn,A,0.5\n"),
        ("songs.csv", b"artist,title,lyrics,seq\nAnn,A,la,la\n"),
        ("songs.csv", "artist,title,lyrics\nAnn,A,la\n".encode("utf-16")),
        ("songs.csv", b"artist,title,lyrics\nAnn,A," + b"la " * 20_000 + b"\n"),
        ("songs.csv", b'artist,title,lyrics\nAnn,A,"' + b"la la\n" * 10_000),
        ("songs.xlsx", b"no workbook"),
        ("songs.pkl", b"no pickle"),
        ("songs.txt", b"artist,title,lyrics\nAnn,A,la\n"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(name, content, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(songs, "LONGEST", 20_000)
    table = tmp_path / name
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(lu.LyricsError, match=name):
        predict.score_table(table, checkpoint, tmp_path / "new" / "scored.csv")
    assert not (tmp_path / "new").exists()


def test_places_that_cannot_be_written(table, checkpoint, tmp_path):
    for out in (tmp_path, table / "scored.csv"):
        with pytest.raises(lu.LyricsError, match="cannot be written"):
            predict.score_table(table, checkpoint, out)


def test_command(table, checkpoint, tmp_path, monkeypatch, capsys):
    out = tmp_path / "scored.csv"
    monkeypatch.setattr(sys, "argv", ["predict", str(table), "--model", str(checkpoint), "--out", str(out), "--resume"])
    predict.main()
    assert "42 songs scored" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["predict", str(tmp_path / "none.csv"), "--model", str(checkpoint)])
    with pytest.raises(SystemExit, match=r"error: .*none\.csv: no such file"):
        predict.main()
