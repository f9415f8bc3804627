import pytest
from chains import corpus


@pytest.fixture(scope="module")
def data():
    return corpus()
