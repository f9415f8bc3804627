"""`msa bench ...`: measurements that print ratios taken in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msa_plugin.cli import bench_absence, bench_compare, bench_growth
from msa_plugin.cli.bench_decode import decode
from msa_plugin.cli.bench_mteb import mteb
from msa_plugin.cli.options import AdapterPath, Json, Model
from msa_plugin.cli.output import Output, seconds, size

app = typer.Typer(help="Measure, in ratios taken in one run.", no_args_is_help=True, rich_markup_mode=None)
bench_compare.register(app)
bench_growth.register(app)
app.command()(mteb)
app.command()(decode)
bench_absence.register(app)
Repeats = Annotated[int, typer.Option(help="Interleaved repetitions; medians are reported.", min=1)]


@app.command()
def encode(
    model: Model = None,
    adapter: AdapterPath = None,
    tokens: Annotated[int, typer.Option(help="About how many tokens to encode in each repetition.", min=100)] = 20000,
    repeats: Repeats = 3,
    as_json: Json = False,
) -> None:
    """Speed of adding documents over the speed of the stock model's forward on the same batches.

    Example: msa bench encode
    """
    from msa_plugin.bench import encode as bench

    out = Output(as_json)
    out.note("encoding in every reading mode, and running the stock model on the same batches ...")
    rows = bench.run(model, adapter, tokens=tokens, repeats=repeats)
    out.say("mode     memory.add tokens/s   stock forward tokens/s   ratio (>= 0.9 wanted)")
    for row in rows:
        out.say(
            f"{row['mode']:8} {row['add_tokens_per_s']:19,.0f} {row['stock_tokens_per_s']:24,.0f} {row['ratio']:7.2f}"
        )
    out.result(rows)


@app.command()
def route(
    chunks: Annotated[
        str, typer.Option(help="Sizes of the memory in chunks, separated by commas.")
    ] = "10000,100000,1000000",
    repeats: Repeats = 5,
    as_json: Json = False,
) -> None:
    """Exact routing over the formula written per head, and over FAISS IndexFlatIP, on the same vectors.

    Example: msa bench route --chunks 10000,100000
    """
    from msa_plugin.bench import route as bench
    from msa_plugin.errors import ConfigError

    out = Output(as_json)
    if not all(part.strip().isdigit() and int(part) > 0 for part in chunks.split(",")):
        raise ConfigError(f"--chunks must be positive numbers separated by commas, not {chunks!r}")
    out.note("routing over random unit vectors; 10^6 chunks need about 4 GB ...")
    rows = bench.run(chunks=tuple(int(part) for part in chunks.split(",")), repeats=repeats)
    out.say(bench.table(rows))
    out.result(rows)


@app.command("scale-routing")
def scale_routing(
    tokens: Annotated[str, typer.Option(help="Sizes of the memory in tokens, separated by commas.")] = "1e5,1e6,1e7",
    backends: Annotated[
        str, typer.Option(help="torch, int8, triton, triton-int8, or prefilters, separated by semicolons.")
    ] = "torch;int8;coarse:128;coarse:all",
    data: Annotated[
        Path | None, typer.Option(help="Folder of a data set whose passages and questions are sampled [the sample's].")
    ] = None,
    passages: Annotated[int, typer.Option(help="Passages to encode as a sample.", min=1)] = 300,
    questions: Annotated[int, typer.Option(help="Questions to ask.", min=1)] = 20,
    reference: Annotated[bool, typer.Option(help="Also one router layer of MSA-4B's shape.")] = True,
    cpu_clock: Annotated[
        bool, typer.Option("--cpu-clock", help="Count this process's own seconds (one thread).")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where banks are written, of one size at a time [a temporary folder].")
    ] = None,
    model: Model = None,
    adapter: AdapterPath = None,
    as_json: Json = False,
) -> None:
    """Routing over synthetic banks with real key statistics: time, bytes, share of copy bandwidth and memory.

    A bank of 1e8 tokens takes 2.4 GB of float16 keys and 1.2 GB of int8 ones (MSA-4B's layer: 3.2 and 1.6 GB).
    Rows go to stderr as JSON lines while the run lasts; with --json, to stdout at the end.

    Example: msa bench scale-routing --tokens 1e5,1e6 --backends "torch;int8;coarse:128;faiss:HNSW32"
    """
    import json
    import tempfile

    from msa_plugin.bench import scale_routing as bench
    from msa_plugin.bench.datasets import load_dataset, sample_dataset

    out = Output(as_json)
    plan = bench.SearchPlan(
        tokens=bench.sizes(tokens),
        backends=tuple(part.strip() for part in backends.split(";") if part.strip()),
        questions=questions,
        passages=passages,
        reference=reference,
        cpu_clock=cpu_clock,
    )
    dataset = sample_dataset() if data is None else load_dataset(data)
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for row in bench.run(model, adapter, dataset, Path(place), plan):
            rows.append(row)
            out.note(json.dumps(row))
    out.say(bench.table(rows))
    out.result(rows)


@app.command()
def read(
    model: Model = None,
    adapter: AdapterPath = None,
    data: Annotated[Path | None, typer.Option(help="Folder of a data set (the sample corpus).")] = None,
    questions: Annotated[int | None, typer.Option(help="At most this many questions.", min=1)] = None,
    modes: Annotated[str | None, typer.Option(help="Some of the modes, separated by commas.")] = None,
    repeats: Repeats = 3,
    as_json: Json = False,
) -> None:
    """Bytes per token, time to first token and answers of each reading mode, over the documents that answers need.

    Example: msa bench read --data DATA/dev/squad --questions 100 --modes "text,latent/2,closed book" --repeats 1
    """
    from msa_plugin.bench import read as bench
    from msa_plugin.bench.datasets import load_dataset

    out = Output(as_json)
    out.note("building a bank in each reading mode ...")
    rows = bench.run(
        model,
        adapter,
        repeats=repeats,
        dataset=None if data is None else load_dataset(data),
        questions=questions,
        modes=None if modes is None else [name.strip() for name in modes.split(",")],
    )
    first = rows[0]["mode"]
    out.say(f"{rows[0]['questions']} questions; times over {first}")
    out.say("mode                     bytes/token  (keys, content)     first token   over   answer NLL     EM     F1")
    for row in rows:
        parts = f"({row['bytes_keys_per_token']:,.0f}, {row['bytes_content_per_token']:,.0f})"
        out.say(
            f"{row['mode']:24} {row['bytes_per_token']:11,.0f}  {parts:17} {seconds(row['first_token_s']):>13} "
            f"{row['first_token_over_text']:6.2f} {row['answer_nll']:12.2f} {row['exact_match']:6.2f} {row['f1']:6.2f}"
        )
    out.say("Bytes are routing keys and content; the catalog with the texts comes on top. NLL: nats per token of the")
    out.say("expected answer; EM, F1: of the reply. A backbone that was not trained for it cannot read pooled latents.")
    out.result(rows)


@app.command()
def ids(
    data: Annotated[Path, typer.Option(help="Folder of a data set: its passages and questions.")],
    adapter: AdapterPath = None,
    documents: Annotated[
        str, typer.Option(help="Sizes of the memory in passages, separated by commas.")
    ] = "16,100,1000",
    questions: Annotated[int, typer.Option(help="Questions to ask at every size.", min=1)] = 50,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """How often an adapter that writes document ids writes the right one, by the size of the memory.

    Example: msa bench ids --data DATA/dev/musique --adapter ADAPTER --documents 16,100
    """
    from msa_plugin.bench import ids as bench
    from msa_plugin.bench.datasets import load_dataset
    from msa_plugin.bench.scale_routing import sizes

    out = Output(as_json)
    rows = []
    out.say("documents   questions   right (95 %)          a number written   gold passage routed   by chance")
    for row in bench.run(model, adapter, load_dataset(data), sizes=sizes(documents), questions=questions):
        low, high = row["accuracy_95"]
        out.say(
            f"{row['documents']:9,} {row['questions']:11} {row['accuracy']:7.3f} ({low:.3f} to {high:.3f}) "
            f"{row['wrote']:18.3f} {row['routed']:21.3f} {row['chance']:11.4f}"
        )
        rows.append(row)
    out.result(rows)


@app.command()
def content(
    model: Model = None,
    adapter: AdapterPath = None,
    pooling: Annotated[int, typer.Option(help="Tokens that share one K and V.", min=1)] = 1,
    questions: Annotated[int, typer.Option(help="Sample questions to read for.", min=1)] = 12,
    as_json: Json = False,
) -> None:
    """K and V stored in eight bits: bytes, error, and what becomes of answers, beside K and V as they are computed.

    Example: msa bench content
    """
    from msa_plugin.bench import content as bench

    out = Output(as_json)
    out.note("building a bank for each way of storing ...")
    rows = bench.run(model, adapter, pooling=pooling, questions=questions)
    out.say(
        "content         bytes/token   K error mean, max   V error mean, max   answer NLL   same choice   logits off by"
    )
    for row in rows:
        errors = [f"{row[f'{part}_error_mean']:.5f}, {row[f'{part}_error_max']:.5f}" for part in ("key", "value")]
        out.say(
            f"{row['dtype']:14} {row['bytes_content_per_token']:12,.0f} {errors[0]:>19} {errors[1]:>19} "
            f"{row['answer_nll']:12.3f} {row['same']:13.3f} {row['difference']:15.4f}"
        )
    out.say(
        "Errors are over the mean and the largest number, logits' over their standard deviation; NLL: nats per token"
    )
    out.say("of the expected answer; same choice: the share of its tokens at which the most likely one did not change.")
    out.result(rows)


@app.command()
def interleave(
    model: Model = None,
    adapter: AdapterPath = None,
    rounds: Annotated[int, typer.Option(help="Rounds of retrieval.", min=1)] = 4,
    per_round: Annotated[int, typer.Option(help="Documents that a round fetches.", min=1)] = 2,
    repeats: Repeats = 3,
    as_json: Json = False,
) -> None:
    """Rounds of written ids: prefills that go on from the last one, over prefills of the whole transcript.

    Needs a model that writes document ids, such as a checkpoint in the reference's format.

    Example: msa bench interleave --model MSA-4B
    """
    from msa_plugin.bench import interleave as bench

    out = Output(as_json)
    out.note("encoding the sample corpus, then prefilling each round in both ways ...")
    rows = bench.run(model, adapter, rounds=rounds, per_round=per_round, repeats=repeats)
    out.say("round   tokens (new)   layer-tokens computed   time over a whole prefill   largest difference of logits")
    for row in rows:
        tokens = f"{row['tokens']} ({row['new_tokens']})"
        out.say(
            f"{row['round']:5} {tokens:>14} {row['layer_tokens']:23.2f} {row['time']:27.2f} {row['difference']:30.1e}"
        )
    out.say(f"Layers below the first that sees memory: {rows[0]['lower_layers']} of {rows[0]['layers']}.")
    out.result(rows)


@app.command()
def gpu(
    to: Annotated[Path, typer.Option("--out", "-o", help="Folder for gpu-check.json and gpu-check.txt.")] = Path(
        "gpu-check"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="All steps on the CPU, at tiny sizes.")] = False,
    tests: Annotated[Path | None, typer.Option(help="Folder of tests marked `gpu` to run.")] = None,
    model: Model = None,
    adapter: AdapterPath = None,
    as_json: Json = False,
) -> None:
    """Everything that is to be known about one GPU, in minutes, written down after every step.

    Example: msa bench gpu --out gpu-check --tests tests/gpu
    """
    import torch

    from msa_plugin.backbone.adapter import Adapter
    from msa_plugin.cli.gpu_check import GpuCheck, GpuPlan, summary
    from msa_plugin.errors import ConfigError

    out = Output(as_json)
    if not dry_run and not torch.cuda.is_available():
        raise ConfigError("there is no GPU here that PyTorch can use; --dry-run tries all steps on the CPU")
    plan = GpuPlan.dry(tests) if dry_run else GpuPlan(tests=tests)
    begun = None if adapter is None else Adapter.load(adapter)
    found = GpuCheck(to, plan, torch.device("cpu" if dry_run else "cuda"), model, begun).run()
    out.say(summary(found))
    out.result(found)


@app.command("open")
def open_(
    chunks: Annotated[int, typer.Option(help="Chunks in the synthetic bank.", min=1)] = 1_000_000,
    width: Annotated[int, typer.Option(help="Numbers in a routing key.", min=1)] = 512,
    as_json: Json = False,
) -> None:
    """Time and memory that opening a large (synthetic) bank takes, and one question on it.

    Example: msa bench open --chunks 100000
    """
    from msa_plugin.bench import opening as bench

    out = Output(as_json)
    out.note(f"writing a synthetic bank of {chunks} chunks ({size(chunks * width * 2)} of keys) ...")
    row = bench.run(chunks=chunks, width=width)
    out.say(
        f"{row['chunks']:,} chunks in {row['documents']:,} documents, {row['key_bytes_per_number']:.4f} bytes a number"
    )
    out.say(
        f"opened in {seconds(row['open_s'])}, {size(row['open_rss'])} more resident ({size(row['key_bytes'])} of keys)"
    )
    out.say(f"first question {seconds(row['first_route_s'])}, next {seconds(row['route_s'])}")
    out.result(row)


@app.command()
def operate(
    passages: Annotated[
        str, typer.Option(help="Sizes of the banks that are opened, in passages, separated by commas.")
    ] = "1e3,1e4,1e5",
    files: Annotated[int, typer.Option(help="Small files to add; 0: none.", min=0)] = 2000,
    changes: Annotated[int, typer.Option(help="Documents to replace and delete beside a reader; 0: none.", min=0)] = 10,
    distractors: Annotated[
        Path | None, typer.Option(help="Folder of *.jsonl[.gz] with passages to fill banks with [made up].")
    ] = None,
    repeats: Repeats = 3,
    cpu_clock: Annotated[
        bool, typer.Option("--cpu-clock", help="Count this process's own seconds (one thread).")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where banks are written; those that are there are used again [temporary].")
    ] = None,
    model: Model = None,
    adapter: AdapterPath = None,
    as_json: Json = False,
) -> None:
    """Opening a memory and its first question over a warm one, words and names over keys alone, changes, many files.

    Example: msa bench operate --passages 1e3,1e4 --distractors DATA/distractors
    """
    import tempfile
    from contextlib import nullcontext

    from msa_plugin.bench import operate as bench
    from msa_plugin.bench.scale_routing import sizes

    out = Output(as_json)
    plan = bench.OperatePlan(
        passages=sizes(passages),
        files=files,
        changes=changes,
        repeats=repeats,
        distractors=distractors,
        keep=folder is not None,
        cpu_clock=cpu_clock,
    )
    rows = []
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder)) as place:
        for row in bench.run(model, adapter, Path(place), plan):
            rows.append(row)
            if row["what"] == "open":
                out.say(
                    f"{row['passages']:,} passages ({row['tokens']:,} tokens, {row['segments']} segments): opened in "
                    f"{seconds(row['open_s'])}, first question {seconds(row['first_s'])}, "
                    f"then {seconds(row['warm_s'])}: "
                    f"open and first over a warm one {row['ratio']:.2f}; a look over it {row['look_ratio']:.4f}"
                )
                out.say(
                    f"  keys {size(row['bytes_keys'])}, words and names {size(row['bytes_words'])}, catalog "
                    f"{size(row['bytes_catalog'])}; in memory beyond keys {size(row['beyond_keys_bytes'])}, "
                    f"its own {size(row['own_bytes'])}"
                )
                out.say(
                    f"  by keys alone {seconds(row['keys_s'])}, with words {seconds(row['words_s'])}, with titles "
                    f"{seconds(row['titles_s'])}, with all {seconds(row['all_s'])}: {row['over_keys_ratio']:.2f}"
                )
                if changes:
                    out.say(
                        f"  {changes} documents replaced in {seconds(row['update_s'])}, a reader's next question "
                        f"{seconds(row['after_update_s'])}; deleted in {seconds(row['delete_s'])}, the next question "
                        f"{seconds(row['after_delete_s'])}"
                    )
            else:
                out.say(
                    f"{row['files']:,} files added in {seconds(row['files_s'])}, the same texts in one call in "
                    f"{seconds(row['one_call_s'])}: {row['ratio']:.2f}"
                )
    out.result(rows)
