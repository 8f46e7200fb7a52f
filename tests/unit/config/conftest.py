"""Fixtures of the config-driven workflows."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow_configs import write_workflow_files


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    """Tiny models of both families, an image, and videos and images to train on."""
    folder = tmp_path_factory.mktemp("workflows")
    write_workflow_files(folder)
    return folder
