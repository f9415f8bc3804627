"""The command line: results on stdout, notes on stderr, exit codes, help."""

# ruff: noqa: F811 - fixtures are imported
import errno
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli_fixtures import filled, msa, process, saved, where  # noqa: F401 - fixtures
from facade import about, topics
from msa_plugin import __version__
from msa_plugin.cli.bank import model_name
from msa_plugin.cli.output import Output, size
from msa_plugin.memory import LatentMemory
from msa_plugin.stems import marked

COMMANDS = [
    ("add",), ("ask",), ("retrieve",), ("shell",), ("delete",), ("calibrate",), ("demo",),
    ("bank", "info"), ("bank", "verify"), ("bank", "compact"), ("bank", "snapshot"),
    ("bench", "retrieval"), ("bench", "scale"), ("bench", "report"),
]  # fmt: skip


def test_add_takes_files_folders_and_standard_input(msa, where):
    (where / "docs").mkdir()
    (where / "docs" / "b.md").write_text("# Bees\n\n" + about("beekeeping"))
    (where / "docs" / "c.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe\xfd not read")
    (where / "a.txt").write_text(about("violin"))
    code, out, err = msa("add", "a.txt", "docs", "-", "--json", stdin=about("glacier").encode())
    report = json.loads(out)
    assert code == 0
    assert len(report["added"]) == 3 and {"a.txt", "b.md"} < set(report["added"])
    assert "opening bank" in err and [path for path, _ in report["skipped"]] == ["docs/c.csv"]
    code, out, _ = msa("add", "a.txt", "docs")
    assert code == 0 and out.startswith("0 added, 0 updated, 2 unchanged") and "0 tokens" in out
    (where / "a.txt").write_text(about("saffron"))
    (where / "docs" / "empty.txt").write_text(" ")
    code, out, _ = msa("add", "a.txt", "docs")
    assert "0 added, 1 updated, 1 unchanged, 2 left out" in out and "empty.txt" in out and "c.csv" in out


def test_add_reads_json_lines_from_standard_input(msa):
    lines = b'{"id": "a", "text": "one", "year": 3}\n\n{"text": "two"}\n'
    code, out, _ = msa("add", "-", "--stdin-format", "jsonl", "--json", stdin=lines)
    assert code == 0 and "a" in json.loads(out)["added"] and len(json.loads(out)["added"]) == 2
    assert json.loads(msa("retrieve", "one", "--filter", '{"year": 3}', "--json")[1])[0]["id"] == "a"


def test_retrieve_lists_hits(filled):
    code, out, _ = filled("retrieve", about("glacier"), "-k", "2")
    assert code == 0 and len(out.splitlines()) == 4 and "[glacier" in out and about("glacier") in out
    assert filled("retrieve", "glacier", "-k", "1", "--by", "passage")[1].count("characters 0 to") == 1
    code, out, _ = filled("retrieve", "glacier", "--json", "--filter", '{"number": {"$gte": 1}}')
    hits = json.loads(out)
    assert {h["id"] for h in hits} == {"beekeeping", "glacier"}
    assert {"id", "score", "text", "title", "metadata", "layer_scores"} <= set(hits[0])


def test_words_of_the_question_are_marked_in_any_form_where_there_is_a_terminal(capsys):
    text = "The mills of Orm: milling [b] is THE\x1b trade."
    spans = marked(text, "Who built the mill?")
    assert [text[start:end] for start, end in spans] == ["mills", "milling"]
    out = Output(as_json=False)
    out.say_marked(text, spans)
    assert capsys.readouterr().out == "The mills of Orm: milling [b] is THE\ufffd trade.\n"
    out.console = Console(force_terminal=True, soft_wrap=True, highlight=False, emoji=False)
    out.say_marked(text, spans)
    assert "\x1b[1mmills\x1b[0m of" in capsys.readouterr().out


