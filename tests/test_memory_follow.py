"""Two handles on the same memory, everything on: each sees at its next call what the other has done."""

import shutil

import pytest

from facade import about, opened, topics
from msa_plugin.errors import BankMovedError, EmptyMemoryError


def found(memory, question="glacier"):
    return [hit.id for hit in memory.retrieve(question, k=3)]


def test_each_handle_sees_what_the_other_has_done(tmp_path, backbone):
    settings = {"lexical": 1.0, "titles": 0.4}
    with opened(tmp_path, backbone, **settings) as memory, opened(tmp_path, backbone, **settings) as other:
        with pytest.raises(EmptyMemoryError):
            memory.ask("glacier?")
        other.add(topics(4))
        assert found(memory)[0] == "glacier" and memory.ask("glacier?", max_new_tokens=1).sources
        other.update({"id": "glacier", "text": about("meteor"), "title": "met"})
        assert memory.get("glacier")[0].text == about("meteor") and found(memory, "meteor")[0] == "glacier"
        answers = memory.stream("What of the meteor?", max_new_tokens=2)
        other.delete("glacier")
        other.compact()
        assert "glacier" not in found(memory, "meteor") and memory.stats().documents == 3 and not memory.get("glacier")
        list(answers)
        assert "glacier" in [s.id for s in answers.answer.sources], "a question keeps the moment at which it was asked"

        memory.add(topics(3))
        assert found(other)[0] == "glacier"
        memory.update({"id": "glacier", "text": about("saffron")})
        assert other.get("glacier")[0].text == about("saffron")
        memory.delete("glacier")
        memory.compact()
        assert "glacier" not in found(other) and sorted(other.ids()) == sorted(memory.ids())


def test_a_state_that_is_asked_for_stays(tmp_path, backbone, memory):
    with opened(tmp_path, backbone) as writer, opened(tmp_path, backbone, follow=False) as staying:
        writer.add(topics(2))
        assert staying.stats().documents == 0
        staying.refresh()
        assert staying.stats().documents == 2


@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_adding_again_what_a_lost_bank_held_is_not_called_unchanged(tmp_path, backbone, what):
    with opened(tmp_path, backbone) as memory:
        memory.add(topics(2))
        shutil.rmtree(tmp_path / "bank")
        if what == "replaced":
            with opened(tmp_path, backbone) as rebuilt:
                rebuilt.add("something else")
        with pytest.raises(BankMovedError, match="nothing was changed"):
            memory.add(topics(2))
        with pytest.raises(BankMovedError, match="nothing was changed"):
            memory.update(topics(1)[0])
        with pytest.raises(BankMovedError, match="nothing was changed"):
            memory.delete("nobody")
    if what == "replaced":
        with opened(tmp_path, backbone) as rebuilt:
            assert rebuilt.stats().documents == 1 and rebuilt.verify().ok
