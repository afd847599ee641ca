"""The errors that a user's input may cause. Each says what is wrong, where, and what would be right."""

from __future__ import annotations


class InputError(ValueError):
    """The input or the configuration is wrong: commands print the text and end with exit code 2."""


class RunFailed(RuntimeError):
    """A run could not be finished: commands print the text and end with exit code 1."""
