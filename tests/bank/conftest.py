import pytest
from bank_builder import open_bank


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bank"


@pytest.fixture
def bank(folder):
    with open_bank(folder) as bank:
        yield bank
