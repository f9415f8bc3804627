"""What is fuzzed: one class a reader, which writes a hostile input into a folder and reads it as the product does."""

from __future__ import annotations

import gzip
import io
import json
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from fuzz_mutate import (
    ESCAPES,
    json_bytes,
    mutate_bytes,
    mutate_json,
    mutated_json,
    mutated_lines,
    mutated_table,
)

from msa_plugin import config
from msa_plugin.backbone.adapter import AdapterConfig
from msa_plugin.bench.store import Results
from msa_plugin.data.datasets import dataset_hash, find_datasets, load_dataset, load_distractors
from msa_plugin.ingest import read_paths
from msa_plugin.types import Document
from test_ingest_pdf import pdf

RECORDS = [
    {"_id": "a", "title": "One", "text": "first", "metadata": {"year": 1, "tags": ["x", {"y": None}]}},
    {"id": 2, "text": "second", "source": "s"},
    {"text": "third"},
]


def lines(records: list[dict]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


class Target(ABC):
    """A reader. `prepare` runs once; `write` makes the input, `read` is what must not go wrong."""

    name = ""

    def prepare(self, spare: Path) -> None:  # noqa: B027 - most have nothing to prepare
        """Build what inputs are made of, in a folder that inputs do not touch."""

    @abstractmethod
    def write(self, rng: Random, folder: Path) -> None:
        """Write one hostile input into an empty folder."""

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Read it."""


class Files(Target):
    """Ingest of one kind of file."""

    seeds: tuple[bytes, ...] = ()
    suffix = ""

    def write(self, rng: Random, folder: Path) -> None:
        self.put(folder / f"{rng.choice(('x', 'a b', 'é', '-'))}{self.suffix}", self.mutated(rng))

    def mutated(self, rng: Random) -> bytes:
        return mutate_bytes(rng, rng.choice(self.seeds), self.seeds)

    def put(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def read(self, folder: Path) -> None:
        for given in (folder, *sorted(folder.iterdir())):
            for strictness in ("replace", "strict"):
                for document in read_paths([given], encoding_errors=strictness):  # type: ignore[arg-type]
                    Document.of(document)


class Text(Files):
    name, suffix = "text", ".txt"
    seeds = ("plain\r\ntext \u2028 é\n".encode(), "\ufefftext".encode("utf-16"), "text".encode("utf-32"))


class Markdown(Files):
    name, suffix = "markdown", ".md"
    seeds = (b"# Title #\n\ntext\n```\n# code\n```\n", b"~~~\n# x\n~~~\n#\ttitle\n")


class Html(Files):
    name, suffix = "html", ".html"
    seeds = (
        b"<!DOCTYPE html><html><head><title>T &amp; t</title><script>x</script></head><body><h1>H</h1><p>a&#65;b</p>"
        b"<pre> x\n y</pre><table><tr><td>1<td>2</table><![CDATA[x]]><?pi?><br/><template>n</template></body></html>",
        b"<p>&#x41;&notit;&#128;<a href='x>y'>z</a><!-- c -->",
    )


class JsonLines(Files):
    name, suffix = "jsonl", ".jsonl"
    seeds = (lines(RECORDS),)

    def mutated(self, rng: Random) -> bytes:
        return mutated_lines(rng, self.seeds[0])


class ZippedLines(JsonLines):
    name, suffix = "jsonl.gz", ".jsonl.gz"

    def mutated(self, rng: Random) -> bytes:
        zipped = gzip.compress(super().mutated(rng))
        return mutate_bytes(rng, zipped) if rng.random() < 0.5 else zipped


class Pdf(Files):
    name, suffix = "pdf", ".pdf"

    def prepare(self, spare: Path) -> None:
        import pypdf

        plain = pdf("first page", "second page")
        packed = pypdf.PdfWriter(clone_from=io.BytesIO(plain))
        for page in packed.pages:
            page.compress_content_streams()
        out = io.BytesIO()
        packed.write(out)
        self.seeds = (plain, out.getvalue())


class Folder(Files):
    """Links, hidden files, odd names and folders within folders."""

    name = "folder"

    def write(self, rng: Random, folder: Path) -> None:
        for number in range(rng.randint(1, 4)):
            name = rng.choice(("a.txt", ".b.txt", "c\udcff.md", "d.html", "sub/e.jsonl", "f.bin", "g\n.txt", "h.pdf"))
            path = folder / f"{number}{name}"
            path.parent.mkdir(exist_ok=True)
            kind = rng.randrange(4)
            if kind == 0:
                path.symlink_to(rng.choice((*(e for e in ESCAPES[:4]), path.name, "0a.txt", "/dev/zero", "/")))
            elif kind == 1:
                path.mkdir()
            else:
                path.write_bytes(mutate_bytes(rng, lines(RECORDS)))

    def read(self, folder: Path) -> None:
        for document in read_paths([folder]):
            Document.of(document)


class Beir(Target):
    """A data set of the benchmark: corpus, questions, relevance, packed or not; and as distractors."""

    name = "beir"
    files: ClassVar[Any] = {
        "corpus.jsonl": lines(RECORDS[:2]),
        "queries.jsonl": lines([{"_id": "q1", "text": "which?", "answers": ["x"], "hops": 2, "positive_ids": ["a"]}]),
        "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\t2\t0\n",
    }

    def write(self, rng: Random, folder: Path) -> None:
        hit = rng.choice(list(self.files))
        for name, data in self.files.items():
            path = folder / name
            if name.startswith("qrels") and hit != name and rng.random() < 0.3:
                continue
            path.parent.mkdir(exist_ok=True)
            if name == hit:
                data = mutated_lines(rng, data) if name.endswith("jsonl") else mutated_table(rng, data, b"\t")
            if name.endswith("jsonl") and rng.random() < 0.2:
                data = gzip.compress(data, 1)
                path = path.with_name(path.name + ".gz")
                data = mutate_bytes(rng, data) if name == hit and rng.random() < 0.3 else data
            path.write_bytes(data)

    def read(self, folder: Path) -> None:
        [found] = find_datasets(folder)
        for document in load_distractors(folder, 1000):
            Document.of(document)
        dataset_hash(load_dataset(found))


class Stored(Target):
    """The folder of results of the benchmark: rows, rankings, replies."""

    name = "results"
    rows: ClassVar[Any] = [
        {"part": "qa", "dataset": "d", "system": "s", "metric": "m", "value": 1.0, "settings": {"k": 1}, "n": 3},
        {"part": "qa", "dataset": "d", "system": "t", "metric": "skipped", "value": 0.0, "settings": {"reason": "r"}},
    ]
    config: ClassVar[Any] = {"parts": {"qa": {"seed": 0}}, "datasets": {"d": {"hash": "x"}}}

    def write(self, rng: Random, folder: Path) -> None:
        contents = {
            "results.jsonl": lines(self.rows),
            "config.json": json.dumps(self.config).encode(),
            "questions/qa.d.s.jsonl": lines([{"id": "q", "reply": "r"}]),
        }
        hit = rng.choice(list(contents))
        if hit.endswith("jsonl"):
            contents[hit] = mutated_lines(rng, contents[hit])
        else:
            contents[hit] = mutated_json(rng, contents[hit])
        if rng.random() < 0.1:
            contents[f"questions/{rng.choice(('qa.jsonl', 'qa.d.jsonl', 'qa.%2e%2e.x.y.jsonl'))}"] = b"{}\n"
        for name, data in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

    def read(self, folder: Path) -> None:
        failures = []
        for look in (
            lambda r: r.rows(),
            lambda r: r.has(("qa", "d", "s", {"k": 1})),
            lambda r: [r.questions("qa", *names) for names in r.question_sets("qa")],
            lambda r: r.dataset_facts("d"),
            lambda r: r.configure("qa", {"seed": 0}),
            lambda r: r.describe("d", {"hash": "x"}),
            lambda r: r.put(r.rows()[:1]),
            lambda r: r.rewrite(r.rows()),
        ):
            with Results(folder, command="fuzz") as results:
                try:
                    look(results)
                except config.ConfigError as error:
                    failures.append(error)
        if failures:
            raise failures[0]


class SettingsJson(Target):
    """Every class of settings, from JSON."""

    name = "settings"
    routing: ClassVar[Any] = {
        "layers": [0, 2],
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 24,
        "pooling": 8,
        "selection": "shared",
    }
    adapter: ClassVar[Any] = {
        **{"name": "x", "backbone": "b", "tokenizer": "t", "hidden": 48, "top_k": 4, "prefix": None, "measured": {}},
        **{"routing": routing, "reading": {"layers": [2], "pooling": 8}, "abilities": {"route": True}},
    }
    valid: ClassVar[Any] = {
        AdapterConfig: adapter,
        config.RoutingConfig: routing,
        config.GenerationConfig: {"max_new_tokens": 4, "temperature": 0.5, "top_p": 0.5, "seed": 1, "stop": ["x"]},
        config.InterleaveConfig: {"max_rounds": 2, "per_round": 3, "cut": 0.6, "follow_weight": 1.0},
        config.MemoryConfig: {"reading": "text", "window": 64, "generation": {"stop": []}, "lock_timeout": 1.0},
    }

    def write(self, rng: Random, folder: Path) -> None:
        kind = rng.choice(list(self.valid))
        (folder / f"{kind.__name__}.json").write_bytes(json_bytes(rng, mutate_json(rng, self.valid[kind])))

    def read(self, folder: Path) -> None:
        [path] = folder.iterdir()
        kind = next(k for k in self.valid if k.__name__ == path.stem)
        try:
            raw = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return
        if isinstance(raw, dict):
            json.dumps(kind(**raw).model_dump(mode="json"), allow_nan=False)


PLAIN = (Text, Markdown, Html, JsonLines, ZippedLines, Pdf, Folder, Beir, Stored, SettingsJson)
