"""`msa shell`: many questions of one memory; and what commands say before anything is loaded."""

# ruff: noqa: F811 - fixtures are imported
import json
import sys

import pytest

from cli_fixtures import filled, msa, process, saved, where  # noqa: F401 - fixtures
from facade import about
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory


def test_questions_from_a_pipe(filled):
    asked = ["/help", about("glacier"), "", f"/find {about('lighthouse')}", "/nonsense"]
    lines = [*asked, '/filter {"number": 99}', "/find x", "/quit", "no"]
    code, out, err = filled("shell", stdin="\n".join(lines).encode())
    assert code == 0 and "/find QUESTION" in out and "[glacier]" in out and "[lighthouse]" in out
    assert "there is no /nonsense" in out
    assert 'only documents that fit {"number": 99}' in out
    assert 'nothing found: no document passes the filter {"number": 99}' in out
    assert "opening" in err and "msa>" not in out


def test_an_error_does_not_end_it(filled):
    code, out, err = filled("shell", stdin=b'/filter {\n/filter {"$no": 1}\nx\n/filter\n/find glacier\n')
    assert code == 0 and err.count("error: ") == 2 and "[glacier]" in out


def test_results_as_json(filled):
    code, out, _ = filled("shell", "--json", stdin=b"glacier\n/find glacier\n")
    answer, hits = json.loads(out)
    assert code == 0 and answer["sources"] and {hit["id"] for hit in hits} == {"lighthouse", "beekeeping", "glacier"}


def test_ctrl_c_stops_an_answer_and_not_the_shell(filled, monkeypatch):
    stream = LatentMemory.stream
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return stream(self, *args, **kwargs)

    monkeypatch.setattr(LatentMemory, "stream", interrupted)
    code, out, _ = filled("shell", stdin=b"one\ntwo\n")
    assert code == 0 and "stopped" in out and len(calls) == 2 and "[" in out


@pytest.mark.slow
def test_it_sees_what_others_store(filled, where, monkeypatch):
    retrieve, seen = LatentMemory.retrieve, []

    def adding(self, *args, **kwargs):
        if not seen:
            seen.append(process("add", "late.txt"))
        return retrieve(self, *args, **kwargs)

    (where / "late.txt").write_text("something late")
    monkeypatch.setattr(LatentMemory, "retrieve", adding)
    code, out, _ = filled("shell", stdin=b"/find late\n/find late\n")
    assert code == 0 and seen[0].returncode == 0 and "[late.txt]" in out


def test_a_snapshot_is_asked(filled):
    assert filled("bank", "snapshot", "before")[0] == 0
    assert filled("delete", "glacier")[0] == 0
    assert "[glacier]" in filled("retrieve", about("glacier"), "--snapshot", "before")[1]
    assert "[glacier]" in filled("shell", "--snapshot", "before", stdin=b"/find glacier\n")[1]
    assert "[glacier]" not in filled("retrieve", about("glacier"))[1]
    code, out, _ = filled("ask", about("glacier"), "--snapshot", "before", "--max-new-tokens", "2")
    assert code == 0 and "[glacier]" in out
    code, _, err = filled("ask", "x", "--snapshot", "befor")
    assert code == 1 and "no snapshot named 'befor'; there are: before" in err


@pytest.mark.parametrize(
    ("arguments", "exits", "words"),
    [
        (["ask", "x", "--reading", "latend"], 2, "did you mean 'latent'?"),
        (["add", "docs.jsonl", "--stdin-format", "jsnol"], 2, "did you mean 'jsonl'?"),
        (["ask", " "], 2, "a question must have something in it"),
        (["retrieve", ""], 2, "a question must have something in it"),
        (["retrieve", "x", "-k", "0"], 2, "greater than or equal to 1"),
        (["ask", "x", "-b", "nowhere"], 1, "holds no memory bank"),
        (["ask", "x", "-n", "empty"], 1, "the memory holds no document in namespace 'empty'"),
        (["add", "docs.jsonl", "--encoding", "cp1225"], 2, "did you mean 'cp1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_before_anything_is_loaded(filled, monkeypatch, arguments, exits, words):
    monkeypatch.setattr("msa_plugin.memory.LatentMemory.open", lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.setattr("msa_plugin.backbone.backbone.Backbone.load", lambda *args, **kwargs: pytest.fail("loaded"))
    code, out, err = filled(*arguments)
    assert code == exits and words in " ".join((out + err).replace("│", "").split())


def test_nothing_found_says_why(filled):
    code, out, _ = filled("retrieve", "x", "--filter", '{"number": 99}')
    assert code == 0 and out == 'nothing found: no document passes the filter {"number": 99}\n'
    assert json.loads(filled("retrieve", "x", "--filter", '{"number": 99}', "--json")[1]) == []
    code, out, _ = filled("retrieve", "x", "-n", "empty")
    assert code == 0 and out.startswith("nothing found: the memory holds no document in namespace 'empty'")


def test_settings_that_do_not_exist_name_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no setting 'topk'; did you mean 'top_k'"):
        LatentMemory.open(tmp_path / "bank", topk=3)
    with pytest.raises(ConfigError, match=r"reading: .*not 'latend'; did you mean 'latent'"):
        LatentMemory.open(tmp_path / "bank", reading="latend")
    with pytest.raises(ConfigError, match=r"there is no setting 'max_round'; did you mean 'max_rounds'"):
        LatentMemory.open(tmp_path / "bank", interleave={"max_round": 3})
    assert not (tmp_path / "bank").exists()


def test_a_disk_that_refuses_is_one_line(filled, where, monkeypatch):
    def refuses(*args, **kwargs):
        raise OSError(28, "No space left on device", str(where / "cache" / "x"))

    monkeypatch.setattr(LatentMemory, "retrieve", refuses)
    code, _, err = filled("retrieve", "x")
    assert code == 1 and "No space left on device" in err and "MSA_CACHE" in err and "Traceback" not in err


def test_history_is_kept_between_sessions(where, monkeypatch):
    readline = pytest.importorskip("readline")
    from msa_plugin.cli.shell import _lines

    answers = iter(["first question", "second"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers, None) or (_ for _ in ()).throw(EOFError))
    readline.clear_history()
    with _lines(interactive=True) as lines:
        for line in lines:
            readline.add_history(line)
    readline.clear_history()
    with _lines(interactive=True) as lines:
        assert next(lines, None) is None
        assert readline.get_history_item(1) == "first question"
    assert (where / "cache" / "shell-history").exists() and sys.stdout is not None
