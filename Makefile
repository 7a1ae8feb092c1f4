TORCH := 2.13.0
TRITON := 3.9.0
OTHER_VERSIONS := 3.12 3.13

# A name on PATH may be a stand-in for an interpreter that is not there, so each is tried.
first_working = $(shell for p in $(1); do \
	"$$p" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)

PYTHON := $(call first_working,python3.11 python3)
BIN := .venv/bin
PIP_INSTALL := -m pip install --disable-pip-version-check --constraint constraints.txt

python_of = $(call first_working,python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python))
LIGHT_VENVS = $(foreach v,$(OTHER_VERSIONS),$(if $(call python_of,$(v)),.venv-$(v)))
empty :=
LIGHT_PYTHONS = $(subst $(empty) $(empty),:,$(LIGHT_VENVS:%=$(CURDIR)/%/bin/python))

# What compiles keeps two cores busy; real processes of the cache wait, most of the time.
COMPILING := --numprocesses 2 --dist loadfile
WAITING := --numprocesses 3 --dist loadfile
REAL_COMPILES := tests/integration $(COMPILING)

SOURCES := $(shell find s3cache integration kernels -name '*.py')

KERNELS := tests/kernels tests/integration/test_triton.py

.PHONY: venv demo test test-torch test-triton lint typecheck bench limits clean

venv: .venv/stamp

demo: .venv/stamp
	$(BIN)/python -m benchmarks.demo

test: lint typecheck $(LIGHT_VENVS:%=%/stamp)
	$(BIN)/python -m pytest tests/test_*.py tests/kernels $(COMPILING)
	S3CACHE_TEST_PYTHONS=$(LIGHT_PYTHONS) $(BIN)/python -m pytest tests/processes $(WAITING)
	$(BIN)/python -m pytest $(REAL_COMPILES)

# The adapters against another version: make test-torch TORCH=2.11.0
test-torch: .venv-torch-$(TORCH)/stamp
	.venv-torch-$(TORCH)/bin/python -m pytest $(REAL_COMPILES)

# Triton's against another of its versions: make test-triton TRITON=3.6.0
test-triton: .venv-triton-$(TRITON)/stamp
	.venv-triton-$(TRITON)/bin/python -m pytest $(KERNELS)

lint: .venv/stamp build/check/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/check && ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

# Twice: by itself, the package may import nothing that is not in it. What is excluded are a user's scripts,
# and mypy sees nothing of torch.
typecheck: .venv/stamp build/check/stamp
	cd build/check && ../../$(BIN)/mypy --config-file ../../pyproject.toml --package s3cache
	MYPYPATH=build/check $(BIN)/mypy --explicit-package-bases --exclude '^benchmarks/(train|gpu/(llama|unseen))\.py$$' \
		tests benchmarks

# make bench ARGS='--only d,f --runs 9'
bench: .venv/stamp
	$(BIN)/python -m benchmarks.ratios $(ARGS)

# make limits ARGS='--only fill --runs 3'; Redis beside it: apt-get install redis-server
limits: .venv/stamp
	$(BIN)/python $(PIP_INSTALL) --quiet --group limits
	$(BIN)/python -m benchmarks.limits $(ARGS)

clean:
	rm -rf .venv .venv-* build *.egg-info

.venv/stamp: pyproject.toml constraints.txt Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later, with venv, is needed." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python $(PIP_INSTALL) torch==$(TORCH) triton==$(TRITON) --editable . --group dev
	touch $@

.venv-torch-%/stamp: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv-torch-$*
	.venv-torch-$*/bin/python -m pip install --disable-pip-version-check 'pip>=25.1'
	.venv-torch-$*/bin/python $(PIP_INSTALL) torch==$* --editable . --group dev
	touch $@

.venv-triton-%/stamp: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv-triton-$*
	.venv-triton-$*/bin/python -m pip install --disable-pip-version-check 'pip>=25.1'
	.venv-triton-$*/bin/python $(PIP_INSTALL) torch==$(TORCH) triton==$* --editable . --group dev
	touch $@

# Other interpreters, without torch: for what must hold on each of them.
.venv-%/stamp: pyproject.toml constraints.txt Makefile
	$(call python_of,$*) -m venv .venv-$*
	.venv-$*/bin/python $(PIP_INSTALL) --editable . pytest
	touch $@

# The editable install maps folders to packages by an import hook, which neither mypy nor grimp can
# see: they read a plain copy, which is also what a wheel would hold.
build/check/stamp: .venv/stamp $(SOURCES)
	rm -rf build
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
		--no-build-isolation --target build/check .
	touch $@
