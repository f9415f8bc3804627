"""The passages of data sets as distractors of another one, with ids that differ between the sets.

python docs/results/distractors.py DATA/dev DATA/others musique 2wiki popqa covidqa squad multihoprag cranfield
"""

import gzip
import json
import sys
from pathlib import Path

source, target = Path(sys.argv[1]), Path(sys.argv[2])
target.mkdir(parents=True, exist_ok=True)
for name in sys.argv[3:]:
    found, made = source / name / "corpus.jsonl.gz", target / f"{name}.jsonl.gz"
    with gzip.open(found, "rt") as rows, gzip.open(made, "wt") as file:
        for row in map(json.loads, rows):
            file.write(json.dumps({**row, "id": f"{name}-{row['id']}"}) + "\n")
