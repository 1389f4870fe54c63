# The two commands of the README: `make serve` and `make test`. Each does all the set-up it needs.
PYTHON ?= python3
VENV ?= .venv
LATEST ?= .venv-latest
CLIENTS ?= .venv-clients
BIN := $(VENV)/bin
PIN := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

# The demo model has 6 MiB of weights. A budget of $(BUDGET) for weights, KV cache, staging and
# activations together makes part of it go to disk.
BUDGET ?= 8MiB
SERVE_FLAGS ?= --ui --host 127.0.0.1 --model_name demo --model_dir examples/demo-model \
	--max_model_len 256 --prefill_chunk 64 --max_memory '{"cpu": "$(BUDGET)"}'

# What `make image` makes. TORCH_INDEX_URL: PyTorch's index of CPU wheels makes the image for CPUs.
DOCKER ?= docker
IMAGE ?= accelerate-predictor
TORCH_INDEX_URL ?=
BUILD_FLAGS ?=

# Processes that run the tests: one more than two cores, since each waits a quarter of its time for
# servers and disks. And more flags of pytest's.
WORKERS ?= 3
PYTEST_FLAGS ?=
TESTS := -m pytest --numprocesses $(WORKERS) --dist loadfile \
	--no-loadscope-reorder --durations 10
PYTEST := $(BIN)/python $(TESTS)

# Else every process compiles torch and transformers again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve clients client-pins test test-all test-image test-latest lint types contracts tests docs docs-build \
	generate image benchmarks constraints clean

serve: $(VENV)/serve.stamp
	@$(BIN)/predictor serve $(SERVE_FLAGS)

test: lint types contracts docs-build tests

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

contracts: $(VENV)/test.stamp
	$(BIN)/lint-imports

tests: $(VENV)/test.stamp
	$(PYTEST) --ignore tests/image $(PYTEST_FLAGS)

# Of the image, which is built for it: needs Docker.
test-image: $(VENV)/test.stamp
	$(BIN)/python -m pytest --durations 10 tests/image $(PYTEST_FLAGS)

# With every combination of what is tried, and the image.
test-all: lint types contracts docs-build $(VENV)/test.stamp
	$(PYTEST) --full-grid --ignore tests/image $(PYTEST_FLAGS)
	$(MAKE) test-image

# With the newest version of each dependency, in an environment of its own: neither the constraints nor
# upper bounds hold for it.
test-latest: $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LATEST)
	$(BIN)/python -m tests.newest > $(LATEST)/newest.txt
	$(BIN)/uv pip install --quiet --python $(LATEST)/bin/python --requirements $(LATEST)/newest.txt
	$(BIN)/uv pip install --quiet --python $(LATEST)/bin/python --no-deps --editable .
	$(BIN)/uv pip list --python $(LATEST)/bin/python
	$(LATEST)/bin/python $(TESTS) --ignore tests/image $(PYTEST_FLAGS)

# The clients that tests/clients runs, in an environment of their own: their versions clash with ours.
clients: $(CLIENTS)/clients.stamp

$(CLIENTS)/clients.stamp: $(BIN)/uv tests/clients/pins.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CLIENTS)
	$(BIN)/uv pip sync --quiet --python $(CLIENTS)/bin/python tests/clients/pins.txt
	touch $@

client-pins: $(BIN)/uv
	{ echo "# Every version of the clients that tests/clients runs. Made by: make client-pins"; \
	  $(BIN)/uv pip compile --group clients --universal --python-version 3.11 \
	    --no-annotate --no-header --quiet; } > pins.new
	mv pins.new tests/clients/pins.txt

# The documentation site. The variable turns off a notice about another program's next version.
docs docs-build: export NO_MKDOCS_2_WARNING = 1

docs: $(VENV)/test.stamp
	$(BIN)/mkdocs serve

docs-build: $(VENV)/test.stamp
	$(BIN)/mkdocs build --strict --quiet

# Everything that follows from the code: the chart's schema and table of values, and the tables and
# outputs of the documentation.
generate: $(VENV)/test.stamp
	$(BIN)/python -m helm.generate
	$(BIN)/python -m docs.generator

image:
	$(DOCKER) build --tag $(IMAGE) --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) $(BUILD_FLAGS) .

benchmarks: $(VENV)/test.stamp
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/plan_time.py
	$(BIN)/python benchmarks/contrast.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/serving.py --parts=resident,demo,offloaded,prefix,lookup,adapters,contexts,prefill
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/batch.py
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/offload.py
	$(BIN)/python benchmarks/experts.py
	$(BIN)/python benchmarks/quantised.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/queues.py
	$(BIN)/python benchmarks/link.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/abuse.py

constraints: $(VENV)/test.stamp
	{ echo "# Every version that the tests run with. Made by: make constraints"; \
	  $(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	    --no-annotate --no-header --quiet; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(LATEST) $(CLIENTS) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache \
	  .hypothesis .schemathesis

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

$(VENV)/serve.stamp: $(BIN)/uv pyproject.toml constraints.txt
	$(PIN) --editable .
	touch $@

$(VENV)/test.stamp: $(BIN)/uv pyproject.toml constraints.txt
	$(PIN) --editable '.[dev]'
	touch $@ $(VENV)/serve.stamp
