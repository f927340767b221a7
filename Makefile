# Two commands matter: make demo, make test. Both set up a virtual environment first (VENV, default .venv).
PYTHON ?= python3
VENV ?= .venv
VENV_FFCV ?= .venv-ffcv
BIN := $(VENV)/bin
SLURM_PACKAGES := slurmctld slurmd slurm-client munge iproute2
LAB := $(or $(TMPDIR),/tmp)/graticule-lab
IN_LAB = slurm/lab.sh run $(abspath $(BIN))/python -m pytest -m slurm
FFCV_PACKAGES := libopencv-dev libturbojpeg0-dev pkg-config g++

.PHONY: setup demo test lint test-slurm test-ffcv test-gpu test-browser clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# DEMO='--method cips' trains the other method.
demo: setup
	$(BIN)/graticule demo $(DEMO)

# The README's picture.
docs/demo.png: setup
	$(BIN)/graticule demo
	mkdir -p docs && cp demo/mspie.png $@

# The picture of docs/seeing.md's section on CIPS.
docs/cips.png: setup
	$(BIN)/graticule demo --method cips
	mkdir -p docs && cp demo/cips.png $@

# The picture of docs/comparing.md. Needs Chromium: apt-get install --no-install-recommends chromium fonts-dejavu-core
docs/mlflow_compare.png: setup
	$(BIN)/python -m tests.browser.compare $@

test: setup
	$(BIN)/python -m pytest -n logical --dist loadfile -m "not slurm and not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# A real Slurm on this machine, two beside each other as most tests wait; as root it also installs the distribution's packages where they are missing.
test-slurm: setup
	command -v slurmctld >/dev/null || if test "$$(id -u)" = 0; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES); \
	else echo "install these packages first: $(SLURM_PACKAGES)"; exit 1; fi
	SLURM_LAB_DIR=$(LAB)-2 SLURM_LAB_PORT=26900 $(IN_LAB) tests/slurm/test_unkillable.py & other=$$!; \
	SLURM_LAB_DIR=$(LAB)-1 $(IN_LAB) --ignore=tests/slurm/test_unkillable.py tests/slurm; code=$$?; \
	wait $$other && exit $$code

# FFCV is compiled as it is installed; as root this also installs the packages that it needs for that.
test-ffcv: $(VENV_FFCV)/.installed
	$(VENV_FFCV)/bin/python -m pytest tests/data/test_beton.py

$(VENV_FFCV)/.installed: pyproject.toml constraints.txt
	pkg-config --exists opencv4 libturbojpeg || if test "$$(id -u)" = 0; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(FFCV_PACKAGES); \
	else echo "install these packages first: $(FFCV_PACKAGES)"; exit 1; fi
	test -x $(VENV_FFCV)/bin/python || $(PYTHON) -m venv $(VENV_FFCV)
	$(VENV_FFCV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ffcv]'
	touch $@

test-gpu: setup
	GRATICULE_TEST_GPU=1 $(BIN)/python -m pytest -m gpu

# The pages of MLflow as a browser shows them; needs Chromium, as above.
test-browser: setup
	GRATICULE_TEST_BROWSER=1 $(BIN)/python -m pytest tests/browser

clean:
	rm -rf $(VENV) $(VENV_FFCV) .pytest_cache .ruff_cache build *.egg-info
