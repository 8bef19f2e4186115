# Two commands for a fresh machine with Python 3.11, git and make:
#   make quickstart    set up a virtual environment and run the whole way on real images
#   make test          set up, then check (ruff, mypy, design rules) and test
PYTHON ?= python3.11
STORE ?= dass-store
BIN := .venv/bin
READY := .venv/ready

.PHONY: quickstart test test-ceph chaos bench check format lock clean

quickstart: $(READY)
	$(BIN)/python -m jobs quickstart --store $(STORE)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not ceph and not chaos"

# The store against a real Ceph gateway; as root on Debian it installs what is missing.
test-ceph: $(READY)
	$(BIN)/python -m pytest -n 0 -m ceph tests/cluster

# Schedules in virtual time, then faults at random moments into real collections; an hour and more, appended to
# tests/chaos/results.json. It needs root on Debian for a real store and a disk of its own; python -m tests.chaos inject
# --help tells how to strike less.
chaos: $(READY)
	$(BIN)/python -m tests.chaos simulate --schedules 10000 --seed $$(date +%s) --workers 2
	$(BIN)/python -m tests.chaos inject --seed $$(date +%s)

# Speed, measured side by side on this machine; python -m tests.benchmarks NAME --help tells the options of each.
# This takes a quarter of an hour; README tells the commands of its figures, which take an hour.
bench: $(READY)
	$(BIN)/python -m tests.benchmarks embed
	$(BIN)/python -m tests.benchmarks embed --stream --points 10 100 1000 10000
	$(BIN)/python -m tests.benchmarks cohort --cohorts 1 8 --rounds 2
	$(BIN)/python -m tests.benchmarks levers
	$(BIN)/python -m tests.benchmarks meta
	$(BIN)/python -m tests.benchmarks store --records 1000 10000
	$(BIN)/python -m tests.benchmarks control-plane --runs 250 --lanes 1 2
	$(BIN)/python -m tests.benchmarks quickstart

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/design

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment is made anew when the lock file or the project's metadata changes.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

# Rewrites the lock file from pyproject.toml; plain versions only, so that it installs anywhere.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 torchvision==0.28.0
	.venv-lock/bin/python -m pip install --quiet --editable '.[dev]'
	{ echo "# Written by 'make lock' from pyproject.toml."; .venv-lock/bin/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | grep -vE '^(nvidia-|triton|-e )'; } > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
