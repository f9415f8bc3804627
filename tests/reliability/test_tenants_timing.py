"""The measurement of `timing.py`, small; work is compared, never time."""

import timing


def test_another_tenant_adds_no_work_to_a_question():
    figures = timing.run(mine=30, others=[0, 60, 600], repeats=1, seed=0)
    assert figures["equal_scores"]
    assert figures["rows_read"] == dict.fromkeys(("0", "60", "600"), 30 * timing.CHUNKS)


def test_the_measurement_notices_a_search_that_reads_what_it_may_not_return(monkeypatch):
    everything = timing.MemoryBank.select

    def careless(self, namespace, where=None):
        return everything(self, "b", where)

    monkeypatch.setattr(timing.MemoryBank, "select", careless)
    figures = timing.run(mine=30, others=[60, 600], repeats=1, seed=0)
    assert not figures["equal_scores"] and figures["rows_read"]["600"] == 600 * timing.CHUNKS
