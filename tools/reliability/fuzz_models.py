"""What is fuzzed of models and banks: adapters, checkpoints, backbones, and banks made by somebody else."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from fuzz_mutate import ESCAPES, hostile_value, mutated_json, mutated_safetensors
from fuzz_targets import Target

import reference_checkpoint
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.convert import from_reference, to_reference
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.catalog import read_fingerprint
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.verify import sha256_file, verify_bank
from msa_plugin.errors import MSAError
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter, tiny_backbone, tiny_model, tiny_tokenizer

NAMES = ("config.json", "model.safetensors", "model.safetensors.index.json", "msa_plugin.json", "adapter.json")


def mutate_file(rng: Random, path: Path) -> None:
    """Change one file for the worse, in the way that its format suggests."""
    data = path.read_bytes()
    path.write_bytes(mutated_json(rng, data) if path.suffix == ".json" else mutated_safetensors(rng, data))


class AdapterFiles(Target):
    """An adapter: loaded, fitted to a backbone, and used for a document and a question if it is accepted."""

    name = "adapter"

    def prepare(self, spare: Path) -> None:
        self.backbone, self.valid = tiny_backbone(), []
        per_layer = {"selection": "per_layer", "layers": (2, 3), "heads": 4, "kv_heads": 2, "head_dim": 16}
        variants: tuple[dict[str, Any], ...] = ({}, {"token_weighted": True}, {**per_layer, "query_reduce": "max"})
        for number, variant in enumerate((*variants, {**per_layer, "query_reduce": "max", "source": "attention"})):
            tiny_adapter(self.backbone, **variant).save(spare / str(number))
            self.valid.append(spare / str(number))

    def write(self, rng: Random, folder: Path) -> None:
        shutil.copytree(rng.choice(self.valid), folder / "adapter")
        mutate_file(rng, folder / "adapter" / rng.choice(("adapter.json", "adapter.json", "adapter.safetensors")))

    def read(self, folder: Path) -> None:
        with LatentMemory.open(folder / "bank", model=self.backbone, adapter=folder / "adapter", window=64) as memory:
            memory.add({"id": "a", "text": "spruce and glass"})
            memory.retrieve("glass", 1)
            memory.ask("glass?", max_new_tokens=1)


class Checkpoint(Target):
    """A checkpoint in the reference's format, opened as a model, used, and converted."""

    name = "checkpoint"

    def prepare(self, spare: Path) -> None:
        # What hostile names point to exists and is sound, so that following them would succeed.
        outside = reference_checkpoint.write(spare.parent / "outside")
        self.valid = [outside, reference_checkpoint.write(spare / "sharded", shards=2)]
        for folder in self.valid:
            (folder / "generation_config.json").write_text('{"eos_token_id": [2], "pad_token_id": 0}')
            (folder / "msa_plugin.json").write_text('{"name": "x", "abilities": {"route": true}, "measured": {}}')

    def write(self, rng: Random, folder: Path) -> None:
        shutil.copytree(rng.choice(self.valid), folder / "model")
        files = [p for p in sorted((folder / "model").iterdir()) if p.suffix in (".json", ".safetensors")]
        mutate_file(rng, rng.choice([p for p in files if p.name in NAMES] if rng.random() < 0.8 else files))

    def read(self, folder: Path) -> None:
        backbone = Backbone.load(str(folder / "model"), device="cpu", dtype="float32")
        with LatentMemory.open(folder / "bank", model=backbone, window=64) as memory:
            memory.add({"id": "a", "text": "spruce and glass"})
            memory.ask("glass?", max_new_tokens=1)
        from_reference(folder / "model", folder / "plain")


