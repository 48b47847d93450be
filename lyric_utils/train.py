"""Train without a notebook: `python -m lyric_utils.train --profile sample --model lora`."""

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import lyric_utils as lu
from lyric_utils._command import Parser, run_command
from lyric_utils._files import visible


def main() -> None:
    """Train one model of a profile and save its checkpoint."""
    parser = Parser(prog="python -m lyric_utils.train", description=main.__doc__)
    parser.add_argument("--profile", help="sample, billboard, both, subset, paper (default: LYRICS_PROFILE or sample)")
    parser.add_argument("--model", default="lora", help="a recipe of the profile (default: lora)")
    parser.add_argument("--out", type=Path, help="checkpoint folder (default: runs/PROFILE/MODEL)")
    parser.add_argument("--seed", type=int, default=42, help="of the training; the split keeps the profile's seed")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that exists")
    parser.add_argument("--resume", action="store_true", help="go on after the last finished epoch of a stopped run")
    kept = "the same command with --resume goes on after the last finished epoch."
    run_command(train_profile, parser.parse_args(), lambda: kept)


def train_profile(arguments: argparse.Namespace) -> None:
    """Every process goes through the whole pipeline, so all know the same songs; the first alone prints and writes."""
    profile = lu.load_profile(arguments.profile)
    if arguments.model not in (recipes := profile.recipes):
        raise lu.LyricsError(f"{arguments.model!r} is not a recipe of {profile.name}: use one of {', '.join(recipes)}.")
    from lyric_utils.checkpoints import SHIPPED, check_folder
    from lyric_utils.pipeline import RUNS, prepare, resume_file_of, save_trained, train_model
    from lyric_utils.training import start_accelerator

    recipe, folder = recipes[arguments.model], arguments.out or RUNS / profile.name / arguments.model
    if SHIPPED in folder.resolve().parents:
        raise lu.LyricsError(f"{folder}: shipped checkpoints are not overwritten. Give another folder with --out.")
    check_folder(folder)
    resume_file = resume_file_of(folder)
    if os.path.lexists(resume_file) and not arguments.resume:
        raise lu.LyricsError(f"{resume_file}: left by a stopped training. Add --resume, or delete it to start anew.")
    if os.path.lexists(folder / "config.json") and not (arguments.overwrite or os.path.lexists(resume_file)):
        raise lu.LyricsError(f"{folder}: exists already. Add --overwrite, or give another folder with --out.")
    accelerator = start_accelerator()
    with accelerator.main_process_first(), redirect_stdout(sys.stdout if accelerator.is_main_process else None):
        data = prepare(profile, adapted_layers=recipe.adapted_layers)  # the first process fills the caches
    trained = train_model(recipe, data, arguments.seed, resume_file)
    if accelerator.is_main_process:
        metrics = save_trained(trained, data, folder)
        print(f"saved {visible(folder)}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    accelerator.end_training()


if __name__ == "__main__":
    main()
