"""Every command that takes --namespace, attacked from the shell: its output is as if the other tenant did not exist."""

import json
import shutil

import click
import pytest
import typer.main
from tenants import ACME, BOLT, BREAKOUTS, GUESSED, QUESTION, leaks, of_acme, of_bolt

from cli_fixtures import msa, saved, where  # noqa: F401 - fixtures
from msa_plugin.cli.app import app

SAYS = json.dumps({**of_acme()[0], "id": "ledger"}).encode()  # word for word what ACME stores under that id
FILTERS = [json.dumps(f) for f in BREAKOUTS if "\x00" not in str(f)]
ATTACKS = {
    "add": [["-", "--stdin-format", "jsonl"]],
    "ask": [[QUESTION, "--max-new-tokens", "3"], *([QUESTION, "--max-new-tokens", "2", "-f", f] for f in FILTERS[:3])],
    "retrieve": [[QUESTION, "-k", "50"], *([QUESTION, "-f", f] for f in FILTERS)],
    "shell": [[], *(["-f", f] for f in FILTERS[:3])],
    "delete": [[*GUESSED], ["acme-plan"], ["nobody"], ["%"], ["ledger' OR '1'='1"]],
    "bank info": [[]],
}
# Whoever runs these has the bank's folder: they are about all of it, and `bank info` lists the namespaces.
WHOLE_BANK = {"bank verify", "bank repair", "bank compact", "bank snapshot", "bank migrate"}
OWN_BANKS = {"demo", "calibrate", "train", "average", "relevance"}  # as all under `bench` and `convert`
SERVERS = {"mcp"}  # speaks a protocol: what its tenants see of each other is tested in tests/test_mcp.py


def commands(group=None, path=()):
    """Every command with its parameters, by its words."""
    group = group or typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            found |= commands(command, (*path, name))
        else:
            found[" ".join((*path, name))] = {p.name for p in command.params}
    return found


def test_every_command_that_takes_a_namespace_is_attacked():
    found = {n: p for n, p in commands().items() if not n.startswith("bench ")}
    takes = {n for n, p in found.items() if "namespace" in p} - SERVERS
    assert takes == set(ATTACKS)
    left = {n for n, p in found.items() if "bank" in p} - takes - OWN_BANKS - SERVERS
    assert left <= WHOLE_BANK, "a command that opens a bank takes --namespace, or is about the whole of it"
    assert {n for n in found if " " not in n} <= takes | OWN_BANKS | SERVERS


@pytest.fixture
def worlds(msa, where):  # noqa: F811
    """Two banks: ./shared, which ACME has documents in too, and ./alone."""
    for bank in ("shared", "alone"):
        for tenant, documents in ((ACME, of_acme()), (BOLT, of_bolt())):
            if tenant == BOLT or bank == "shared":
                lines = "\n".join(json.dumps(d) for d in documents).encode()
                assert msa("add", "-", "--stdin-format", "jsonl", "-b", bank, "-n", tenant, stdin=lines)[0] == 0
    return where


def seen(msa, bank, name, arguments):  # noqa: F811
    """Exit code and output, as text and as JSON, without what is about the whole bank and without seconds."""
    results = []
    for form in ([], ["--json"]):
        shutil.copytree(bank, "bank", dirs_exist_ok=False)
        said = f"/find {QUESTION}\n/filter {FILTERS[0]}\n/find x\n".encode() if name == "shell" else SAYS
        code, out, err = msa(*name.split(), *arguments, "-b", "bank", "-n", BOLT, *form, stdin=said)
        shutil.rmtree("bank")
        if form:
            out = without(json.loads(out)) if out else out
        elif name in ("add", "ask"):
            out = out.rsplit(" in ", 1)[0].split("\n  encode")[0]  # seconds
        elif name == "bank info":
            out = out.splitlines()[1]  # the lines after it are about the whole bank
        results.append((code, out, err))
    return results


def without(value):
    """JSON without seconds, ordinals, and sizes and names of the whole bank."""
    if isinstance(value, dict):
        left_out = ("seconds", "ordinal", "namespaces", "segments")
        return {k: without(v) for k, v in value.items() if k not in left_out and not k.startswith("bytes")}
    return [without(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ATTACKS)
def test_a_command_of_one_tenant_shows_nothing_of_another(worlds, msa, name):  # noqa: F811
    for arguments in ATTACKS[name]:
        shared, alone = (seen(msa, bank, name, arguments) for bank in ("shared", "alone"))
        assert shared == alone
        assert leaks(repr(shared), repr([arguments, "acme-plan"])) == []


@pytest.mark.parametrize("name", ["", "\udcff"])
def test_what_is_no_namespace_is_a_message(worlds, msa, name):  # noqa: F811
    for command in (["delete", "ledger"], ["retrieve", "x"], ["ask", "x"], ["bank", "info"]):
        code, out, err = msa(*command, "-b", "shared", "-n", name)
        assert code in (1, 2) and out == "" and "namespace" in err and "Traceback" not in err
