"""Kill a training at random moments and go on: `python -m benchmarks.robustness.kill_and_resume`.

Trains both models on the sample with the command line, each once without interruption and five times with `kill -9`:
four times at a random moment, once while the training state is being written, which the temporary file left behind
proves. Each killed run goes on with `--resume`; its history, seconds aside, and every byte of its parameters are
compared with those of the uninterrupted run. Fails if one differs or a temporary file is left.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.common import ROBUSTNESS, write_json
from lyric_utils.pipeline import resume_file_of
from lyric_utils.training import read_state

EPOCHS = {"baseline": 300, "lora": 3}  # enough for some seconds of training
KILLS = 5


def train(out: Path, model: str, *options: str, start=subprocess.run, **arguments):
    """Run the command that trains into a folder; `start` and `arguments` say how."""
    command = [sys.executable, "-m", "lyric_utils.train", "--profile", "sample", "--model", model, "--out", out]
    environment = os.environ | {"LYRICS_EPOCHS": str(EPOCHS[model])}
    arguments |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return start([*command, *options], env=environment, **arguments)


def kill_in_write(out: Path, model: str) -> None:
    """Kill a run while it writes its state: again and again until the unfinished file is left."""
    while not unfinished(out, "resume"):
        process = train(out, model, "--resume", start=subprocess.Popen)
        while process.poll() is None and not unfinished(out, "resume"):
            pass
        process.kill()  # SIGKILL, which no process can catch
        process.wait()


def unfinished(out: Path, kind: str = "") -> list[Path]:
    """What a killed write left: files of kind "resume", or those and folders of the checkpoint."""
    return list(out.parent.glob(f".{out.name}.{kind}*.tmp"))


def epochs_done(out: Path) -> int:
    """Epochs in the training state that a killed run left."""
    state = resume_file_of(out)
    return len(read_state(state.read_bytes(), state)["history"]) if state.is_file() else 0


def outcome(out: Path) -> tuple:
    """History without seconds, and the bytes of the parameters."""
    history = [{**line, "seconds": 0} for line in json.loads((out / "history.json").read_text())]
    return history, {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


def main() -> None:
    moments, results = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        for model in EPOCHS:
            whole = Path(folder, model)
            train(whole, model, check=True)  # fills the cache of frozen layers
            started = time.perf_counter()
            train(whole, model, "--overwrite", check=True)
            seconds, (history, parameters) = time.perf_counter() - started, outcome(whole)
            for number in range(1, KILLS + 1):
                out, moment = Path(folder, f"{model}_{number}"), moments.uniform(0.1, 0.95) * seconds
                if number < KILLS:
                    with suppress(subprocess.TimeoutExpired):
                        train(out, model, timeout=moment)  # then Python sends SIGKILL
                    killed = f"after {moment:.1f} of {seconds:.1f} s"
                else:
                    kill_in_write(out, model)
                    written = sum(file.stat().st_size for file in unfinished(out)[0].iterdir())
                    killed = f"in a write of the state, after {written:,} bytes"
                result = {"model": model, "killed": killed, "epochs_kept": epochs_done(out)}
                train(out, model, "--resume", check=True)
                found = outcome(out)
                result |= {"same_history": found[0] == history, "same_weights": found[1] == parameters}
                result["nothing_left"] = not unfinished(out) and not list(out.parent.glob("*.resume.*"))
                results.append(result)
                print(result, flush=True)
    write_json(ROBUSTNESS / "kill_and_resume.json", results)
    if not all(result[key] for result in results for key in ("same_history", "same_weights", "nothing_left")):
        raise SystemExit("a resumed run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
