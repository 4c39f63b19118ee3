# make demo | test | examples | bench | lint | clean. Each makes .venv where it is missing, installs what requirements.txt pins,
# builds the extension in place, and runs. GPFAST_NO_EXT=1 does without the extension; PYTHON= picks the interpreter of a new .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# One stamp for each way to build, and only the latest one exists: a change of setting builds again.
ifneq ($(filter-out 0,$(GPFAST_NO_EXT)),)
BUILT := $(VENV)/.built-pure
SOURCES := setup.py pyproject.toml
else
BUILT := $(VENV)/.built-extension$(addprefix -cuda,$(GPFAST_CUDA))
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
endif
export GPFAST_NO_EXT GPFAST_CUDA

.PHONY: build demo test examples bench lint clean

build: $(BUILT)

demo: $(BUILT)
	$(BIN)/python -m gpfast demo $(ARGS)

test: $(BUILT)
	$(BIN)/python -m pytest --ignore tests/simt --ignore tests/emulator $(ARGS)
	$(BIN)/python -m pytest tests/simt tests/emulator -n 2 --dist loadfile $(ARGS)
	$(BIN)/python -m pytest tests/compiled -n 2 --dist loadfile $(ARGS)

# Every example program with --quick, and its figures read; the pictures are left in out/examples.
examples: $(BUILT)
	$(BIN)/python -m pytest tests/examples -n 2 --dist loadfile --pictures out/examples $(ARGS)

bench: $(BUILT)
	$(BIN)/python -m gpfast bench $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf build dist *.egg-info gpfast/_C*.so $(VENV)/.built-*
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

# No build isolation: the build must see the torch that was just installed. Editable, so that gpfast.kernels is found in kernels/.
$(BUILT): $(VENV)/.installed $(SOURCES)
	rm -f gpfast/_C*.so $(VENV)/.built-*
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@
