"""The command line on a tiny model, run in this process or in one of its own."""

import io
import json
import shutil
import subprocess
import sys
from functools import cache

import pytest
import typer.main

from facade import topics
from msa_plugin.backbone.cache import cache_dir
from msa_plugin.cli import main
from tiny import save_tiny, tiny_backbone


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A tiny model and an adapter for it, as folders."""
    folder = tmp_path_factory.mktemp("saved")
    backbone = tiny_backbone()
    save_tiny(folder, backbone)
    return folder


@pytest.fixture
def where(tmp_path, saved, monkeypatch):
    """A working folder in which the tiny model is the one that commands use."""
    monkeypatch.chdir(tmp_path)
    for name in ("MSA_BANK", "MSA_MODEL", "MSA_ADAPTER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cache").mkdir()
    for verdict in cache_dir().glob("cpu-*.json"):  # what is known of this CPU, which costs a process to find out
        shutil.copy(verdict, tmp_path / "cache")
    monkeypatch.setenv("MSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MSA_MODEL", str(saved / "model"))
    monkeypatch.setenv("MSA_ADAPTER", str(saved / "adapter"))
    return tmp_path


commands_of = cache(typer.main.get_command)


@pytest.fixture
def msa(where, monkeypatch, capsys):
    """Run a command; returns exit code, stdout and stderr. The tree of commands is made once."""
    monkeypatch.setattr(typer.main, "get_command", commands_of)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["msa", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return exited.value.code or 0, out, err

    return run


@pytest.fixture
def filled(msa, where):
    """The same, with three documents in ./bank."""
    lines = [json.dumps({**d, "metadata": {"number": n}}) for n, d in enumerate(topics(3))]
    (where / "docs.jsonl").write_text("\n".join(lines))
    assert msa("add", "docs.jsonl")[0] == 0
    return msa


def process(*arguments, **options):
    code = "import sys; from msa_plugin.cli import main; sys.argv[0] = 'msa'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=300, **options)
