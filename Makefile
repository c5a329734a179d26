# The verbs of this project; `make demo` and `make test` need nothing but Python 3.11 or newer and make.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
FITS    := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
# The first that fits makes the environment. One that is there may still not start, as a shim of pyenv.
PYTHON  ?= $(shell for name in $(PYTHONS); do { "$$name" -c "$(FITS)" && echo "$$name" && break; } 2>/dev/null; done)
VENV   := .venv
BIN    := $(VENV)/bin

# A worker per core; tests that share a cluster run in one of them, the others wherever there is time.
IN_TURNS ?= -n auto --dist loadgroup

.PHONY: demo test test-all parity chaos check fix histories docs docs-update bench bench-growth clean

demo: $(VENV)/.installed
	@$(BIN)/python -m jobs.embed conf/demo.yaml
	@$(BIN)/python -m jobs.search conf/demo.yaml "How do I declare the type of a function's arguments?"

test: $(VENV)/.installed-dev
	$(BIN)/pytest -m "not slow" $(IN_TURNS)

test-all: $(VENV)/.installed-dev
	$(BIN)/pytest $(IN_TURNS)

# Every setting of the model format against sentence-transformers; UPDATE_DOCS=1 writes docs/model-format.md anew.
parity: $(VENV)/.installed-dev
	$(BIN)/pytest tests/parity -s

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate
	$(MKDOCS) --site-dir "$$(mktemp -d)"

# The site, in site/; it fails at a broken link.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
docs: $(VENV)/.installed-dev
	$(MKDOCS)

# What follows from the code in docs/: keys, commands, the tree, the picture of the imports, the JSON Schema.
docs-update: $(VENV)/.installed-dev
	$(BIN)/python -m docs.generate --write

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Kill a build, and a command on a standing table, at N random moments of SEED each and compare the tables; then rows that kill or hang their encoder.
N    ?= 50
SEED ?= 1
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.chaos --kills $(N) --nights $(N) --seed $(SEED)
	$(BIN)/pytest tests/jobs/test_poison.py -k "not every_worker"

# N random histories from SEED on, then every stop point of all pairs of commands, on stores in memory; docs/simulation.md.
histories: N = 1000
histories: $(VENV)/.installed-dev
	$(BIN)/python -m tests.simulation --histories $(N) --seed $(SEED)
	$(BIN)/python -m tests.simulation --pairs objects
	$(BIN)/python -m tests.simulation --pairs disk --every 5

# The encoder and the job beside their peers, an hour; BENCH="--minutes 20", or any other option of it.
BENCH ?=
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.peers $(BENCH)

bench-growth: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.growth $(BENCH)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "This needs Python 3.11 or newer with its module venv, which none of $(PYTHONS) has:" \
		"install one (on Debian: apt install python3-venv), or name one by make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[s3,openvino,demo,documents,search]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed fast-tokenizers.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[s3,openvino,demo,dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/fast-tokenizers -r fast-tokenizers.txt
	@touch $@

# Peers that want other releases than we do have folders of their own, .venv/NAME for benchmarks/NAME.txt.
PEERS := daft peers-openvino peers-onnx
$(VENV)/.installed-bench: $(VENV)/.installed-dev $(PEERS:%=benchmarks/%.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@set -e; for name in $(PEERS); do rm -rf $(VENV)/$$name; \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/$$name -r benchmarks/$$name.txt; done
	@touch $@

clean:
	rm -rf $(VENV) demo-table python-table site
