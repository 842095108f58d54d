# SPDX-License-Identifier: MIT
# pykcm: what is run and how. Every target installs what it lacks (see ci/setup).
# ARGS are handed on: make test ARGS="-k framing"; make demo ARGS="--seed 7".
# KERNEL=6.12 asks for a guest with that kernel, also where the host has KCM. It is a series of Debian's
# (ci/kernel --list), stock for the newest of this machine's release, a bzImage, or the directory in
# which a kernel was built: docs/test-my-kernel.md.

.POSIX:
.PHONY: help demo test matrix peers hosts systemd mutants kernel debug bench container shell man dist
.PHONY: docs clean

help: ## this list
	@sed -n 's/^\([a-z]*\): ## /    make \1 \t/p' Makefile | expand -t 24

demo: ## messages over four TCP connections to three processes, each checked
	@ci/demo $(ARGS)

test: ## every test: the unit tests here, the kernel tests where there is KCM
	@ci/test $(ARGS)

matrix: ## the selftest and kernel tests on four kernel series, with ALL=1 on all; peers on one
	@ci/matrix $${ALL:+--all} $${KERNEL:+--kernel "$$KERNEL"} $(ARGS)

bench: ## what a message costs, beside C, sockets and dispatchers; writes docs/performance.md
	@ci/setup vm bench && .venv/bin/python -m bench.performance $${KERNEL:+--kernel "$$KERNEL"} $(ARGS)

systemd: ## the example units, run by Debian's newest systemd in a guest
	@ci/systemd $(ARGS)

peers: ## servers of Debian's, their answers compared with a plain reader's
	@ci/peers $${KERNEL:+--kernel "$$KERNEL"} $(ARGS)

hosts: ## replicas on three hosts, behind one Multiplexor and behind HAProxy
	@ci/peers --hosts $${KERNEL:+--kernel "$$KERNEL"} $(ARGS)

mutants: ## bugs that KCM has had, put back one at a time, and what sees them
	@ci/mutants $${KERNEL:+--kernel "$$KERNEL"} $(ARGS)

kernel: ## a kernel with KASAN, lockdep, gcov and more; with KCSAN=1 the one with KCSAN
	@ci/build-kernel $${KCSAN:+--kcsan} $(ARGS)

debug: ## the selftest and tests on that kernel: faults, leaks, what of KCM is reached
	@ci/debug $${KCSAN:+--kcsan} $(ARGS)

container: ## the tests in a container
	@ci/container $(ARGS)

shell: ## a shell where KCM works
	@ci/run-kcm bash --norc $(ARGS)

man: ## the manual pages of kcm, in build/man
	@ci/setup && .venv/bin/python -m ci.manual $(ARGS)

dist: ## the source distribution and a wheel, built, checked, in dist/
	@ci/dist

docs: ## the documentation as a site, in build/site
	@ci/setup docs && NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --clean $(ARGS)

clean: ## remove what was built and fetched
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf build dist reports pykcm/_native.c pykcm/*.so pykcm/*.o *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
