# The two commands of the README, and a few for those who work on Syrup.
# Cargo and vm/run decide what is up to date; nothing here does.

# clang-19 where it is, as .cargo/config.toml says; elsewhere any that is new enough.
export BPF_CLANG ?= $(firstword $(notdir $(shell command -v clang-19 clang-20 clang-21 clang-22 clang 2>/dev/null)) clang-19)

RELEASE := target/release
# Built here once: the emulated machine would take minutes.
DEMO_KEYS := 10000
DEMO_DB := target/bench-db-$(DEMO_KEYS)
# In a machine with two CPUs for the server and one for the load generator.
DEMO_RUN = --cpus 3 --memory 3G --timeout 3600 -- sh -c 'cp -r $(DEMO_DB) /tmp/demo-db && \
	exec $(RELEASE)/syrup-bench run demo --db /tmp/demo-db --keys $(DEMO_KEYS) "$$@"' demo

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# What was interrupted goes on; what is complete is measured anew. Without hardware
# virtualisation guest time counts instructions, and so does not depend on what else the
# host does: two machines, one per core, share the rounds.
.PHONY: demo
demo: release ## RocksDB under a policy at each of two layers, and at both, in a VM: table and report
	$(RELEASE)/syrup-bench build-db --db $(DEMO_DB) --keys $(DEMO_KEYS)
	[ ! -e target/demo/results.json ] || rm -r target/demo
	case $$(vm/run --print-accel) in \
	kvm) vm/run $(DEMO_RUN) --dilation 10 ;; \
	*) trap 'kill $$first 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	   vm/run --icount --name demo-1 $(DEMO_RUN) --round 1,4 & first=$$!; \
	   vm/run --icount --name demo-2 $(DEMO_RUN) --round 2,3; second=$$?; \
	   wait $$first && exit $$second ;; \
	esac
	$(RELEASE)/syrup-bench report demo
	$(RELEASE)/syrup-bench check demo

.PHONY: test
test: deps ## every test, natively and in VMs; ARGS=--help tells of parts
	tests/run $(ARGS)

# A folder of diffs, each of them a defect that some test should see.
PATCHES := tests/mutants

.PHONY: mutants
mutants: deps ## tests of the tests: defects put in, one at a time (PATCHES=FOLDER: yours)
	tests/mutants/run --patches $(PATCHES) $(if $(filter $(PATCHES),tests/mutants),--generated 300) $(ARGS)

# Of the reader of policy objects, which tenants write.
.PHONY: fuzz
fuzz: deps ## fuzz the reader of policy objects for SECONDS (600)
	tests/fuzz/run object $(SECONDS)

.PHONY: native
native: figures ## the same as figures

# Each goes on where it was interrupted, and wants the machine for itself.
.PHONY: figures
figures: release ## the experiments that run on this kernel: measured, and their criteria checked
	$(RELEASE)/syrup-bench run cost
	$(RELEASE)/syrup-bench run figure-2
	$(RELEASE)/syrup-bench run figure-6
	$(RELEASE)/syrup-bench check cost
	$(RELEASE)/syrup-bench check figure-2
	$(RELEASE)/syrup-bench check figure-6

.PHONY: figures-vm
figures-vm: demo ## the experiments that need a guest

.PHONY: release
release: deps
	cargo build --release -p syrupctl -p syrupd -p syrup-bench

# What is installed lies below DESTDIR until a package is made of it.
PREFIX ?= /usr/local

.PHONY: install
install: release ## syrupctl, syrupd, libsyrup with its header and .pc file (PREFIX, DESTDIR)
	cargo build --release -p syrup
	install -D -t $(DESTDIR)$(PREFIX)/bin $(RELEASE)/syrupctl $(RELEASE)/syrupd
	scripts/install-library $(RELEASE) "$(DESTDIR)" $(PREFIX)

.PHONY: deps
deps: ## install what building and testing need
	scripts/install-deps

.PHONY: format
format: ## format Rust and C
	cargo fmt --all
	scripts/clang-format -i
