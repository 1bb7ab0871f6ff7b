# make demo   sets everything up and writes the depth of the example photos to depth/
# make test   sets everything up and runs the tests, on all cores: at most eight minutes on two
# make quick  the same without the slow tests: at most two minutes on two cores
# make lint   ruff and mypy
# make docs   the documentation site in site/
# make clean  removes what the above made
#
# The same as plain commands, for machines without make: docs/install.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
# Adds an extra; the extension is in the checkout by then and is not built a second time.
ADD := DAFAST_NO_EXTENSION=1 $(INSTALL) --no-build-isolation
STAMPS := $(VENV)/stamps

# Installed again when these change; Python files are read from the checkout itself.
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h csrc/*/*/*.h)

.PHONY: demo test quick lint docs clean
.DELETE_ON_ERROR:

demo: $(STAMPS)/install
	$(BIN)/dafast run examples/photos --out depth --side-by-side --overwrite
	@echo
	@echo "The pictures are in depth/: NAME_color.png, NAME_depth.png (16 bit) and NAME_side.png."

# With bytecode: without it every process compiles every test, which takes 5 seconds.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto

test: $(STAMPS)/test
	$(PYTEST)

quick: $(STAMPS)/test
	$(PYTEST) -m "not slow and not exhaustive and not cluster and not gpu"

lint: $(STAMPS)/test $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dafast

docs: $(STAMPS)/test $(STAMPS)/docs
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/build_site.sh

# torch first: the extension builds against it, outside of pip's isolated build, which would fetch
# another torch.
$(STAMPS)/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dafast needs Python 3.11 or newer; make PYTHON=python3.12 takes another")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch into $(VENV) ..."
	$(INSTALL) torch "setuptools>=77" pybind11 ninja
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/install: $(STAMPS)/torch $(SOURCES)
	@echo "Installing dafast ..."
	$(INSTALL) --no-build-isolation -e .
	@$(BIN)/python -c 'from dafast.ops import _extension; why = _extension.why_missing(); print("dafast: without its C++ extension, slower in places: " + why if why else "dafast: with its C++ extension")'
	@touch $@

$(STAMPS)/test: $(STAMPS)/install
	@echo "Installing what the tests need ..."
	$(ADD) -e '.[test]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/install
	$(ADD) -e '.[dev]'
	@touch $@

$(STAMPS)/docs: $(STAMPS)/install
	$(INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist depth site *.egg-info dafast/_C*.so .pytest_cache .ruff_cache .mypy_cache
