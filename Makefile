# Nothing but Python 3.11 or newer, pip and make is needed: uv comes with pip, and
# brings the rest.
PYTHON ?= python3
PORT ?= 8000
UV := build/tools/bin/uv$(if $(filter Windows_NT,$(OS)),.exe)
SERVICE := build/my-async-service
ONLOOP := {{cookiecutter.project_slug}}/vendor/onloop
# A [tool.ruff] of its own would outrank that of a service, which leaves vendor/ alone.
RUFF_ONLOOP := --no-cache --config pyproject.toml --config 'lint.isort.known-first-party=["onloop"]'
ONLY ?=
PRODUCT ?= template
# With PYTHONDONTWRITEBYTECODE, every process would recompile Django.
unexport VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
# Behind a proxy the certificate to trust is the machine's; pip knows that by itself.
export UV_SYSTEM_CERTS := 1

.PHONY: run test test-all lint bench screenshots release
.SILENT:

run: $(UV) | $(SERVICE)
	echo "==> Starting $(SERVICE) (the first start installs it). Try, in a browser or with curl -i:"
	echo "      http://127.0.0.1:$(PORT)/"
	echo "      http://127.0.0.1:$(PORT)/hello/you/"
	echo "      http://127.0.0.1:$(PORT)/ticks/"
	python=$$($(PYTHON) -c 'import sys; print(sys.executable)') && \
	cd $(SERVICE) && UV_PYTHON=$$python exec ../tools/bin/uv run manage.py runserver $(PORT)

test: $(UV)
	echo "==> Testing onloop on each Django, and a service for every pair of choices"
	$(UV) run pytest $(ONLY)

test-all: $(UV)
	echo "==> Rendering and linting every combination of all choices"
	$(UV) run python -W error -W ignore:XDG_RUNTIME_DIR -m tests.template.product

lint: $(UV)
	$(UV) run ruff check .
	$(UV) run ruff format --check .
	$(UV) run ruff check $(RUFF_ONLOOP) --extend-select ASYNC,DJ "$(ONLOOP)"
	$(UV) run ruff format $(RUFF_ONLOOP) --check "$(ONLOOP)"
	$(UV) run mypy

bench: $(UV)
	$(UV) run python -m benchmarks.run $(ONLY)

screenshots: export SCREENSHOTS := 1
screenshots: export BROWSER := required
screenshots: $(UV)
	$(UV) run pytest tests/template/test_pictures.py

release:
	$(PYTHON) release.py "$(PRODUCT)" "$(VERSION)"

$(UV):
	echo "==> Installing uv into build/tools"
	$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("Python 3.11 or newer is needed, and this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3")'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target build/tools uv

$(SERVICE): $(UV)
	echo "==> Generating $(SERVICE) with the default answers"
	$(UV) tool run --quiet --from "cookiecutter>=2.7" cookiecutter --no-input --output-dir build .
