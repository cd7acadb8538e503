# make train | test | lint | format | abi | sanitize: each sets up what it needs in this checkout.
#   TORCH    what to install as torch; the kernels are built against it
#   ARGS     more arguments for the trainer or pytest: make train ARGS="--epochs 1"
#   WORKERS  how the tests are spread over processes; empty for a single one
#   TOOLKIT  one more package to install, such as 'cuda-toolkit[nvcc,cccl]' where there is no nvcc
TORCH ?= torch>=2.10
ABI_TORCH ?= torch==2.13.0
PYTHON ?= python3
# Most tests keep one core busy, whatever the ops' threads.
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal

VENV := .venv
BIN := $(VENV)/bin
ABI_VENV := .venv-abi
# Another torch, another stamp: "torch==2.14.1" gives has-torch-2.14.1.
stamp = $(1)/has-$(subst >=,-from-,$(subst ==,-,$(2)))
HAS_TORCH := $(call stamp,$(VENV),$(TORCH))
HAS_ABI_TORCH := $(call stamp,$(ABI_VENV),$(ABI_TORCH))
BUILT := $(VENV)/built
KINDS := h inc cpp cu cuh c
NATIVE := $(foreach kind,$(KINDS),$(wildcard csrc/*.$(kind) csrc/*/*.$(kind)))
RIG := $(foreach kind,$(KINDS),$(wildcard tests/ptxcpu/*/*.$(kind) tests/ptxcpu/*/*/*.$(kind)))
PIP := bin/pip install --quiet --disable-pip-version-check

.PHONY: train test build lint format abi sanitize clean

train: build
	$(BIN)/python -m cnnkern train $(ARGS)

# The second command runs what needs a GPU, on the CPU where there is none.
test: build
	$(BIN)/python -m pytest -m "not gpu" $(WORKERS) $(ARGS)
	$(BIN)/python tests/run_gpu.py $(ARGS)

build: $(BUILT)

# The formatters come with the package's extras, so that lint and format need the build too.
lint: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(NATIVE) $(RIG)

format: build
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(NATIVE) $(RIG)

# One build for every torch: the library just built, loaded by an older torch.
abi: build $(HAS_ABI_TORCH)
	PYTHONPATH=. $(ABI_VENV)/bin/python tests/stable_abi_smoke.py --another-torch

sanitize: build
	tests/sanitize.sh $(BIN)/python $(ARGS)

clean:
	rm -rf $(VENV) $(ABI_VENV) build *.egg-info cnnkern/*.so

# Built without isolation, against the torch that the kernels will run in.
$(BUILT): $(HAS_TORCH) pyproject.toml setup.py $(NATIVE)
	$(VENV)/$(PIP) --no-build-isolation --editable '.[test]'
	touch $@

$(HAS_TORCH):
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/has-*
	$(VENV)/$(PIP) '$(TORCH)' $(TOOLKIT:%='%') 'setuptools>=77' ninja pybind11
	touch $@

$(HAS_ABI_TORCH):
	$(PYTHON) -m venv $(ABI_VENV)
	rm -f $(ABI_VENV)/has-*
	$(ABI_VENV)/$(PIP) '$(ABI_TORCH)' numpy
	touch $@
