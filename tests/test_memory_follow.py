"""Two processes with the same memory, everything on: each sees at its next call what the other has done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from facade import about, opened, topics
from msa_plugin.errors import BankMovedError, EmptyMemoryError

CHILD = """
import json, sys
from pathlib import Path
from facade import about, opened, topics
from tiny import tiny_backbone
with opened(Path(sys.argv[1]), tiny_backbone(), lexical=1.0, titles=0.4, lock_timeout=60) as memory:
    can = {
        "add": lambda count: memory.add(topics(count)) and None,
        "update": lambda id, topic: memory.update({"id": id, "text": about(topic), "title": topic[:3]}) and None,
        "delete": lambda id: memory.delete(id) and None,
        "compact": lambda: memory.compact() and None,
        "found": lambda: [h.id for h in memory.retrieve("glacier", k=3)],
        "text": lambda id: memory.get(id)[0].text,
        "ids": lambda: sorted(memory.ids()),
    }
    print("open", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(can[name](*arguments)), flush=True)
"""


@pytest.fixture
def other(tmp_path, backbone):
    opened(tmp_path, backbone).close()
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "open\n"

    def tell(name, *arguments):
        child.stdin.write(json.dumps([name, *arguments]) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    yield tell
    child.communicate()
    assert child.returncode == 0


def found(memory, question="glacier"):
    return [hit.id for hit in memory.retrieve(question, k=3)]


@pytest.mark.slow
def test_each_process_sees_what_the_other_has_done(tmp_path, backbone, other):
    with opened(tmp_path, backbone, lexical=1.0, titles=0.4, lock_timeout=60) as memory:
        with pytest.raises(EmptyMemoryError):
            memory.ask("glacier?")
        other("add", 4)
        assert found(memory)[0] == "glacier" and memory.ask("glacier?", max_new_tokens=1).sources
        other("update", "glacier", "meteor")
        assert memory.get("glacier")[0].text == about("meteor") and found(memory, "meteor")[0] == "glacier"
        answers = memory.stream("What of the meteor?", max_new_tokens=2)
        other("delete", "glacier")
        other("compact")
        assert "glacier" not in found(memory, "meteor") and memory.stats().documents == 3 and not memory.get("glacier")
        list(answers)
        assert "glacier" in [s.id for s in answers.answer.sources], "a question keeps the moment at which it was asked"

        memory.add(topics(3))
        assert other("found")[0] == "glacier"
        memory.update({"id": "glacier", "text": about("saffron")})
        assert other("text", "glacier") == about("saffron")
        memory.delete("glacier")
        memory.compact()
        assert "glacier" not in other("found") and other("ids") == sorted(memory.ids())


def test_a_state_that_is_asked_for_stays(tmp_path, backbone, memory):
    with opened(tmp_path, backbone) as writer, opened(tmp_path, backbone, follow=False) as staying:
        writer.add(topics(2))
        assert staying.stats().documents == 0
        staying.refresh()
        assert staying.stats().documents == 2


@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_adding_again_what_a_lost_bank_held_is_not_called_unchanged(tmp_path, backbone, what):
    import shutil

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


def test_a_memory_stays_in_its_folder(tmp_path, backbone, adapter, monkeypatch):
    from msa_plugin.memory import LatentMemory

    for name in "ab":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with LatentMemory.open("bank", model=backbone, adapter=adapter) as memory:
        memory.add({"id": "one", "text": "one"})
        monkeypatch.chdir(tmp_path / "b")
        memory.add({"id": "two", "text": "two"})
    assert not list((tmp_path / "b").iterdir())
    with LatentMemory.open(tmp_path / "a" / "bank", model=backbone, adapter=adapter) as memory:
        assert sorted(memory.ids()) == ["one", "two"] and memory.verify().ok
