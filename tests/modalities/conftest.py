"""open3d for the tests that compare with it; it is only ever imported by its loader."""

import pytest


@pytest.fixture
def open3d():
    """The module open3d; a test that needs it is skipped where a library that it links is missing."""
    from multicoca_points import load_open3d

    try:
        return load_open3d()
    except ImportError as error:
        pytest.skip(str(error))