def test_ask_answers_with_sources(filled):
    code, out, err = filled("ask", "the glacier", "--max-new-tokens", "6", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["trace"]["new_tokens"] <= 6 and answer["sources"]
    code, out, err = filled("ask", "the glacier", "--max-new-tokens", "6", "--rounds", "1")
    assert code == 0 and out.startswith(answer["text"]) and "round 1" in out and "decode" in out
    assert "opening" in err and "opening" not in out
    assert filled("ask", "glacier", "--filter", '{"number": 99}')[0] == 1
    one, two = (filled("ask", "x", "--temperature", "2", "--max-new-tokens", "24")[1] for _ in range(2))
    assert one != two


def test_namespaces_from_the_shell(filled, where):
    (where / "other.txt").write_text("another")
    assert filled("add", "other.txt", "-n", "private")[0] == 0
    assert [h["id"] for h in json.loads(filled("retrieve", "x", "-n", "private", "--json")[1])] == ["other.txt"]
    assert len(json.loads(filled("retrieve", "x", "--json")[1])) == 3
    assert json.loads(filled("bank", "info", "--json")[1])["namespaces"] == ["default", "private"]


def test_delete_needs_no_model(filled, monkeypatch):
    monkeypatch.setenv("MSA_MODEL", "/no/such/model")
    code, out, _ = filled("delete", "glacier", "nobody", "--json")
    assert code == 0 and json.loads(out) == {"deleted": ["glacier"], "missing": ["nobody"]}
    code, out, _ = filled("delete", "glacier")
    assert code == 1 and "not there: glacier" in out


def test_bank_commands_need_no_model(filled, monkeypatch, where):
    monkeypatch.setenv("MSA_MODEL", "/no/such/model")
    info = json.loads(filled("bank", "info", "--json")[1])
    assert info["documents"] == 3 and info["fingerprint"]["window"] == 2048 and info["bytes_total"] > 0
    code, out, _ = filled("bank", "info")
    assert code == 0 and "documents 3" in out and "made with a model that no adapter here is for" in out
    assert model_name("7d6cbd88e1b1e631e4b5699087afb17b") == "SmolLM2-135M-Instruct"
    assert json.loads(filled("bank", "snapshot", "one", "--json")[1]) == {"snapshots": ["one"]}
    assert filled("bank", "snapshot", "one")[0] == 1
    assert filled("bank", "snapshot", "bad name")[0] == 1
    assert "one" in filled("bank", "snapshot")[1]
    assert json.loads(filled("bank", "snapshot", "one", "--drop", "--json")[1]) == {"snapshots": []}
    assert filled("bank", "snapshot", "--drop")[0] == 2
    filled("bank", "snapshot", "kept")
    filled("delete", "glacier")
    code, out, _ = filled("bank", "compact")
    assert code == 0 and "snapshot kept still holds 1 documents that were deleted" in out
    assert json.loads(filled("bank", "compact", "--json")[1])["held"] == {"kept": 1}
    filled("bank", "snapshot", "kept", "--drop")
    sizes = json.loads(filled("bank", "compact", "--json")[1])
    assert sizes["bytes_after"] < sizes["bytes_before"]
    assert json.loads(filled("bank", "info", "--json")[1])["deleted"] == 0


def test_verify_exits_with_one_when_something_is_damaged(filled, where):
    code, out, _ = filled("bank", "verify", "--json")
    assert code == 0 and json.loads(out)["ok"] is True
    [segment] = where.glob("bank/segments/*/keys.safetensors")
    segment.write_bytes(segment.read_bytes()[:-8] + b"damaged!")
    code, out, _ = filled("bank", "verify", "--json")
    assert code == 1 and json.loads(out)["ok"] is False and "keys.safetensors" in json.loads(out)["problems"][0]
    code, out, _ = filled("bank", "verify")
    assert code == 1 and "DAMAGED" in out


def test_calibrate_makes_an_adapter_that_other_commands_take(msa, where):
    passages = [json.dumps({"text": about(f"{d['id']} {n}") * 3}) for n in range(12) for d in topics()]
    (where / "passages.jsonl").write_text("\n".join(passages))
    (where / "questions.txt").write_text("\n".join(f"what is {d['id']}?" for d in topics()))
    arguments = ["--layers", "0,2", "--dims", "16", "--pooling", "16", "--questions", "questions.txt"]
    code, out, err = msa("calibrate", "passages.jsonl", "-o", "mine", *arguments, "--json")
    assert code == 0, err
    assert json.loads(out)["config"]["routing"]["layers"] == [0, 2]
    code, out, err = msa("add", "passages.jsonl", "--adapter", "mine", "--bank", "b2")
    assert code == 0, err
    assert msa("retrieve", "what is saffron?", "--adapter", "mine", "--bank", "b2")[0] == 0
    assert msa("retrieve", "what is saffron?", "--bank", "b2")[0] == 1  # made with another adapter


def test_demo_runs_twice_on_the_same_bank(msa):
    code, out, _ = msa("demo", "--questions", "1", "--json")
    first = json.loads(out)
    assert code == 0 and len(first["answers"]) == 1 and len(first["add"]["added"]) == first["stats"]["documents"]
    code, out, _ = msa("demo", "--questions", "1")
    assert code == 0 and "0 documents read; " in out and "known already" in out and "needed)" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "no such file.txt"],
        ["add", "docs.jsonl", "--reading", "aloud"],
        ["add", "-", "--stdin-format", "xml"],
        ["retrieve", "x", "-k", "-3"],
        ["retrieve", "x", "--by", "sentence"],
        ["demo", "--reading", "aloud"],
        ["retrieve", "x", "--filter", "{"],
        ["retrieve", "x", "--filter", "[]"],
        ["retrieve", "x", "--filter", '{"$no": 1}'],
        ["ask", "x", "--max-new-tokens", "0"],
        ["ask", "x", "--temperature", "-1"],
        ["ask"],
        ["ask", "x", "--no-such-option"],
        ["calibrate", "docs.jsonl", "--layers", "a,b"],
        ["calibrate", "docs.jsonl", "--dims", "0"],
        ["calibrate", "docs.jsonl", "--questions", "none"],
        ["bench", "scale", "--out", "o", "--sizes", "10,x"],
        ["bench", "latency", "--out", "o", "--repeats", "0"],
        ["bank"],
        ["no such command"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_two(filled, arguments):
    code, _, err = filled(*arguments)
    assert code == 2 and (err or arguments == ["bank"])
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["retrieve", "x", "--bank", "nowhere"],
        ["delete", "x", "--bank", "nowhere"],
        ["bank", "info", "--bank", "nowhere"],
        ["bank", "verify", "--bank", "nowhere"],
        ["bank", "compact", "--bank", "nowhere"],
        ["bank", "snapshot", "s", "--bank", "nowhere"],
        ["ask", "x", "--snapshot", "nobody"],
        ["retrieve", "x", "--snapshot", "nobody"],
        ["shell", "--bank", "nowhere"],
        ["shell", "--namespace", "empty"],
        ["add", "docs.jsonl", "--model", "./nowhere"],
        ["add", "docs.jsonl", "--adapter", "nowhere"],
        ["retrieve", "x", "--reading", "kv"],
    ],
    ids=" ".join,
)
def test_what_fails_exits_with_one_and_creates_nothing(filled, where, arguments):
    code, out, err = filled(*arguments)
    assert code == 1
    assert "error: " in err or "nowhere" in out
    assert "Traceback" not in err
    assert not (where / "nowhere").exists()


