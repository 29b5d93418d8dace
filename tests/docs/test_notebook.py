"""The notebook lies in git without outputs, and runs from the first cell to the last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from transformers import AutoModelForCausalLM

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
TARGET, NUM_LAYERS, NUM_PICTURES = 18, 30, 3


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_a_notebook():
    assert [path.name for path in NOTEBOOKS] == ["scan_trim_load.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_of(notebook))


@pytest.mark.slow
def test_the_notebook_scans_trims_draws_and_loads(tmp_path):
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()  # an error in a cell is an error here
    *_, look, load = code_of(notebook)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "trimmed").config.num_hidden_layers == TARGET

    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == NUM_PICTURES
    looked = text_of(look)
    assert looked.count("layers (") == (NUM_LAYERS - TARGET) // 3 and f"{TARGET} left" in looked
    assert "trim_history.json" in looked
    for depth in (NUM_LAYERS, TARGET):
        assert f"{depth} layers, " in text_of(load)


def text_of(cell):
    return "".join(
        output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"
    )
