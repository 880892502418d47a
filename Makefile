# mirror-agent: `make help` tells what there is.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BIN     := bin/mirror-agent

# What tests wait for at most, per package.
TEST_TIMEOUT ?= 45m
TEST_FLAGS   ?=
REPORT_FLAGS ?=
# Rooms whose tests also run with the race detector (needs a C compiler).
RACE_ROOMS   := ./blockdev/... ./journal/... ./dataport/... ./mirror/... ./cmd/...

TORTURE_SECONDS ?= 600
TORTURE_ROUNDS  ?=
TORTURE_CHAOS   ?=
TORTURE_SOAK    ?=
PLANTED         ?= 1
SOAK_SECONDS    ?= 3600
SOAK_README     ?= README.md
DEMO_FLAGS      ?=
BENCH_FLAGS     ?=

export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help build package demo test race torture crash planted bench soak lint fmt deps clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/mirror-agent, one static binary
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/mirror-agent

package: ## bin/package: a Debian package with units, manual pages, completion; SBOM, checksums (GOARCH=arm64)
	VERSION='$(VERSION)' scripts/package/build.sh bin/package

demo: build ## source, target and backup on this machine, explained as they run (DEMO_FLAGS=…)
	$(BIN) demo $(DEMO_FLAGS)

deps: ## Debian packages that tests and benchmarks use
	scripts/deps.sh

test: ## all tests, with real clients and processes (TEST_FLAGS='-run NAME')
	@scripts/deps.sh || echo "make test: going on without them; a test that needs one says so and is skipped" >&2
	@scripts/test.sh -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) ./...

race: ## unit tests with the race detector
	@CGO_ENABLED=1 scripts/test.sh -race -short -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) $(RACE_ROOMS)

torture: build ## kill, cut and crash for long (TORTURE_SECONDS=600, or TORTURE_ROUNDS=n)
	TORTURE_SECONDS=$(TORTURE_SECONDS) TORTURE_ROUNDS=$(TORTURE_ROUNDS) TORTURE_CHAOS=$(TORTURE_CHAOS) TORTURE_SOAK=$(TORTURE_SOAK) scripts/torture

crash: ## every state that a power cut may leave of the scenarios of the log and the volume, and how many those are
	MIRROR_AGENT_CRASH=full $(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) -run '^TestCrashStates$$' ./journal ./mirror

planted: ## plants faults one by one: which test notices? (PLANTED=1 for all, or a part of a patch's name)
	cd integration/planted && MIRROR_AGENT_PLANTED=$(PLANTED) $(GO) test -count=1 -timeout 3h -run TestPlanted

bench: build ## NBD server, volume, mirror and data port beside nbdkit, qemu, go-nbd, TCP (BENCH_FLAGS='-only front')
	scripts/deps.sh
	$(GO) run ./scripts/bench -agent $(BIN) $(BENCH_FLAGS)

soak: build ## an hour of writes: the memory of source and target at the quarters (SOAK_SECONDS=3600)
	scripts/deps.sh
	SOAK_SECONDS=$(SOAK_SECONDS) SOAK_README='$(SOAK_README)' scripts/soak

lint: ## go vet, gofumpt, golangci-lint, shellcheck
	scripts/lint.sh

fmt: ## rewrites the sources as gofumpt wants them
	$$(scripts/tool.sh gofumpt) -w .

clean: ## removes what build and bench leave
	rm -rf bin bench-data demo-data
