"""The notebooks as their users run them: on 40 rows of their own, and in Colab, where the first cell gets the project.

That they run on the sample is tested by nbval.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

import lyric_utils as lu

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def first_code_cell(path: Path) -> str:
    return next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code").source


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that looks like the repository, whose `runs/` is its own; 40 songs in the Kaggle schema."""
    for name in ("lyric_utils", "benchmarks", "assets", "datasets", "trained_models"):
        (tmp_path / name).symlink_to(ROOT / name)
    songs = lu.load_songs(ROOT / "datasets" / "sample_150.pkl").iloc[:40]
    table = songs[["artist", "lyrics", "title", "valence"]].set_axis(["artist", "seq", "song", "label"], axis=1)
    table.to_csv(tmp_path / "mine.csv", index=False)
    monkeypatch.delenv("MPLBACKEND")  # a kernel's own closes its figures
    for name, value in {"PROFILE": "subset", "DATA": tmp_path / "mine.csv", "EPOCHS": 1}.items():
        monkeypatch.setenv(f"LYRICS_{name}", str(value))
    return tmp_path


def test_forty_rows_of_ones_own_go_through_all_chapters(workplace):
    shipped = {path: path.stat().st_mtime_ns for path in (ROOT / "trained_models").rglob("*")}
    notebook = nbformat.read(CHAPTERS[0], 4)  # all in one kernel, whose start takes longer than most chapters
    notebook.cells = [cell for path in CHAPTERS for cell in nbformat.read(path, 4).cells]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(workplace)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert "baseline: trained for 1 epoch in" in printed
    assert "lora: trained for 1 epoch in" in printed
    assert "lora: loaded from subset/lora" in printed  # chapter 4 takes the model of chapter 3
    tested = lu.load_results(workplace / "runs/subset/lora").predictions
    assert set(tested["artist"]) <= set(pd.read_csv(workplace / "mine.csv")["artist"])
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "trained_models").rglob("*")} == shipped


@pytest.fixture
def colab(tmp_path):
    """Runs the set-up cell as Colab would, in a folder of its own, with `git` and `pip` replaced by what they do."""
    cell = first_code_cell(CHAPTERS[0]).partition("\n\nimport numpy")[0]
    program = f"""
import os, pathlib, subprocess, sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
def run(command, **options):
    print("ran:", *command)
    if "clone" in command and command[-2] == "right":
        pathlib.Path("lyrics-valence/lyric_utils").mkdir(parents=True)
    return types.SimpleNamespace(returncode=int("wrong" in command))
subprocess.run = run
{cell}
print("works in", pathlib.Path.cwd().name, "with", sys.path[0] == os.getcwd())
"""

    def run_cell(address: str):
        command, environment = [sys.executable, "-c", program], os.environ | {"LYRICS_REPOSITORY": address}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    return run_cell


def test_the_first_cell_works_in_colab_again_after_a_restart(colab):
    for is_first in (True, False):
        done = colab("right")
        assert done.stdout.endswith("works in lyrics-valence with True\n"), done.stderr
        assert ("ran: git clone" in done.stdout) == is_first


def test_a_wrong_address_is_named_and_can_be_corrected(colab):
    failed = colab("wrong")
    assert failed.returncode
    assert "git cannot clone 'wrong': check the address and run this cell again" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "works in lyrics-valence" in colab("right").stdout


def test_all_chapters_begin_with_the_same_setup_and_show_the_profile():
    setups = {first_code_cell(path).partition("sys.path.insert")[0] for path in CHAPTERS}
    assert len(setups) == 1
    assert 'os.environ["LYRICS_PROFILE"]' in setups.pop()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_are_readable_without_scrolling_and_name_no_place(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert max(len(line) for cell in code for line in cell.source.splitlines()) <= 100
    text = path.read_text()
    assert not [word for word in ("/home/", "/root/", "/tmp/", "site-packages", "$$") if word in text]
    assert all(cell.execution_count for cell in code)
