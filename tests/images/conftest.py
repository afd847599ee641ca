from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.images.dicom_files import write_dicom_file


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """See `write_dicom_file`; the file lies in ``tmp_path``."""
    return lambda array, name="image.dcm", **tags: write_dicom_file(tmp_path / name, array, **tags)


@pytest.fixture
def radiograph() -> np.ndarray:
    """A 16-bit array without any symmetry: a transpose or flip of it is another image."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[0:40, 0:56]
    return (rows * 60 + columns * 11 + rng.integers(0, 40, (40, 56))).astype(np.uint16)
