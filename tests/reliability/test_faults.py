"""The named fault points: all are passed, none is unknown, and nothing but code turns them on."""

import ast
import shutil
from pathlib import Path

import pytest
from bank_builder import NS, encoded, open_bank
from operations import OPERATIONS, fresh, make_seed

import msa_plugin
from msa_plugin.bank import faults
from msa_plugin.bank.repair import repair_bank

PACKAGE = Path(msa_plugin.__file__).parent


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    return make_seed(tmp_path_factory.mktemp("seed") / "bank")


def damage(folder):
    """What repair has every step to do for: latents, a text, and pages of the catalog that SQLite finds broken."""
    with open_bank(folder) as bank:
        bank.commit([encoded(f"page {n}", f"{n} " * 3000) for n in range(8)], NS)
        bank.commit([encoded("other")], "other")
        bank.compact()
        bank.commit([encoded("hit")], NS)
        latents = folder / "segments" / bank.segments()[-1].record.uuid / "keys.safetensors"
    data = bytearray(latents.read_bytes())
    data[-1] ^= 1
    latents.write_bytes(data)
    path = folder / "catalog.sqlite"
    data = bytearray(path.read_bytes())
    at = data.index(b"3 3 3 3 ") // 4096 * 4096  # a page of one text
    data[at : at + 4096] = bytes(4096)
    path.write_bytes(data)


def test_every_point_is_passed_by_some_change(seed, tmp_path):
    passed = set()
    folder = tmp_path / "bank"
    with faults.injected(passed.add):
        for operation in OPERATIONS.values():
            with open_bank(fresh(seed, folder)) as bank:
                operation(bank)
        shutil.rmtree(folder)
        open_bank(folder).close()
        damage(folder)
        repair_bank(folder)
    assert passed == set(faults.POINTS)


def test_the_code_names_no_other_point():
    """As literals, so that a search finds them."""
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "reached":
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"
                used.add(node.args[0].value)
    assert used == set(faults.POINTS)


def test_off_unless_code_turns_it_on():
    assert faults._handler is None
    seen = []
    with pytest.raises(ZeroDivisionError), faults.injected(seen.append):
        faults.reached("writer.locked")
        raise ZeroDivisionError
    faults.reached("writer.locked")
    assert seen == ["writer.locked"] and faults._handler is None
    users = [p.name for p in PACKAGE.rglob("*.py") if "faults.injected" in p.read_text(encoding="utf-8")]
    assert not users, "no product code turns them on"
    assert "environ" not in Path(faults.__file__).read_text(encoding="utf-8")
