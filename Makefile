# make demo      see bytes go through, in a private environment
# make test      set up everything the tests need, and run them
# make check     formatting, lint, types and the walls between the rooms
# make coverage  the tests again, measuring which branches they take
# make bench     how fast it is here, beside the best there is: 20 minutes, or ARGS="bulk latency"
# make bench-quick  whether it is much slower than it was: a minute
# make fuzz      look for inputs that no parser expects: half an hour, or SECONDS=60 ARGS="link mux"
# make fuzz-quick  the same in a minute
# make soak      let everything befall bridges that may: ten minutes, or MINUTES=60 ARGS="--seed 1"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find spicebridge man completions -type f -not -name '*.pyc') pyproject.toml
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# tests wait a third of their time, for guests that boot and sockets that close
WORKERS ?= $(shell echo $$(($$(nproc) * 3 / 2)))

.PHONY: demo test check coverage bench bench-quick fuzz fuzz-quick soak packages clean

demo: $(VENV)/installed
	$(BIN)/spicebridge demo $(if $(KEEP),--keep)

test: packages $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: packages $(VENV)/installed-test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: packages $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-quick: packages $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks --quick $(ARGS)

fuzz: SECONDS := 600
fuzz-quick: SECONDS := 60
fuzz-quick: ARGS += --jobs 6
fuzz fuzz-quick: $(VENV)/installed-fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

soak: MINUTES := 10
soak: packages $(VENV)/installed-test
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

packages:
	.ci/packages $(shell cat .ci/packages.txt)

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spicebridge needs Python 3.11 or newer")'
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/packages python3-venv
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/created $(SOURCES)
	$(PIP) install --force-reinstall --no-deps .
	$(PIP) install '.[webdav]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install 'pip>=25.1'
	$(PIP) install --group dev
	touch $@

# where there is no wheel nothing is installed, and tests.fuzz says so
$(VENV)/installed-fuzz: $(VENV)/installed-dev
	$(PIP) install --only-binary atheris --group fuzz
	touch $@

# gssapi is built from its source, with what the packages bring
$(VENV)/installed-test: $(VENV)/installed-dev | packages
	$(PIP) install '.[webdav,gssapi]'
	touch $@

clean:
	rm -rf $(VENV) .cache
