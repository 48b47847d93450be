"""What both command lines share: an end in one sentence, whatever happens."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from lyric_utils._files import LyricsError, describe, visible


class Parser(ArgumentParser):
    """Its errors spell out control characters."""

    def error(self, message: str) -> None:
        super().error(visible(message))


def run_command(command: Callable[[Namespace], None], arguments: Namespace, interrupted: Callable[[], str]) -> None:
    """Run a command; errors end it with exit code 1, Ctrl-C with 130 and the sentence that `interrupted` gives."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that a Windows console has no letters for
    try:
        command(arguments)
        print(end="", flush=True)
    except LyricsError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print(f"\ninterrupted: {visible(interrupted())}", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:  # standard output is closed or full: what is left for it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(f"error: {visible(error.filename or 'standard output')}: {describe(error)}.") from error
    except Exception as error:
        raise SystemExit(f"error: {visible(describe(error))}.") from error
