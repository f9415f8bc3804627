"""What notebooks show: text stays text, nothing is fetched or run, and what scored is where it says."""

import copy
import gc
from html.parser import HTMLParser

import pytest

from facade import about, opened, topics
from msa_plugin.display.page import MarkedSpan, escaped, spanned, window, words
from msa_plugin.types import Answer, Hits, Quote, Source, Trace
from tiny import judging, tiny_adapter

TAGS = {
    "style", "div", "p", "b", "bdi", "code", "mark", "u", "span", "table", "tr", "th", "td", "br", "details", "summary",
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    "</div></p><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)\" x=\"",
    "</style><style>*{display:none}",
    "&lt;b&gt; &amp; $x^2$ \\(y\\)",
    "\x1b[31mred\x00 \x85\u202e olleh",
    "<!-- --> <![CDATA[ ]]> <bdi>",
)


class Reader(HTMLParser):
    """Reads a page: what a person sees, and that it is made of our elements alone, closed as they were opened."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.seen, self.open = "", []
        self.marked = {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS and {name for name, _ in attrs} <= {"class", "style", "title", "dir"}, (tag, attrs)
        assert not any("url" in (value or "") or "alert" in (value or "") for _, value in attrs)
        if tag != "br":
            self.open.append((tag, dict(attrs).get("class")))
            self.marked.setdefault(self.name, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open[-1][0] == "style":
            assert "http" not in data and "url" not in data and "@import" not in data
            return
        self.seen += data
        for tag, kind in self.open:
            self.marked[f"{tag}.{kind}" if kind else tag][-1] += data

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def name(self):
        tag, kind = self.open[-1]
        return f"{tag}.{kind}" if kind else tag


def squeezed(text):
    return " ".join(text.split())


def test_hits_show_passages_words_chunks_and_signals(full):
    hits = full.retrieve("a violin, and a glacier", 3)
    page = Reader(hits._repr_html_())
    assert page.marked["b"][0] == "a violin, and a glacier"
    shown = [hit.passages[0].text for hit in hits]
    assert all(text in page.seen for text in shown)
    *pieces, legend = page.marked["mark"]  # a chunk may end inside a word
    assert legend == "words of the question"
    assert not "".join(pieces).lower().replace("violin", "").replace("glacier", "")
    chunks = [hit.text[slice(*hits.chunk(hit))] for hit in hits]
    *pieces, legend = page.marked["span.chunk"]  # a word inside a chunk is an element of its own
    assert all(chunks) and "".join(pieces) == "".join(chunks) and "routing key" in legend
    for hit in hits:
        assert hit.score == pytest.approx(sum(hit.signals.values())) and set(hit.signals) <= {"keys", "words", "names"}
        assert all(f"{name} {value:.3f}" in page.seen for name, value in hit.signals.items())
    assert hits[0].signals["words"] > 0 and set(hits.seconds) == {"encode", "route", "passages"}
    assert "3 documents in " in page.seen and len(hits._repr_html_()) < 8_000
    assert "Nothing found" in full.retrieve("violin", 3, filter={"number": 99})._repr_html_()


def test_the_chunk_is_the_one_that_scored(memory):
    memory.add({"id": "long", "title": "Things", "text": " ".join(about(t["id"]) for t in topics())})
    for topic in topics():
        hits = memory.retrieve(about(topic["id"]), 1)
        scored = memory.explain(about(topic["id"]), "long").chunks
        best = max(scored, key=lambda chunk: chunk.score)
        assert hits.chunk(hits[0]) == (best.start, best.end)
        assert best.score == pytest.approx(hits[0].signals["keys"], abs=1e-4)


def test_passages_show_their_part_of_the_chunk(memory):
    lines = "\n\n".join(f"# {t['id']}\n\n" + about(t["id"]) * 2 for t in topics())
    memory.add({"id": "manual", "text": lines})
    hits = memory.retrieve("violin", 3, by="passage")
    page = Reader(hits._repr_html_())
    assert len(hits) == 3 and "3 passages in " in page.seen
    assert all(squeezed(hit.text) in squeezed(page.seen) for hit in hits)
    start, end = hits.chunk(hits[0])
    inside = [hit for hit in hits if hit.passage.start <= start and end <= hit.passage.end]
    assert not inside or lines[start:end] in "".join(page.marked["span.chunk"])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path, backbone, text):
    with opened(tmp_path, backbone, judging(tiny_adapter(backbone, beside=True)), instruction=None) as memory:
        long = f"# {text}\n\nviolin {text} violin. " * 20
        memory.add({"id": f"id {text}", "title": f"title {text}", "text": long})
        memory.add({"id": "other", "title": "violin", "text": f"It names title {text} and a violin."})
        question = f"violin {text}"
        hits, answer = memory.retrieve(question, 2), memory.ask(question, max_new_tokens=4)
        explained = memory.explain(question, hits[0])
    clean = squeezed(Reader(f"<p>{escaped(text)}</p>").seen)
    for shown in (hits, answer, answer.trace, explained):
        page = Reader(shown._repr_html_())
        assert clean in squeezed(page.seen)
        assert not any(ord(c) < 32 and c not in "\n\t" for c in page.seen)


def test_an_answer_shows_its_sources_quotes_and_rounds():
    trace = Trace("text", (), (), {"encode": 0.2, "decode": 1.3, "queue": 0.0}, 5, 7, 2, "stop")
    text = "The mill was built by Anna Veld in 1821."
    quote = Quote("Anna Veld", 22 + 100, 31 + 100, text)
    source = Source("mill", 1.5, 1, text, "Kestrel Mill", {}, 100, 140, "Builders", 0.83, (quote,))
    page = Reader(Answer("Anna Veld", (source,), trace, grounded=False)._repr_html_())
    assert page.marked["u"][0] == "Anna Veld" and page.marked["p.answer"] == ["Anna Veld"]
    assert "relevance 83%" in page.seen and "Builders" in page.seen and "do not stand in what was read" in page.seen
    assert "encode 200 ms" in page.seen and "decode 1.3 s" in page.seen and "queue" not in page.seen
    silent = Reader(Answer("The memory does not say.", (), trace, abstained=True)._repr_html_())
    assert "Nothing was read" in silent.seen


def test_hits_outlive_their_memory_and_are_copied(tmp_path, backbone):
    memory = opened(tmp_path, backbone)
    memory.add(topics(3))
    hits = memory.retrieve("violin glacier", 2)
    shown = hits._repr_html_()
    assert 'span class="chunk"' in shown
    for twin in (copy.deepcopy(hits), copy.copy(hits)):
        assert twin == hits and isinstance(twin, Hits) and twin.question == hits.question
        assert dict(twin.seconds) == dict(hits.seconds) and twin.chunk(twin[0]) is None
        Reader(twin._repr_html_())
    memory.close()
    del memory
    gc.collect()
    assert hits.chunk(hits[0]) is None
    Reader(hits._repr_html_())


def test_spans_may_overlap_and_windows_keep_the_focus():
    text = "one two three four"
    outer = MarkedSpan(0, 13, "<b>", "</b>")
    assert spanned(text, [outer, *words([(4, 7)])]) == "<b>one </b><b><mark>two</mark></b><b> three</b> four"
    assert spanned(text, [outer], 4, 7) == "\u2026 <b>two</b> \u2026"
    assert spanned("", []) == ""
    long = "word " * 1000
    start, end = window(long, (2500, 2504), 100)
    assert start <= 2500 < 2504 <= end and end - start <= 100 and long[start:end].strip().startswith("word")
    assert window("short", (0, 3), 100) == (0, 5)
    assert window("x" * 500, (490, 500), 100) == (400, 500)
