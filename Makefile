# `make run` and `make test` are the whole set-up: both make the environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Waiting OpenMP threads spin by default, which on two busy cores costs more than they gain.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: run test check slow slurm gpu doctor list setup clean
.DEFAULT_GOAL := run

run: setup  ## the main job: PQCache on the miniature narrativeqa
	$(BIN)/python run.py method=pqcache task=narrativeqa

test: setup  ## the default tests (no GPU, no network, under six minutes), a file's tests in one of two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: setup  ## ruff, mypy --strict, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_layers.py

slow: setup  ## tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

slurm: setup  ## a sweep on a throw-away Slurm of this machine (installs it where it is missing)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/test_slurm.py

gpu: setup  ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

doctor: setup  ## versions, devices, attention backends, data and models found
	$(BIN)/python -m scripts.doctor

list: setup  ## methods, tasks, models, runs
	$(BIN)/python -m scripts.list

setup: .venv/ready

# Python 3.11 or newer; the constraints pin every version, the machine's pip decides between CPU and CUDA torch.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.11; give PYTHON=path, as in make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:  ## remove the environment (results stay)
	rm -rf .venv build *.egg-info
