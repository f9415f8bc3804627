"""Recipes as files, runs of several phases, what they would take, and the command."""

import json
import sys
from collections import namedtuple

import pytest
import torch
from chains import chains, packed_backbone
from safetensors.torch import load_file

from ingest_files import lines
from msa_plugin.cli import main
from msa_plugin.errors import AdapterError, ConfigError, IngestError, TrainingError
from msa_plugin.training import recipe_run
from msa_plugin.training.recipe_run import Data, RecipeRun
from msa_plugin.training.recipes import load_recipe, recipe_names
from tiny import save_tiny, tiny_adapter

RECIPE = """
objective = "packed"
[training]
lr = 1e-3
checkpoint_every = 2
[settings]
name = "tiny"
pooling = 8
id_width = 3
rows = 2
hard = 1
rank = 2
memory_tokens = 200
window = 96
[[phases]]
name = "warm-up"
training = { steps = 3, warmup = 2 }
settings = { lm = 0.1, aux = 1.0 }
[[phases]]
name = "main"
training = { steps = 4 }
"""
ONE = RECIPE.partition("[[phases]]")[0].replace("[training]", "[training]\nsteps = 3")


def write_sets(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        made = chains(6, name)
        rows = [{"id": d.id, "title": d.title, "text": d.text} for d in made.documents]
        asked = [
            {"id": q.id, "question": q.text, "answers": list(q.answers), "positive_ids": list(q.positives), "hops": 2}
            for q in made.questions
        ]
        (folder / name / "corpus.jsonl").write_text(lines(*rows))
        (folder / name / "queries.jsonl").write_text(lines(*asked))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's folder, data and recipes."""
    folder = tmp_path_factory.mktemp("saved")
    save_tiny(folder, packed_backbone())
    write_sets(folder / "data", "a", "b")
    (folder / "two.toml").write_text(RECIPE)
    (folder / "one.toml").write_text(ONE)
    return folder


def run_of(saved, name, **options):
    recipe = load_recipe(str(saved / name))
    return RecipeRun(recipe, packed_backbone(), Data.load(saved / "data", recipe.sets, recipe.seed), **options)


def test_the_packages_own_recipes_are_whole():
    assert {"cpu-small", "gpu-default", "reference"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.about and recipe.plan()


def test_the_papers_schedule():
    phases = {p.name: p for p in load_recipe("reference").plan()}
    assert (phases["warm-up"].training.lr, phases["main"].training.lr) == (1e-4, 6e-6)
    assert [(p.settings.lm, p.settings.aux) for p in phases.values()][:2] == [(0.1, 1.0), (1.0, 0.1)]
    assert [phases[n].settings.memory_tokens for n in ("sft-8k", "sft-64k")] == [8192, 65536]
    assert {(p.settings.trains, p.settings.pooling, p.settings.top_k) for p in phases.values()} == {("all", 64, 16)}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("objective = 1 =", "not TOML"),
        ('objective = "packed"\nunknown = 1', "unknown"),
        ('objective = "magic"', "unknown objective 'magic'; there are"),
        ('objective = "packed"\n[training]\nsteps = 3', "lr"),
        (ONE.replace("rank = 2", "rang = 2"), "rang"),
        (ONE.replace("lr = 1e-3", "lr = -1"), "phase training.*lr"),
        (RECIPE.replace('"main"', '"warm-up"'), "different names"),
    ],
)
def test_a_wrong_recipe_is_told(tmp_path, text, word):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError, match=word):
        load_recipe(str(tmp_path / "r.toml"))


def test_an_unknown_recipe_lists_the_others():
    with pytest.raises(ConfigError, match=r"no recipe 'gpu'; there are cpu-latent, cpu-packed, cpu-reader, cpu-small"):
        load_recipe("gpu")


def test_steps_replace_those_of_every_phase(saved):
    phases = load_recipe(str(saved / "two.toml")).plan(2)
    assert [(p.training.steps, p.training.warmup) for p in phases] == [(2, 1), (2, 0)]


@pytest.mark.slow
def test_phases_go_on_from_each_other(saved, tmp_path):
    done = run_of(saved, "two.toml").train(tmp_path / "out")
    assert done.finished and done.step == 4
    first = load_file(str(tmp_path / "out" / "1-warm-up" / "adapter" / "adapter.safetensors"))
    second = load_file(str(tmp_path / "out" / "2-main" / "checkpoints" / "step-00000002" / "state.safetensors"))
    last = load_file(str(tmp_path / "out" / "adapter" / "adapter.safetensors"))
    for name, start in first.items():
        moved = float((second[f"parameter/{name}"] - start).abs().max())
        assert moved <= 2.1e-3  # two steps of Adam: anywhere else it would have begun afresh
        assert not torch.equal(last[name], start)
    run = json.loads((tmp_path / "out" / "adapter" / "adapter.json").read_text())["provenance"]
    assert run["recipe"] == "two" and run["phase"] == "main" and set(run["data"]) == {"a", "b"}


@pytest.mark.slow
def test_a_stopped_run_repeats_an_uninterrupted_one(saved, tmp_path):
    class Enough(Exception):
        pass

    def stop_in(phase, step):
        def on_phase(name):
            def show(progress):
                if name == phase and progress.documents == step:
                    raise Enough

            return show

        return on_phase

    run_of(saved, "two.toml").train(tmp_path / "whole")
    for phase, step in (("warm-up", 2), ("main", 3)):
        with pytest.raises(Enough):
            run_of(saved, "two.toml").train(tmp_path / "torn", stop_in(phase, step))
    run_of(saved, "two.toml").train(tmp_path / "torn")
    whole, torn = (load_file(str(tmp_path / n / "adapter" / "adapter.safetensors")) for n in ("whole", "torn"))
    assert whole.keys() == torn.keys() and all(torch.equal(whole[n], torn[n]) for n in whole)


@pytest.mark.slow
def test_the_folder_of_another_run_is_refused(saved, tmp_path):
    run_of(saved, "one.toml").train(tmp_path)
    with pytest.raises(TrainingError, match=r"training.steps: it has 3, this one 2"):
        run_of(saved, "one.toml", steps=2).train(tmp_path)
    with pytest.raises(TrainingError, match="holds another training"):
        run_of(saved, "two.toml").train(tmp_path)
    other = write_sets(tmp_path / "data", "a")
    recipe = load_recipe(str(saved / "one.toml"))
    with pytest.raises(TrainingError, match=r"data\.b: it has"):
        RecipeRun(recipe, packed_backbone(), Data.load(other, None, 0)).train(tmp_path)


def test_a_disk_that_is_too_small_is_told_before(saved, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(recipe_run.shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(TrainingError, match=r"checkpoints need .* are free"):
        run_of(saved, "one.toml").train(tmp_path)


def test_data_that_is_not_there(saved, tmp_path):
    with pytest.raises(IngestError, match="not a folder"):
        Data.load(tmp_path / "absent", None, 0)
    with pytest.raises(IngestError, match="lacks the data set 'c'; it holds a, b"):
        Data.load(saved / "data", ("a", "c"), 0)
    assert [c.name for c in Data.load(saved / "data", ("b",), 0).corpora] == ["b"]


def test_an_adapter_of_another_shape_or_backbone_is_refused(saved):
    other = tiny_adapter(packed_backbone(seed=1))
    with pytest.raises(AdapterError, match="made for other weights"):
        run_of(saved, "one.toml", adapter=other)
    with pytest.raises(ConfigError, match="routes otherwise"):
        run_of(saved, "one.toml", adapter=tiny_adapter(packed_backbone())).dry_run()


def test_what_it_would_take(saved):
    found = run_of(saved, "two.toml").dry_run()
    assert [(d["name"], d["passages"], d["retrieval"], d["answers"]) for d in found["data"]] == [
        ("a", 12, 12, 6),
        ("b", 12, 12, 6),
    ]
    first = found["phases"][0]
    attention, mlp = (48 + 64) + 2 * (48 + 32) + (64 + 48), 3 * (48 + 64)
    lora = 2 * 2 * (attention + mlp)  # rank 2 in two layers of four
    assert first["trained_parameters"] == lora + 2 * (64 + 32) * 48
    assert first["micro_batches"] == 3 and first["tokens"] == pytest.approx(
        3 * first["tokens_per_micro_batch"], rel=0.01
    )
    assert found["hours"] >= 0 and found["memory_bytes"] > 8 * first["trained_parameters"]


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["msa", "train", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_the_command(saved, tmp_path, monkeypatch, capsys):
    given = ("--recipe", saved / "one.toml", "--data", saved / "data", "--model", saved / "model")
    code, said, _ = command(monkeypatch, capsys, *given, "--dry-run")
    assert code == 0 and "a: 12 passages; 12 retrieval steps, 6 answers" in said and "parameters train" in said
    code, said, _ = command(monkeypatch, capsys, *given, "--out", tmp_path / "out", "--json")
    result = json.loads(said)
    assert code == 0 and result["finished"] and result["step"] == 3
    assert (tmp_path / "out" / "adapter" / "adapter.json").is_file()
    code, said, _ = command(monkeypatch, capsys, *given, "--out", tmp_path / "out", "--json")
    assert json.loads(said)["tokens"] == result["tokens"]
    for changed in (("--steps", "9"), ("--seed", "9")):
        code, _, told = command(monkeypatch, capsys, *given, "--out", tmp_path / "out", *changed)
        assert code == 1 and "holds another training" in told
    assert load_recipe(str(saved / "one.toml"), seed=9).plan()[0].training.seed == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"--recipe": "none"}, "there are cpu-latent, cpu-packed, cpu-reader, cpu-small"),
        ({"--data": "absent"}, "is not a folder"),
        ({"--out": None}, "--out names the folder"),
        ({"--adapter": "absent"}, "cannot read an adapter"),
    ],
)
def test_wrong_use_of_the_command(saved, tmp_path, monkeypatch, capsys, changes, word):
    given = {"--recipe": saved / "one.toml", "--data": saved / "data", "--model": saved / "model", "--out": tmp_path}
    words = [w for name, value in {**given, **changes}.items() if value is not None for w in (name, value)]
    code, _, told = command(monkeypatch, capsys, *words)
    assert code in (1, 2) and word in " ".join(told.split())


def test_an_empty_set_is_told(saved, tmp_path, monkeypatch, capsys):
    folder = write_sets(tmp_path / "data", "a") / "a"
    (folder / "queries.jsonl").write_text("")
    words = ("--recipe", saved / "one.toml", "--data", folder, "--model", saved / "model", "--out", tmp_path / "out")
    code, _, told = command(monkeypatch, capsys, *words)
    assert code == 2 and "no question is left" in " ".join(told.split()) and not (tmp_path / "out").exists()
