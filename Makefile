# The commands a person needs. Each sets up what it needs first, so each works on a fresh checkout.

.PHONY: run test soak check bench fuzz

# Two guests on the switch: make run, or make run KEEP=1 to look around afterwards.
run:
	@scripts/setup run
	@OVSVHOST_CACHE=$${OVSVHOST_CACHE:-$(CURDIR)/.cache} .venv/bin/python scripts/demo $(if $(KEEP),--keep)

# Every test; make test ARGS='-k ping' passes arguments to pytest.
test:
	@scripts/setup test
	@scripts/test $(ARGS)

# The long tests that make test leaves out.
soak:
	@scripts/setup test
	@scripts/test -m soak

# What must hold before a commit: formats, lints, types, layers, stubs, documents.
check:
	@scripts/setup test
	@scripts/check

# Criterion's microbenchmarks, then the comparison with OVS-DPDK and testpmd.
bench:
	@scripts/setup bench
	@scripts/bench $(ARGS)

# A minute of vhost-user messages that nobody means, from a seed of its own; make fuzz FUZZ_S=600 takes longer. A short
# run of the same is among the tests.
fuzz:
	@scripts/setup test
	@OVSVHOST_FUZZ_S=$(or $(FUZZ_S),60) scripts/fuzz
