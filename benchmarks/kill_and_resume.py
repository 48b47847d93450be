"""Kill a training at random moments and go on: `python -m benchmarks.kill_and_resume`.

Trains both models on the sample with the command of the README, each once without interruption and five times with
`kill -9`: four times at a random moment, once while the training state is being written. That one is proved by the
temporary file of the write, which the killed process leaves behind. Each killed run goes on with `--resume`; its
history, seconds aside, and every byte of its weights are compared with those of the uninterrupted run. Prints a table,
writes it to benchmarks/results/kill_and_resume.json, and fails if one differs or a temporary file is left.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

from benchmarks.common import RESULTS, write_json

EPOCHS = {"baseline": 300, "lora": 3}  # enough for some seconds of training
KILLS = 5


def start(model: str, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lyric_utils.train", "--profile", "sample", "--model", model, "--out", out]
    environment = os.environ | {"LYRICS_EPOCHS": str(EPOCHS[model])}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, *options], env=environment, **quiet)


def finish(model: str, out: Path, *options: str) -> float:
    """Run to the end; returns seconds."""
    started = time.perf_counter()
    if code := start(model, out, *options).wait():
        raise SystemExit(f"the run into {out} ended with {code}")
    return time.perf_counter() - started


def kill(process: subprocess.Popen) -> None:
    process.kill()  # SIGKILL, which no process can catch
    process.wait()


def kill_in_write(model: str, out: Path) -> None:
    """Kill a run while it writes its state: again and again until the unfinished file is left."""
    while True:
        process = start(model, out, "--resume")
        while process.poll() is None and not unfinished(out, "resume"):
            pass
        kill(process)
        if unfinished(out, "resume"):
            return


def unfinished(out: Path, kind: str = "") -> list[Path]:
    """What a killed write left: files of kind "resume", or those and folders of the checkpoint."""
    return list(out.parent.glob(f".{out.name}.{kind}*.tmp"))


def epochs_done(out: Path) -> int:
    """Epochs in the training state that a killed run left."""
    state = out.with_name(out.name + ".resume.safetensors")
    if not state.is_file():
        return 0
    with safe_open(state, "pt") as file:
        return len(json.loads(file.metadata()["progress"])["history"])


def outcome(out: Path) -> tuple:
    """History without seconds, and the bytes of the weights."""
    history = [{**line, "seconds": 0} for line in json.loads((out / "history.json").read_text())]
    return history, {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


def main() -> None:
    moments, results = random.Random(0), []
    print("| model | killed | epochs kept | same history | same weights |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for model in EPOCHS:
            whole = Path(folder, model)
            finish(model, whole)  # fills the cache of frozen layers
            seconds = finish(model, whole)
            history, weights = outcome(whole)
            for number in range(1, KILLS + 1):
                out = Path(folder, f"{model}_{number}")
                if number < KILLS:
                    process, moment = start(model, out), moments.uniform(0.1, 0.95) * seconds
                    time.sleep(moment)
                    kill(process)
                    killed = f"after {moment:.1f} of {seconds:.1f} s"
                else:
                    kill_in_write(model, out)
                    killed = f"in a write of the state, after {unfinished(out)[0].stat().st_size:,} bytes"
                kept = epochs_done(out)
                finish(model, out, "--resume")
                found = outcome(out)
                same = {"same_history": found[0] == history, "same_weights": found[1] == weights}
                same["nothing_left"] = not unfinished(out) and not list(out.parent.glob("*.resume.*"))
                results.append({"model": model, "killed": killed, "epochs_kept": kept, **same})
                cells = [model, killed, f"{kept} of {EPOCHS[model]}", same["same_history"], same["same_weights"]]
                print("|", " | ".join(map(str, cells)), "|", flush=True)
    write_json(RESULTS / "kill_and_resume.json", results)
    if not all(result[key] for result in results for key in ("same_history", "same_weights", "nothing_left")):
        raise SystemExit("a resumed run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
