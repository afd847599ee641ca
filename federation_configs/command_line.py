"""How both command lines end: 0 done, 1 the run failed, 2 the input is wrong; no traceback for a user's mistake."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from aiseeme_models import __version__
from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.printable import LONGEST_LINE, LONGEST_TEXT, printable

# Before torch is loaded: threads that wait for each other sleep. Where another process wants the same cores, threads
# that spin made a training step 2.3 times slower; alone there is no difference.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run_app(app: typer.Typer, interrupted: str = "interrupted") -> None:
    """Run a command line and end the process with its exit code; ``interrupted`` is said after Ctrl-C."""
    try:
        app()
    except SystemExit as end:
        # Typer makes a silent exit of Ctrl-C. No command ends with this code by itself.
        if end.code != _INTERRUPTED:
            raise
        _end(interrupted, _INTERRUPTED)
    except InputError as error:
        _end(f"error: {error}", 2)
    except RunFailed as error:
        _end(f"failed: {error}", 1)
    except KeyboardInterrupt:
        _end(interrupted, _INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        # A file where a folder is meant, no permission, a full disk: the system's own words say which.
        where = f"{error.filename}: " if error.filename is not None else ""
        _end(f"error: {where}{error.strerror or error}", 2)


def show_version(wanted: bool) -> None:
    """Callback of ``--version``."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def console(*, stderr: bool = False) -> Console:
    """A console; where the output is no terminal it is wide, so that tables and names are not cut."""
    made = Console(stderr=stderr, emoji=False)  # a file may be called :smile:
    return made if made.is_terminal else Console(stderr=stderr, width=160, emoji=False)


def shown(text: str, longest: int = LONGEST_TEXT) -> str:
    """What a file, folder, configuration, site or label says, for a console: no markup, no control characters."""
    return escape(printable(text, longest))


def _end(text: str, code: int) -> None:
    lines = (printable(line, LONGEST_LINE) for line in text.split("\n"))
    print("\n".join(lines), file=sys.stderr)
    raise SystemExit(code)
