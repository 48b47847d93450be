"""The road of the notebooks without a notebook: `python -m lyric_utils.train --profile sample --model lora`."""

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import lyric_utils as lu
from lyric_utils.songs import remove_leftovers
from lyric_utils.training import start_accelerator


def main() -> None:
    """Train one model of a profile and save its checkpoint; `--resume` goes on with a run that was killed."""
    parser = argparse.ArgumentParser(prog="python -m lyric_utils.train", description=main.__doc__)
    parser.add_argument("--profile", help="sample, subset or paper (default: LYRICS_PROFILE, or sample)")
    parser.add_argument("--model", default="lora", help="a recipe of the profile (default: lora)")
    parser.add_argument("--out", type=Path, help="checkpoint folder (default: the profile's)")
    parser.add_argument("--seed", type=int, default=42, help="of the training; the split keeps the profile's seed")
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch of a killed run")
    arguments = parser.parse_args()
    try:
        train_profile(lu.load_profile(arguments.profile), arguments)
    except lu.LyricsError as error:
        raise SystemExit(f"error: {error}") from error


def train_profile(profile: lu.Profile, arguments: argparse.Namespace) -> None:
    """Every process walks the whole road, so all know the same songs; the first alone prints and writes."""
    if arguments.model not in profile.recipes:
        names = ", ".join(profile.recipes)
        raise lu.LyricsError(f"{arguments.model!r} is not a recipe of profile {profile.name}: use one of {names}.")
    recipe = profile.recipes[arguments.model]
    accelerator = start_accelerator()
    folder = arguments.out or Path(profile.checkpoints) / arguments.model
    resume_file = folder.with_name(folder.name + ".resume.safetensors")
    if accelerator.is_main_process:
        remove_leftovers(folder)
        remove_leftovers(resume_file)
        if not arguments.resume:
            resume_file.unlink(missing_ok=True)

    with accelerator.main_process_first(), _silent(not accelerator.is_main_process):  # the first fills all caches
        songs, report = lu.clean_songs(lu.load_source(profile))
        print(report)
        songs = lu.draw_songs(songs, profile.songs, profile.seed)
        split = lu.split_songs(songs, profile.seed, profile.fractions, profile.split_by)
        encoder = lu.load_encoder(profile.encoder)
        model = lu.build_model(encoder, recipe, arguments.seed, profile.max_length, profile.stride)
        frozen, chunks = {}, {}
        for side, table in split._asdict().items():
            lyrics = table["lyrics"].tolist()
            chunks[side] = lu.chunk_lyrics(lyrics, encoder.tokenizer, profile.max_length, profile.stride)
            frozen[side] = lu.run_frozen(encoder, chunks[side], recipe.adapted_layers)
        examples = lu.make_examples(model, split, frozen)

    history = lu.train(model, examples["train"], examples["validation"], arguments.seed, resume_file)
    prediction = lu.score_songs(model, examples["test"].rows, accelerator)
    if accelerator.is_main_process:
        metrics = lu.score(split.test["valence"], prediction)
        predictions = lu.tabulate_predictions(split.test, chunks["test"].per_song, prediction)
        lu.save_model(
            model,
            folder,
            profile=profile.name,
            seed=arguments.seed,
            history=history,
            predictions=predictions,
            metrics=metrics,
        )
        resume_file.unlink(missing_ok=True)
        print(f"saved {folder}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    accelerator.end_training()


@contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """Without output and progress bars, if `silent`."""
    with open(os.devnull, "w") as nothing, ExitStack() as stack:
        if silent:
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
        yield


if __name__ == "__main__":
    main()
