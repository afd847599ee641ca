"""The science of AISEEME: pure PyTorch and MONAI, usable in a notebook without a federation."""

__version__ = "0.1.0"
