"""The constant bundle of AISEEME: Flower wants one; both parties run what is installed on their machine instead."""

__all__ = ["client", "server"]


def __getattr__(name: str) -> object:
    raise AttributeError(f"{name}: a hospital starts `aiseeme-site run`, a coordinator `aiseeme serve`")