def test_text_is_printed_as_it_is_but_for_what_a_terminal_obeys(msa):
    text = "\x1b[2J\x9b31m [bold]x[/bold] :smile: \u202f \ufffd"
    line = json.dumps({"id": "a", "text": "y", "title": "t :smile: [red]"}).encode()
    assert msa("add", "-", "--stdin-format", "jsonl", stdin=line)[0] == 0
    out = msa("retrieve", "y")[1]
    assert "[a] " in out and "t :smile: [red]" in out
    code, out, err = msa("delete", text, "\udcff")
    assert code == 1 and "\x1b" not in out and "\x9b" not in out and "[bold]x[/bold] :smile:" in out
    code, out, err = msa("delete", text, "\udcff", "--json")
    assert json.loads(out)["missing"] == [text, "\udcff"]
    code, out, err = msa("add", "no [bold] \x1b[2J such")
    assert code == 2 and "no [bold] " in err and "\x1b[2J" not in err


@pytest.mark.slow
def test_a_process_keeps_stdout_for_json(where):
    (where / "a.txt").write_text("é" + about("violin"))
    added = process("-v", "add", "a.txt", "--json")
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["added"] == ["a.txt"]
    assert b"opening bank" in added.stderr and b"\x1b[" not in added.stderr + added.stdout
    info = process("bank", "info", "--json")
    assert info.returncode == 0 and json.loads(info.stdout), info.stderr
    failed = process("ask", "x", "--bank", "nowhere", "--json")
    assert failed.returncode == 1 and failed.stdout == b"" and failed.stderr.startswith(b"error: ")


def test_a_narrow_encoding_loses_no_answer(msa, monkeypatch):
    assert msa("add", "-", "--stdin-format", "jsonl", stdin='{"id": "é", "text": "€ 5"}'.encode())[0] == 0
    for arguments in (("retrieve", "x"), ("retrieve", "x", "--json")):
        narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", narrow)
            assert msa(*arguments)[0] == 0
        narrow.flush()
        printed = narrow.buffer.getvalue().decode("ascii")
        assert json.loads(printed)[0]["id"] == "é" if "--json" in arguments else "[?]" in printed


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(errno.EPIPE, "gone"), 1)])
def test_being_interrupted_is_quiet(filled, monkeypatch, error, code):
    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(LatentMemory, "retrieve", stop)
    exited, out, err = filled("retrieve", "x")
    assert (exited, out) == (code, "") and "Traceback" not in err


def loaded_by(*arguments):
    """What a command says, and which of the heavy libraries it imports, in a process of its own."""
    code = (
        "import sys, contextlib; from msa_plugin.cli import main; sys.argv = ['msa', *sys.argv[1:]]\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'numpy', 'safetensors'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, done.stdout.splitlines()[-1]


def test_help_is_light_and_names_every_command():
    said, loaded = loaded_by("--help")
    assert loaded == "[]" and all(command[0] in said for command in COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["bank", "info"], ["bank", "info", "--json"], ["bank", "snapshot"], ["retrieve", "x", "-n", "empty"]],
    ids=" ".join,
)
def test_what_reads_no_latents_loads_no_torch(filled, where, arguments):
    assert loaded_by(*arguments, "--bank", str(where / "bank"))[1] == "[]"


def test_version(msa):
    assert msa("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_shows_an_example(msa, command):
    code, out, _ = msa(*command, "--help")
    assert code == 0 and f"Example: msa {' '.join(command)}" in " ".join(out.split())


def test_sizes_for_people():
    assert [size(n) for n in (0, 1023, 1024, 1536, 5 << 30, 5000 << 30)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB", "5000.0 GiB",
    ]  # fmt: skip


def test_the_script_is_installed():
    script = Path(sys.executable).with_name("msa")
    if not script.exists():
        pytest.skip("the package is not installed: pip install -e .")
    assert subprocess.run([script, "--help"], capture_output=True).returncode == 0
