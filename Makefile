# MRRN: extract features once, train heads from the cache, fuse them into predictions. `make help` lists everything.
PYTHON3 ?=
WORK ?= work

# The variables of the three stages; each may be given on the command line or in the environment.
override VARIABLES := DATASET DATA SUBSET ALLOW_REMOTE WEIGHTS LEVEL POOL SPLIT SEED RECIPE CLIPS RUN VIEWS FORMAT DEVICE JOBS ENGINE WORKERS WATCH CALIBRATE FRESH TABLE VIDEO CACHE AGAIN WORK BACKBONE

# What is given is text. Make would expand it: `$(shell ...)` in a file's name would run, `$HOME` become OME.
override define newline


endef
# For messages of the commands (cache/common/commands.py): how make was called, and which variables were exported.
override from = $(foreach name,$(VARIABLES),$(if $(filter $(1),$(firstword $(origin $(name)))),$(if $(value $(name)),$(name))))
override EXPORTED := $(call from,environment)
override GIVEN := $(call from,command)
override literal = $(if $(findstring $(newline),$(value $(1))),$(error $(1) has a line break))$(eval override $(1) := $$(value $(1)))
$(foreach name,PYTHON3 $(VARIABLES),$(call literal,$(name)))
# A misspelt one would change nothing in silence. It may also be meant for a program's environment, so it is no error.
override OTHERS := $(strip $(foreach name,$(filter-out PYTHON3 $(VARIABLES),$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
$(if $(filter 0,$(MAKELEVEL)),$(if $(OTHERS),$(warning no target reads $(OTHERS): docs/usage.md has the variables)))

override VENV := .venv
override PY := $(VENV)/bin/python
# What the given values need beside the runtime (setup.cfg, extras_require); each has its own stamp.
override EXTRAS := $(if $(filter timm:%,$(BACKBONE)),timm) $(if $(filter efficientnet-lite0,$(BACKBONE)),offline) \
	$(if $(filter s3://%,$(CACHE)),s3)
override READY := $(VENV)/.ready $(EXTRAS:%=$(VENV)/.ready-%)
override DEV := $(VENV)/.ready-dev
override quoted = '$(subst ','\'',$(1))'
override option = $(if $($(2)),$(1) $(call quoted,$($(2))))
override assigned = $(foreach name,$(1),$(name)=$(call quoted,$($(name))))
override TYPED := $(if $(value MRRN_MAKE),$(value MRRN_MAKE),$(strip $(call assigned,$(EXPORTED)) make $(MAKECMDGOALS) $(call assigned,$(GIVEN))))
override flag = $(if $(filter-out 0 no false,$($(2))),$(1))
override WHERE = --work $(call quoted,$(WORK)) $(call option,--dataset,DATASET)
override ON = $(call option,--device,DEVICE)
override EXTRACT = $(WHERE) $(ON) $(call option,--data,DATA) $(call flag,--subset,SUBSET) $(call flag,--allow-remote,ALLOW_REMOTE) \
	$(call option,--weights,WEIGHTS) $(call option,--backbone,BACKBONE) $(call option,--views,VIEWS) $(call option,--format,FORMAT) \
	$(call option,--cache,CACHE) $(call option,--jobs,JOBS) $(call option,--engine,ENGINE) $(call option,--workers,WORKERS) \
	$(call option,--again,AGAIN)
override CHOICE = $(WHERE) $(call option,--pool,POOL) $(call option,--split,SPLIT) $(call option,--seed,SEED) $(call option,--recipe,RECIPE) \
	$(call option,--clips,CLIPS) $(call flag,--watch,WATCH)
override TRAIN = $(CHOICE) $(ON) $(call flag,--fresh,FRESH)
override FUSE = $(CHOICE) $(call option,--run,RUN)

.DEFAULT_GOAL := help
.PHONY: help install demo data extract checked cached train fuse doctor reproduce sweep predict test test-all gpu-check lint format clean clean-venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { \
		what = $$2; given = ""; \
		if (match($$2, /  +[A-Z_]+=/)) { what = substr($$2, 1, RSTART - 1); given = substr($$2, RSTART + 2); gsub(/^ +/, "", given) } \
		printf "  make %-12s %s\n", $$1, what; \
		while (given != "") { \
			rest = ""; line = given; \
			while (length(line) > 60) { n = match(line, / [^ ]*$$/); rest = substr(line, n + 1) " " rest; line = substr(line, 1, n - 1) } \
			printf "%20s%s\n", "", line; given = rest; sub(/ +$$/, "", given) \
		} }' $(firstword $(MAKEFILE_LIST))
	@echo; echo "  Variables are given as in make train LEVEL=mid; docs/usage.md has them all"

demo extract checked cached train fuse data doctor reproduce sweep predict: override export MRRN_MAKE := $(value TYPED)

install: $(READY) ## set up .venv (the other targets do it when needed)

# The Python of a .venv that is there, else the newest that fits. A name alone says little: pyenv has shims that fail.
$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@test "$$(uname -s)" = Linux || { echo "MRRN runs on Linux, this is $$(uname -s): use WSL 2, or a container (Dockerfile)" >&2; exit 1; }
	@given=$(call quoted,$(PYTHON3)); set -- $(PY) python3.14 python3.13 python3.12 python3.11 python3; \
	[ -z "$$given" ] || set -- "$$given"; \
	for python; do \
		"$$python" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && break; \
		python=; \
	done; \
	[ -n "$$python" ] || { echo "no Python 3.11 to 3.14 with its venv module (Debian: python3-venv) among $$*: PYTHON3= names one" >&2; exit 1; }; \
	[ "$$python" = $(PY) ] || { echo "$$python -m venv $(VENV)"; "$$python" -m venv $(VENV); }
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.ready-%: $(VENV)/.ready
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# Another backbone's demo has a folder of its own, as a cache holds the features of one backbone.
demo: $(READY) ## the whole pipeline on a small dataset made on the spot, without network   BACKBONE=
	@$(MAKE) --no-print-directory fuse DATASET=demo $(if $(BACKBONE),WORK=$(call quoted,$(WORK)/$(BACKBONE)))

extract: $(READY) ## stage one: videos -> cached features                DATASET= DATA= SUBSET=1 ALLOW_REMOTE=1 BACKBONE= WEIGHTS= VIEWS= FORMAT=
	@$(PY) -m extract $(EXTRACT)

# For the later stages: a cache in which some videos failed (exit code 3) is complete enough to train from.
cached: $(READY)
	@$(PY) -m extract $(EXTRACT) || test $$? -eq 3

# Hours before they would be looked at.
checked: $(READY)
	@$(PY) -m train $(TRAIN) $(call option,--level,LEVEL) --check

train: checked cached ## stage two: cached features -> heads and scores      DATASET= LEVEL=low|mid|high|all POOL= RECIPE= CLIPS= SPLIT= SEED= WATCH=1 FRESH=1
	@$(PY) -m train $(TRAIN) $(call option,--level,LEVEL)

fuse: $(READY) ## stage three: scores -> predictions, tables, report  DATASET= POOL= RECIPE= CLIPS= SPLIT= SEED= CALIBRATE=1 RUN=
	@$(if $(RUN),,$(MAKE) --no-print-directory train LEVEL=all)
	@$(if $(RUN)$(call flag,on,WATCH),,$(if $(call flag,on,CALIBRATE),$(PY) -m train $(TRAIN) --holdout))
	@$(PY) -m fuse $(FUSE)

doctor: checked cached ## what may be wrong with a dataset: copies, wrong labels  DATASET= SPLIT=
	@$(PY) -m fuse doctor $(FUSE)

data: $(READY) ## download and unpack the official videos and splits  DATASET=ucf101|hmdb51 DATA=
	@$(PY) -m extract data $(call option,--dataset,DATASET) $(call option,--data,DATA)

reproduce: checked cached ## all stages, all of the paper's tables and figures   DATASET=
	@$(PY) -m fuse reproduce $(TRAIN)

sweep: cached ## the paper's grids of settings                       DATASET= TABLE=1|2|fusion
	@$(PY) -m train sweep $(WHERE) $(ON) $(call option,--table,TABLE) $(call flag,--fresh,FRESH)

# If VIDEO is an existing path, it is one video or folder, even with blanks in its name; otherwise blanks separate several.
predict: $(READY) ## top-5 classes of new videos                         VIDEO=clip.mp4 DATASET=
	@video=$(call quoted,$(VIDEO)); if [ -e "$$video" ]; then set -- "$$video"; else set -- $$video; fi; \
	$(PY) -m fuse predict $(FUSE) $(ON) -- "$$@"

test: $(DEV) ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow' --numprocesses auto --dist worksteal

test-all: $(DEV) ## every test
	$(PY) -m pytest

# With whatever python3 the machine has: where a GPU is, an installation of its own is at hand already.
gpu-check: ## is a GPU right, and how fast? Needs no installation (docs/gpu.md)
	python3 benchmarks/gpu_check.py

lint: $(DEV) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(DEV) ## let ruff rewrite the code in the project's style
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

clean: ## remove work/: caches, runs and reports
	rm -rf -- $(call quoted,$(WORK))

clean-venv: ## remove .venv
	rm -rf $(VENV)
