"""The notebook in examples/ runs as it is, and training shows a bar in a notebook."""

import builtins
import re
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from jaxcnn.runs import notebook as notebook_module
from jaxcnn.runs.console import Terminal
from jaxcnn.runs.display import Bar
from jaxcnn.runs.notebook import open_cell_bar
from jaxcnn.training.records import Metrics

NOTEBOOK = Path(__file__).parent.parent / "examples" / "study.ipynb"


def test_the_notebook_is_kept_without_its_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def test_a_bar_moves_in_the_cell_and_goes_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda content: shown.append(content.data))
    monkeypatch.setattr("IPython.display.display", lambda content, display_id: handle)
    assert open_cell_bar() is None
    monkeypatch.setattr(builtins, "get_ipython", lambda: SimpleNamespace(kernel=object()), raising=False)
    monkeypatch.setattr(notebook_module, "_PAUSE", 0.0)
    with Bar(Terminal(file=StringIO()), 2, 100, 0, 0) as bar:
        bar.step(50, Metrics(10.0, 5, 10))
    assert re.fullmatch(r'<progress max="1" value="0.500".*epoch 1/2  loss 1.0000  50.00%</code>', shown[0])
    assert shown[1:] == [""]


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
