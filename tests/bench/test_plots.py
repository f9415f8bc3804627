"""Plots exist for what was measured, are real images, and keep names readable and apart."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace

import pytest
from report_rows_toy import everything, latency, needles, qa, retrieval, row, scale

from msa_plugin.bench import plots
from msa_plugin.bench.plots import legend, short
from msa_plugin.bench.report_rows import Saved
from msa_plugin.measuring import plot_style
from msa_plugin.measuring.plot_style import colours, panels, style


def shape(png):
    """Width and height that the file's header tells."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize(
    ("part", "make", "names"),
    [
        ("retrieval", retrieval, ["retrieval.png"]),
        ("qa", qa, ["answers.png"]),
        ("scale", lambda: [*scale("a"), *scale("b")], ["degradation-1.png", "degradation-2.png"]),
        ("needle", needles, ["needle-recall.png", "needle-answered.png"]),
        ("latency", latency, ["latency-stages-1.png", "latency-total.png"]),
    ],
)
def test_each_part_has_its_plots(part, make, names):
    found = plots.figures(Saved.of(make()))
    assert [f.name for f in found[part]] == names
    assert not any(some for other, some in found.items() if other != part)
    for figure in found[part]:
        width, height = shape(figure.png)
        assert 800 < width < 2400 and 200 < height < 4000
        assert len(figure.png) > 5000 and figure.caption


def test_the_same_rows_give_the_same_bytes():
    first, again = (plots.figures(Saved.of(retrieval()))["retrieval"][0].png for _ in range(2))
    assert first == again


@pytest.mark.filterwarnings("error::UserWarning")  # others: what an earlier test left open may be collected in here
def test_any_name_can_be_drawn():
    names = ("$x^", "_hidden", "名前", "\x1b[0m\n", "x" * 400, "a\\b {c}")
    rows = [replace(r, system=n, dataset="$d_^") for n in names for r in everything() if r.dataset in ("one", "needle")]
    found = plots.figures(Saved.of([r for r in rows if r.metric != "answered"]))
    assert {part: len(some) for part, some in found.items()} == {
        "retrieval": 1, "qa": 1, "scale": 1, "needle": 1, "latency": 2,
    }  # fmt: skip


def test_a_single_size_a_missing_cell_and_no_base_are_drawn():
    one = [r for r in scale() if r.settings["memory_tokens"] == 16_384]
    assert len(plots.figures(Saved.of(one))["scale"]) == 1
    gaps = [r for r in needles() if (r.system, r.settings["depth"]) != ("bm25", 0.5)]
    assert len(plots.figures(Saved.of(gaps))["needle"]) == 2
    apart = [r for r in needles() if (r.system == "msa") == (r.settings["task"] == "single-1")]
    assert len(plots.figures(Saved.of(apart))["needle"]) == 2
    others = [r for r in [*retrieval(), *scale(), *latency()] if r.system != "msa"]
    assert sum(map(len, plots.figures(Saved.of(others)).values())) == 4
    odd = [replace(r, settings={"memory_tokens": "much"}) for r in scale()]
    assert plots.figures(Saved.of(odd))["scale"] == []
    zero = [row("scale", "d", "msa", "seconds_p50", 0.0, settings={"memory_tokens": s}) for s in (1, 10)]
    assert len(plots.figures(Saved.of(zero))["scale"]) == 1


def test_a_heat_map_of_one_depth_has_room_for_its_labels():
    flat = [r for r in needles() if r.settings["depth"] == 0.5]
    sizes = [shape(figure.png) for figure in plots.figures(Saved.of(flat))["needle"]]
    assert len(sizes) == 2
    assert all(height > width / 4 for width, height in sizes)


def test_every_line_is_named():
    names = ["msa", "_hidden", "x" * 400]
    with style():
        figure, [axes] = panels(1, 2, 6, 3)
        legend(figure, {name: axes.plot([1, 2], [0, 1])[0] for name in names})
        [made] = figure.legends
    assert [t.get_text().strip() for t in made.get_texts()] == [short(name) for name in names]


def test_systems_keep_their_colours():
    paint = colours(["msa", *(f"s{i}" for i in range(30))], "msa")
    assert len({colour for colour, _ in list(paint.values())[:9]}) == 9 and len(set(paint.values())) == 31
    assert paint["msa"][0] == plot_style.BLUE
    assert colours(["bm25"], "msa")["msa"][0] == plot_style.BLUE


def test_long_names_keep_both_ends():
    assert short("dense:/weights/all-MiniLM-L6-v2-something") == "dense:/weigh…v2-something"
    assert short("bm25") == "bm25"


def test_nobodys_matplotlib_is_changed():
    import matplotlib

    before = dict(matplotlib.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    plots.figures(Saved.of(retrieval()))
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot
