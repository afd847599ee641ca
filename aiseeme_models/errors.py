"""The errors that a user's input may cause. Each says what is wrong, where, and what would be right."""

from __future__ import annotations


class InputError(ValueError):
    """The input or the configuration is wrong: commands print the text and end with exit code 2."""


class RunFailed(RuntimeError):
    """A run could not be finished: commands print the text and end with exit code 1."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no memory is left: Python's, CUDA's, or PyTorch's of a CPU, which has no own type."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
