"""A few refusals of every kind in every operation; `refusals.py --most 1000` makes all of them."""

import pytest
from refusals import KINDS, build, run

QUICK = ["commit", "compact", "reopen", "read", "create"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    try:
        return build(tmp_path_factory.mktemp("refuse"))
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_a_sync_that_fails_is_never_taken_for_done(library):
    """Each of them: the log's above all, whose commit lies there whole when the sync of it has failed."""
    figures = run(library, most=20, operations=["commit", "compact", "delete"], kinds=["fsync fails"])
    assert figures["counts"]["refused"] > 10


def test_whatever_the_disk_refuses_the_bank_is_as_before_or_as_after(library):
    figures = run(library, most=1, operations=QUICK, kinds=list(KINDS))
    assert figures["counts"]["refused"] > 20 and figures["counts"]["overcome"] > 5
