"""`msa` and time: dates of files and of JSON records, and questions as of a date."""

# ruff: noqa: F811 - fixtures are imported
import json

from cli_fixtures import msa, saved, where  # noqa: F401 - fixtures
from facade import about


def ids(out):
    return {hit["id"] for hit in json.loads(out)}


def test_records_and_files_have_dates_and_questions_ask_as_of_one(msa, where):
    records = [
        {"id": "old", "text": about("violin") + " old", "valid_from": "2020-01-01"},
        {"id": "new", "text": about("violin") + " new", "valid_from": "2025-01-01", "replaces": "old"},
        {"id": "bad", "text": about("violin"), "valid_until": "soon"},
    ]
    (where / "facts.jsonl").write_text("\n".join(map(json.dumps, records)))
    (where / "gone.txt").write_text(about("violin") + " gone")
    code, out, _ = msa("add", "facts.jsonl", "--json")
    assert code == 0 and json.loads(out)["added"] == ["old", "new"]
    assert "UTC" in json.loads(out)["skipped"][0][1]
    code, out, _ = msa("add", "gone.txt", "--valid-until", "2021-01-01", "--json")
    assert code == 0 and json.loads(out)["added"] == ["gone.txt"]
    for options, expected in (
        ((), {"new"}),
        (("--at", "2022-01-01"), {"old"}),
        (("--at", "2020-06-01"), {"old", "gone.txt"}),
        (("--history",), {"old", "new", "gone.txt"}),
    ):
        code, out, _ = msa("retrieve", "violin", "--json", *options)
        assert code == 0 and ids(out) == expected
    code, out, _ = msa("retrieve", "violin", "--history")
    assert "until 2025-01-01T00:00:00+00:00, replaced by new" in out
    code, out, _ = msa("ask", "violin", "--at", "2022-01-01", "--max-new-tokens", "1", "--json")
    assert code == 0 and {source["id"] for source in json.loads(out)["sources"]} <= {"old"}
    code, out, _ = msa("shell", "--at", "2022-01-01", "--json", stdin=b"/find violin\n")
    assert code == 0 and ids(json.dumps(json.loads(out)[0])) == {"old"}
    code, out, err = msa("retrieve", "violin", "--at", "soon")
    assert code != 0 and "UTC" in err
    code, out, err = msa("retrieve", "violin", "--at", "2022-01-01", "--history")
    assert code != 0 and "one of them" in err