class Plain(Target):
    """A folder with a stock model: config, tokenizer, weights."""

    name = "backbone"

    def prepare(self, spare: Path) -> None:
        self.valid = spare / "plain"
        tiny_model("qwen3", tie_word_embeddings=True).save_pretrained(self.valid)
        tiny_tokenizer().save_pretrained(self.valid)

    def write(self, rng: Random, folder: Path) -> None:
        shutil.copytree(self.valid, folder / "model")
        files = [p for p in sorted((folder / "model").iterdir()) if p.suffix in (".json", ".safetensors")]
        mutate_file(rng, rng.choice(files))
        if rng.random() < 0.1:  # code that a loader might be talked into running
            raw = {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"}}
            raw |= (
                {"model_type": "evil"} if rng.random() < 0.5 else json.loads((self.valid / "config.json").read_text())
            )
            (folder / "model" / "config.json").write_text(json.dumps(raw))
            (folder / "model" / "evil.py").write_text("import os; os.system('true')")

    def read(self, folder: Path) -> None:
        backbone = Backbone.load(str(folder / "model"), device="cpu", dtype="float32")
        backbone.detokenize(backbone.tokenize("glass <|im_end|>"))


class Exported(Target):
    """A model and a hostile adapter, written in the reference's format."""

    name = "export"

    def prepare(self, spare: Path) -> None:
        from_reference(reference_checkpoint.write(spare / "checkpoint"), spare / "valid")
        self.valid = spare / "valid"

    def write(self, rng: Random, folder: Path) -> None:
        shutil.copytree(self.valid, folder / "valid")
        mutate_file(rng, folder / "valid" / "adapter" / "adapter.json")

    def read(self, folder: Path) -> None:
        to_reference(folder / "valid" / "backbone", Adapter.load(folder / "valid" / "adapter"), folder / "out")


class Bank(Target):
    """A bank whose catalog lies, with sizes, checksums and structure sums made to fit."""

    name = "bank"
    tables = ("segments", "documents", "texts", "meta", "snapshots", "sqlite_sequence")

    def prepare(self, spare: Path) -> None:
        self.valid = spare / "bank"
        backbone = tiny_backbone()
        with LatentMemory.open(self.valid, model=backbone, adapter=tiny_adapter(backbone), reading="kv") as memory:
            memory.add([{"id": "a", "text": "spruce"}, {"id": "b", "text": "glass", "metadata": {"n": 1}}])
            memory.snapshot("first")
            memory.delete("a")
        self.fingerprint = read_fingerprint(self.valid)
        [self.segment] = [p for p in (self.valid / "segments").iterdir() if p.is_dir()]
        # What a hostile name points to is a sound segment, so that following it would succeed.
        shutil.copytree(self.segment, spare.parent / "outside")

    def write(self, rng: Random, folder: Path) -> None:
        shutil.copytree(self.valid, folder / "bank")
        with sqlite3.connect(folder / "bank" / "catalog.sqlite") as db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            kind = rng.randrange(10)
            if kind < 5:
                self._lie(rng, db)
            elif kind < 6:
                self._scheme(rng, db)
            else:
                self._tensors(rng, db, folder / "bank" / "segments" / self.segment.name)
        db.close()
        (folder / "bank" / "catalog.seal").unlink(missing_ok=True)  # as somebody who means it would

    def _lie(self, rng: Random, db: sqlite3.Connection) -> None:
        table = rng.choice(self.tables)
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")] or ["seq", "name"]
        value = rng.choice((*ESCAPES, "../../../outside")) if rng.random() < 0.3 else hostile_value(rng)
        if not isinstance(value, str | int | float | None) or (isinstance(value, int) and abs(value) >= 2**63):
            value = json.dumps(value, default=str)
        column = rng.choice(columns)
        try:
            db.execute(f"UPDATE {table} SET {column} = ?", (value,))
        except (sqlite3.Error, UnicodeEncodeError):  # a constraint that holds whoever writes, or a lone surrogate
            db.execute(f"DELETE FROM {table}")

    @staticmethod
    def _scheme(rng: Random, db: sqlite3.Connection) -> None:
        db.execute(
            rng.choice(
                (
                    "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM texts; END",
                    "CREATE TRIGGER t AFTER INSERT ON documents BEGIN UPDATE texts SET text = 'x'; END",
                    "ALTER TABLE documents RENAME TO other",
                    "ALTER TABLE documents ADD COLUMN more TEXT",
                    "DROP TABLE snapshots",
                    "CREATE VIEW v AS SELECT * FROM documents",
                )
            )
        )
        if rng.random() < 0.3 and db.execute("SELECT 1 FROM sqlite_master WHERE name = 'other'").fetchone():
            many = (
                "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n AS ordinal, '' AS id FROM c"
            )
            db.execute(f"CREATE VIEW documents AS {many}")

    @staticmethod
    def _tensors(rng: Random, db: sqlite3.Connection, segment: Path) -> None:
        for file, part, sums in (
            ("keys.safetensors", "keys", ("ordinals", "key_offsets")),
            ("content.safetensors", "content", ("content_offsets",)),
        ):
            path = segment / file
            if rng.random() < 0.7:
                path.write_bytes(mutated_safetensors(rng, path.read_bytes()))
            data = path.read_bytes()
            size = int.from_bytes(data[:8], "little")
            structure = zlib.crc32(data[8 : 8 + size], zlib.crc32(data[:8]))
            try:
                header = json.loads(data[8 : 8 + size])
                for name in sums:
                    start, end = header[name]["data_offsets"]
                    structure = zlib.crc32(data[8 + size + start : 8 + size + end], structure)
            except (ValueError, KeyError, TypeError, RecursionError):
                structure = 0
            sql = f"UPDATE segments SET {part}_bytes = ?, {part}_sha256 = ?, {part}_structure = ?"
            db.execute(sql, (len(data), sha256_file(path), structure))

    def read(self, folder: Path) -> None:
        path, refused = folder / "bank", []
        verify_bank(path)
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._look(path, None),
            lambda: self._look(path, "first"),
            lambda: self._change(path),
            lambda: repair_bank(path),
        )
        for step in steps:
            try:
                step()
            except MSAError as error:  # noqa: PERF203
                refused.append(error)
        if refused:
            raise refused[0]

    def _look(self, path: Path, snapshot: str | None) -> None:
        with MemoryBank.open(path, self.fingerprint, create=False, read_only=True, snapshot=snapshot) as bank:
            selection = bank.select("default", {"n": {"$gt": 0}})
            selection = bank.select("default")
            for keys, offsets, *_ in selection.key_blocks("shared"):
                [keys[int(start) : int(end)].float().sum() for start, end in pairwise(offsets)]
            ordinals = selection.ordinals().tolist()
            bank.documents(ordinals)
            [bank.latents(ordinal) for ordinal in ordinals]
            [*bank.iter_ids("default"), bank.stats("default"), bank.lookup(["b"], "default")]

    def _change(self, path: Path) -> None:
        with MemoryBank.open(path, self.fingerprint, create=False) as bank:
            bank.delete(["b"], "default")
            bank.drop_snapshot("first")
            bank.compact()


MODELS = (AdapterFiles, Checkpoint, Plain, Exported, Bank)
