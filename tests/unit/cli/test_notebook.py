"""The notebook runs from top to bottom and shows images."""

from __future__ import annotations

import os

import pytest
from processes import ROOT

NOTEBOOK = ROOT / "docs/notebooks/quickstart.ipynb"


@pytest.mark.slow
def test_notebook_runs_and_shows_images(monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="pip install -r requirements/docs.txt")
    nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements/docs.txt")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    images = [sum("image/png" in str(output) for output in cell.outputs) for cell in code]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = [sum("image/png" in str(output) for output in cell.outputs) for cell in code]
    assert shown == images and sum(shown) >= 8
