"""The notebook in examples/ runs as it is."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "study.ipynb"


def test_the_notebook_is_kept_without_its_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of what runs notebooks
def test_the_notebook_runs_and_shows_figure_table_and_verdict(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert any("image/svg+xml" in each.get("data", {}) for each in outputs[1])
    assert "mean" in outputs[2][0]["data"]["text/html"]
    assert "Validation accuracy decides" in outputs[3][0]["text"]
    assert (tmp_path / "runs/notebook/study.html").is_file()
