"""A bar is shown where somebody is watching: in a terminal and in Jupyter, and nowhere else."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import nbformat
import pytest
from conftest import ROOT, run_python
from nbclient import NotebookClient

COUNT = """
import time
from lyric_utils._progress import progress
with progress(total=40, desc="count", unit="song") as bar:
    for _ in range(4):
        time.sleep(0.15)
        bar.update(10)
print("done")
"""


def test_a_terminal_shows_a_bar_with_an_estimate_and_clears_it():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows, columns
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": theirs}
    with subprocess.Popen([sys.executable, "-c", COUNT], env=environment, **streams) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4_096):
                shown += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.stdout.read() == b"done\n"
    os.close(ours)
    *bars, cleared, last = shown.decode().split("\r")
    assert any(bar.startswith("count:  50%") and "20/40 [00:00<00:00" in bar and "song/s]" in bar for bar in bars)
    assert cleared.strip() == last == ""


def test_a_pipe_gets_no_bar():
    done = run_python("-c", COUNT)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.fixture(scope="module")
def notebook():
    """A running kernel, and a function that runs a cell in it; returns the cell's outputs."""
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(COUNT)])
    client = NotebookClient(content, kernel_name="python3", timeout=60)
    with client.setup_kernel(env=os.environ | {"PYTHONPATH": str(ROOT)}):

        def run(answers):
            client.kc.allow_stdin = answers
            return client.execute_cell(content.cells[0], 0).outputs

        yield run


def test_an_executed_notebook_holds_no_bar(notebook):
    """As nbconvert, nbval and our own build run it: nobody could answer a question there."""
    assert [output["name"] for output in notebook(answers=False)] == ["stdout"]


def test_jupyter_shows_a_widget(notebook):
    widget = "application/vnd.jupyter.widget-view+json"
    shown = [output for output in notebook(answers=True) if widget in output.get("data", {})]
    assert len(shown) == 1
    assert not any(output.get("name") == "stderr" for output in notebook(answers=True))
