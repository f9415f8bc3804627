"""The bill of materials lists what the lock pins, every time in the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "constraints.txt").read_text()


def bill(lock):
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "sbom.py", lock], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def written():
    return bill(ROOT / "constraints.txt")


def test_every_pin_is_listed_and_nothing_else(written):
    listed = {(c["name"], c["version"]) for c in json.loads(written)["components"]}
    pins = [line.split("==") for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert len(listed) == len(pins) > 100
    assert {v for _, v in listed} == {v for _, v in pins} and ("numpy", dict(pins)["numpy"]) in listed


def test_it_is_the_same_every_time_and_names_no_folder(written):
    assert bill(ROOT / "constraints.txt") == written
    assert str(ROOT) not in written and str(Path.home()) not in written


def test_licences_are_those_of_what_is_installed(written):
    components = {c["name"]: c for c in json.loads(written)["components"]}
    assert "Apache" in json.dumps(components["transformers"]["licenses"])
    assert sum("licenses" in c for c in components.values()) > len(components) // 2


def test_a_line_that_pins_nothing_is_refused(tmp_path):
    (tmp_path / "loose.txt").write_text("numpy>=1\n")
    with pytest.raises(subprocess.CalledProcessError):
        bill(tmp_path / "loose.txt")
