"""How both command lines end: 0 done, 1 the run failed, 2 the input is wrong; no traceback for a user's mistake."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from aiseeme_models import __version__
from aiseeme_models.errors import InputError, RunFailed

# Before torch is loaded: threads that wait for each other sleep. Where another process wants the same cores, threads
# that spin made a training step 2.3 times slower; alone there is no difference.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_app(app: typer.Typer) -> None:
    """Run a command line and end the process with its exit code."""
    try:
        app()
    except InputError as error:
        _end(f"error: {error}", 2)
    except RunFailed as error:
        _end(f"failed: {error}", 1)
    except KeyboardInterrupt:
        _end("interrupted; `aiseeme runs` says which run can be resumed", 130)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None


def show_version(wanted: bool) -> None:
    """Callback of ``--version``."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def console(*, stderr: bool = False) -> Console:
    """A console; where the output is no terminal it is wide, so that tables and names are not cut."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=160)


def _end(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    raise SystemExit(code)
