"""The named fault points: all are passed, none is unknown, and nothing but code turns them on."""

import ast
import shutil
from pathlib import Path

import pytest
from bank_builder import NS, open_bank, segment_folders
from operations import OPERATIONS, damage, fresh, make_seed, outcome, state

import msa_plugin
from msa_plugin.bank import faults
from msa_plugin.bank.migrate import migrate_bank
from msa_plugin.bank.repair import repair_bank

PACKAGE = Path(msa_plugin.__file__).parent
GOLDEN = Path(__file__).parents[1] / "golden_banks" / "v1" / "bank"


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    return make_seed(tmp_path_factory.mktemp("seed") / "bank")


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
        migrate_bank(fresh(GOLDEN, folder))
    assert passed == set(faults.POINTS)


def test_the_code_names_no_other_point():
    """As literals, so that a search finds them."""
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "fault_point":
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"
                used.add(node.args[0].value)
    assert used == set(faults.POINTS)


def test_off_unless_code_turns_it_on():
    assert faults._handler is None
    seen = []
    with pytest.raises(ZeroDivisionError), faults.injected(seen.append):
        faults.fault_point("writer.locked")
        raise ZeroDivisionError
    faults.fault_point("writer.locked")
    assert seen == ["writer.locked"] and faults._handler is None
    users = [p.name for p in PACKAGE.rglob("*.py") if "faults.injected" in p.read_text(encoding="utf-8")]
    assert not users, "no product code turns them on"
    assert "import os" not in Path(faults.__file__).read_text(encoding="utf-8"), "nor does the environment"


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "commit_text"])
def test_an_interruption_at_any_point_leaves_old_or_new_and_a_handle_that_goes_on(name, seed, tmp_path):
    """Ctrl-C, which is no error of the disk: it comes through as it is."""
    operation, folder = OPERATIONS[name], tmp_path / "bank"
    before, after = outcome(operation, seed, folder)
    passed = []
    with open_bank(fresh(seed, folder)) as bank, faults.injected(passed.append):
        operation(bank)
    for at in range(len(passed)):
        with open_bank(fresh(seed, folder)) as bank:
            interrupted(operation, bank, at)
            bank.refresh()
            assert state(bank) in (before, after), f"a mix after {passed[at]}"
            if state(bank) == before:
                operation(bank)
            assert state(bank) == after and bank.verify().ok
        with open_bank(folder) as bank:
            assert len(segment_folders(folder)) == bank.stats(NS).segments


def interrupted(operation, bank, at):
    def strike(point, left=[at]):  # noqa: B006 - a counter
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), faults.injected(strike):
        operation(bank)
