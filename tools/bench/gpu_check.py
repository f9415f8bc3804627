"""One prepared run on a GPU: does everything work there, and how fast is it.

    python tools/bench/gpu_check.py --out gpu-check --tests tests/gpu

A machine with a GPU is often lent for minutes, so what was found is written after every step: `gpu-check.json`, and
`gpu-check.txt` for people. A step that fails is written down with its error, and the next one runs. `--dry-run` tries
all steps on the CPU, at tiny sizes; `--tests` is a folder of tests marked `gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from kernel_timings import kernel_timings
from time_encoding import measure as encoding_speed

from msa_kernels import chunk_owners, route_topk
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.data.datasets import Dataset, Question, dataset_hash
from msa_plugin.errors import MissingExtraError, MSAError
from msa_plugin.measuring.peak import peak_bytes
from msa_plugin.measuring.provenance import Provenance, now
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.faiss_index import load_faiss
from msa_plugin.training.data import corpus_of
from msa_plugin.training.recipe_run import Data, RecipeRun
from msa_plugin.training.recipes import load_recipe
from msa_plugin.types import Document

WIDTH = 384  # of the default adapter's routing keys
_PANEL = 1 << 20  # keys made at once
_TOP = 16


@dataclass(frozen=True)
class GpuPlan:
    """How much is measured. `routing` are numbers of chunks; `tests` is a folder of tests marked `gpu`, or None."""

    kernel_chunks: int = 1_000_000
    kernel_runs: int = 20
    routing: tuple[int, ...] = (1_000_000, 10_000_000, 40_000_000)
    encode_tokens: int = 400_000
    questions: int = 12
    training: tuple[str, ...] = ("gpu-reader", "gpu-default")
    documents: int = 600
    tests: Path | None = None

    @classmethod
    def dry(cls, tests: Path | None = None) -> GpuPlan:
        """The same steps at sizes that a CPU does in a minute."""
        return cls(1024, 1, (2_000, 5_000), 200, 2, ("gpu-reader",), 40, tests)


@dataclass
class GpuCheck:
    """The run. `step`s are named in the order in which they run."""

    out: Path
    plan: GpuPlan
    device: torch.device
    model: str | Backbone | None = None
    adapter: Adapter | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """All steps. Returns what the JSON file holds: by step its seconds and its figures, or its error."""
        self.out.mkdir(parents=True, exist_ok=True)
        steps: Sequence[tuple[str, Callable[[], Any]]] = (
            ("environment", self.environment),
            ("tests", self.tests),
            ("kernels", lambda: list(self.kernels())),
            ("routing", lambda: list(self.routing())),
            ("encoding", self.encoding),
            ("asking", self.asking),
            ("training", lambda: list(self.training())),
            ("memory", self.memory),
        )
        for name, step in steps:
            began = time.perf_counter()
            try:
                figures = {"figures": step()}
            except (MSAError, RuntimeError, OSError, ValueError, AssertionError, ImportError) as error:
                figures = {"error": f"{type(error).__name__}: {error}"}
            self.found[name] = {"seconds": round(time.perf_counter() - began, 2), **figures}
            self._write()
        return self.found

    def environment(self) -> dict[str, Any]:
        """Versions and hardware."""
        here = Provenance.here()
        row: dict[str, Any] = {"date": now(), "commit": here.commit, "device": str(self.device)}
        row |= {"hardware": here.hardware, "versions": dict(here.versions), "cuda": torch.version.cuda}
        if self.device.type == "cuda":
            known = torch.cuda.get_device_properties(self.device)
            row |= {"capability": f"{known.major}.{known.minor}", "device_bytes": known.total_memory}
        return row

    def tests(self) -> dict[str, Any]:
        """Run the tests that are marked `gpu` in a process of their own."""
        if self.plan.tests is None:
            return {"skipped": "no folder of tests was given"}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(self.plan.tests)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        return {"exit": done.returncode, "end": done.stdout.strip().splitlines()[-12:]}

    def kernels(self) -> Iterator[Any]:
        """Every kernel over the device's copy and over its plain twin."""
        return kernel_timings(self.device, chunks=self.plan.kernel_chunks, runs=self.plan.kernel_runs)

    def routing(self) -> Iterator[dict[str, Any]]:
        """Exact search over made-up keys, ours and FAISS's flat index on the same device, at every size."""
        for chunks in self.plan.routing:
            keys = torch.empty(chunks, WIDTH, dtype=torch.float16, device=self.device)
            for start in range(0, chunks, _PANEL):
                part = torch.randn(min(_PANEL, chunks - start), WIDTH, device=self.device)
                keys[start : start + len(part)] = torch.nn.functional.normalize(part, dim=1).half()
            offsets = torch.arange(0, chunks + 1, 4, device=self.device)
            offsets = offsets if int(offsets[-1]) == chunks else torch.cat([offsets, offsets.new_tensor([chunks])])
            owners = chunk_owners(offsets, chunks)
            query = torch.nn.functional.normalize(torch.randn(1, WIDTH, device=self.device), dim=1)
            votes = torch.ones(1, 1, dtype=torch.bool, device=self.device)

            def ours(
                q: torch.Tensor = query[:, None, None], k: torch.Tensor = keys, o: Any = (votes, offsets, owners)
            ) -> Any:
                return route_topk(q, o[0], k, o[1], _TOP, owners=o[2])

            row: dict[str, Any] = {"chunks": chunks, "ours_s": self._median(ours)}
            row["read_gb_s"] = keys.numel() * 2 / row["ours_s"] / 1e9
            yield row | self._flat(keys, query, row["ours_s"])

    def _flat(self, keys: torch.Tensor, query: torch.Tensor, ours: float) -> dict[str, Any]:
        """FAISS's flat index over the same keys; what keeps it from running is said instead of figures."""
        try:
            faiss = load_faiss()
        except MissingExtraError as error:
            return {"faiss": str(error)}
        index = faiss.IndexFlatIP(WIDTH)
        if self.device.type == "cuda":
            if not hasattr(faiss, "StandardGpuResources"):
                return {"faiss": "this build of FAISS is for CPUs"}
            settings = faiss.GpuIndexFlatConfig()
            settings.useFloat16 = True
            index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), WIDTH, settings)
        for start in range(0, len(keys), _PANEL):
            index.add(keys[start : start + _PANEL].float().cpu().numpy())
        asked = query.float().cpu().numpy()
        seconds = self._median(lambda: index.search(asked, _TOP * 4))
        return {"faiss_s": seconds, "faiss_over_ours": seconds / ours}

    def encoding(self) -> Any:
        """`memory.add` over the stock model's forward."""
        return list(
            encoding_speed(self.backbone, self.adapter, tokens=self.plan.encode_tokens, repeats=1, modes="text")
        )

    def asking(self) -> dict[str, Any]:
        """Median seconds of an answer by stage, over the sample's questions, after one that warms up."""
        questions = [q.question for q in sample_questions()][: self.plan.questions]
        with tempfile.TemporaryDirectory() as folder:
            opened = LatentMemory.open(Path(folder) / "bank", model=self.backbone, adapter=self.adapter)
            with opened as memory:
                memory.add(sample_documents(), on_progress=lambda _: None)
                memory.ask(questions[0], max_new_tokens=4)
                traces = [memory.ask(q, max_new_tokens=16).trace for q in questions]
        stages = sorted({stage for trace in traces for stage in trace.seconds})
        return {stage: median(t.seconds.get(stage, 0.0) for t in traces) for stage in stages} | {
            "seconds": median(sum(t.seconds.values()) for t in traces)
        }

    def training(self) -> Iterator[dict[str, Any]]:
        """Tokens/s of recipes on made-up questions about the sample's sentences: their sizes are what counts."""
        dataset = made_questions(self.plan.documents)
        data = Data((corpus_of(dataset),), {dataset.name: dataset_hash(dataset)})
        for name in self.plan.training:
            recipe = load_recipe(name)
            settings = {k: v for k, v in recipe.settings.items() if k not in ("made", "layers", "held_out")}
            fitting = replace_sets(recipe, settings)
            yield {"recipe": name, **RecipeRun(fitting, self.backbone, data, adapter=self.adapter, steps=2).dry_run()}

    def memory(self) -> dict[str, Any]:
        """The most that this process took."""
        row = {"peak_bytes": peak_bytes()}
        if self.device.type == "cuda":
            row["device_peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return row

    @property
    def backbone(self) -> Backbone:
        """Loaded once, when the first step needs it."""
        if not isinstance(self.model, Backbone):
            self.model = Backbone.load(self.model, device=str(self.device))
        return self.model

    def _median(self, call: Callable[[], object]) -> float:
        seconds = []
        for _ in range(max(self.plan.kernel_runs // 2, 1) + 1):
            self._wait()
            began = time.perf_counter()
            call()
            self._wait()
            seconds.append(time.perf_counter() - began)
        return median(seconds[1:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _write(self) -> None:
        (self.out / "gpu-check.json").write_text(json.dumps(self.found, indent=1, default=str) + "\n", encoding="utf-8")
        (self.out / "gpu-check.txt").write_text(summary(self.found), encoding="utf-8")


def replace_sets(recipe: Any, settings: dict[str, Any]) -> Any:
    """A recipe that takes any data set, with these settings; two questions are held out."""
    held = {"held_out": 2} if recipe.objective == "reader" else {}
    return recipe.model_copy(update={"sets": None, "settings": {**settings, **held}})


def made_questions(count: int) -> Dataset:
    """`count` passages, each two sentences of the sample corpus, with a question that its last word answers."""
    sentences = [s.strip() for d in sample_documents() for s in d.text.split(". ") if len(s.split()) > 5]
    documents, questions = [], []
    for number in range(count):
        first, second = (sentences[(number * step + step) % len(sentences)] for step in (7, 11))
        answer = second.rstrip(".").split()[-1]
        documents.append(Document(f"d{number}", f"{first}. {second}. Note {number}.", f"Note {number}"))
        text = f"In note {number}, which word ends: {' '.join(second.split()[:6])}?"
        questions.append(Question(f"q{number}", text, (answer,), {f"d{number}": 1}))
    return Dataset("made", tuple(documents), tuple(questions))


def summary(found: dict[str, Any]) -> str:
    """What was found, a few lines a step."""
    lines = []
    for name, step in found.items():
        lines.append(f"{name} ({step['seconds']} s)" + (f": FAILED, {step['error']}" if "error" in step else ""))
        figures = step.get("figures")
        for row in figures if isinstance(figures, list) else [figures] if figures else []:
            lines += [f"    {key}: {_short(value)}" for key, value in row.items() if key not in ("data", "versions")]
            lines += [""] if isinstance(figures, list) else []
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def main(given: list[str] | None = None) -> None:
    """All steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", "-o", type=Path, default=Path("gpu-check"))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tests", type=Path)
    parser.add_argument("--model", "-m", default=os.environ.get("MSA_MODEL"))
    parser.add_argument("--adapter", "-a", type=Path)
    chosen = parser.parse_args(given)
    if not chosen.dry_run and not torch.cuda.is_available():
        sys.exit("error: there is no GPU here that PyTorch can use; --dry-run tries all steps on the CPU")
    plan = GpuPlan.dry(chosen.tests) if chosen.dry_run else GpuPlan(tests=chosen.tests)
    begun = None if chosen.adapter is None else Adapter.load(chosen.adapter)
    device = torch.device("cpu" if chosen.dry_run else "cuda")
    sys.stdout.write(summary(GpuCheck(chosen.out, plan, device, chosen.model, begun).run()))


if __name__ == "__main__":
    main()
