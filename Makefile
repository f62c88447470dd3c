# Needs Python (3.11 or newer) and make; everything else is set up in .venv, once.
PYTHON ?= python3
VENV := .venv
ROBENCH := $(VENV)/bin/robench

DEMO_TRAIN := --dataset digits --backbone small --batch-size 64 --lr 5e-3
DEMO_ATTACK := --suite fgsm,pgd7,pgd20,pgd50,autoattack --n 100
API := $(addprefix robench.,run.attack run.evaluate run.request run.plan run.execute run.verify types norms authoring checkpoint attacks.registry attacks.suites evaluation.contract attacks.nearest attacks.descent data models.classifier models.rewrite \
	evaluation.engine evaluation.judge evaluation.early_stop audit audit.checks report.accuracy report.anytime training)
BENCH_MODEL := checkpoints/paper/cifar10-single-0.safetensors
BENCH_TRAINED := checkpoints/paper/cifar10-single-nfgsm-0.safetensors
DEMO_MODELS := single-0 supervised-0 contrastive-0 single-nfgsm-0

.PHONY: demo test test-all check bench docs clean

demo: $(VENV)/.ok
	$(ROBENCH) train $(DEMO_TRAIN) --arch single --epochs 15
	$(ROBENCH) train $(DEMO_TRAIN) --arch supervised --epochs 15
	$(ROBENCH) train $(DEMO_TRAIN) --arch contrastive --epochs 15
	$(ROBENCH) train $(DEMO_TRAIN) --arch single --adversarial nfgsm --epochs 30
	set -e; for model in $(DEMO_MODELS); do $(ROBENCH) attack --ckpt checkpoints/digits-$$model.safetensors $(DEMO_ATTACK); done
	$(ROBENCH) compare $(DEMO_MODELS:%=reports/digits-%-Linf-0.2) --out reports/digits-demo.md

# The fast claims, in about two minutes on two quiet cores; the slowest are listed.
test: $(VENV)/.ok
	$(VENV)/bin/python -m pytest -m "not slow" --durations=20

# Every claim, with the optional packages, so that only what needs a GPU or a browser is skipped.
test-all: $(VENV)/.all
	$(VENV)/bin/python -m pytest --durations=20

$(VENV)/.all: $(VENV)/.ok
	$(VENV)/bin/python -m pip install --editable '.[dev,models,parquet,transformers]' --constraint constraints.txt
	touch $@

bench: $(VENV)/.ok
	$(VENV)/bin/python -m pip install --editable '.[dev,peers]' --constraint constraints.txt
	$(VENV)/bin/python -m pip install --no-deps 'adv-lib>=0.2.8'  # it needs visdom, which builds no more, for plots alone
	$(VENV)/bin/python benchmarks/startup.py
	$(VENV)/bin/python benchmarks/training.py
	$(VENV)/bin/python benchmarks/truth.py
	$(VENV)/bin/python benchmarks/passes.py --ckpt $(BENCH_MODEL)
	$(VENV)/bin/python benchmarks/columns.py --ckpt $(BENCH_MODEL)
	$(VENV)/bin/python benchmarks/verdicts.py --ckpt $(BENCH_MODEL)
	$(VENV)/bin/python benchmarks/verdicts.py --ckpt $(BENCH_TRAINED) --n 100 --chunk 100

docs: $(VENV)/.ok
	$(VENV)/bin/python -m pip install --editable '.[docs]' --constraint constraints.txt
	$(VENV)/bin/python -m pdoc $(API) --docformat google --output-directory docs/api

check: $(VENV)/.ok
	$(VENV)/bin/ruff check robench tests benchmarks
	$(VENV)/bin/ruff format --check robench tests benchmarks
	$(VENV)/bin/mypy

$(VENV)/.ok: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[dev]' --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
