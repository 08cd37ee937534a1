# Corten. `make demo` shows the main job end to end, `make test` runs every test.
GO      ?= go
BIN     ?= bin
TIMEOUT ?= 45m
VERSION ?= 0.1.0
COMMIT  := $(shell git rev-parse --short=9 HEAD 2>/dev/null || echo unknown)
LD      := -s -w -X corten.dev/corten/internal/version.Version=$(VERSION) -X corten.dev/corten/internal/version.Commit=$(COMMIT)
# grpcnotrace: with gRPC's page of traces come templates, which call methods by name, and with these no method of the whole engine can be left out: 9 MB.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -tags grpcnotrace
EMBED   := internal/monitor/bin/corten-monitor internal/image/hello/bin/corten-hello internal/engine/containers/initbin/corten-init \
	internal/registry/program/bin/corten-registry

.PHONY: build embed demo test test-real test-vm lint bench bench-scale docs cross clean
.DEFAULT_GOAL := build

build: embed
	$(BUILD) -ldflags '$(LD)' -o $(BIN)/corten ./cmd/corten
	$(BUILD) -ldflags '$(LD)' -o $(BIN)/cortend ./cmd/cortend

# The small programs that cortend carries inside itself. Always built: the Go build cache makes it cheap, and they are never stale.
embed:
	$(BUILD) -ldflags '-s -w' -o internal/monitor/bin/corten-monitor ./cmd/corten-monitor
	$(BUILD) -ldflags '-s -w' -o internal/image/hello/bin/corten-hello ./cmd/corten-hello
	$(BUILD) -ldflags '-s -w' -o internal/engine/containers/initbin/corten-init ./cmd/corten-init
	$(BUILD) -ldflags '$(LD)' -o internal/registry/program/bin/corten-registry ./cmd/corten-registry

demo: build
	$(GO) run ./cmd/corten-demo -bin bin

# Every test: units and suites, scripts of every verb against a real engine, runtime-tools' validation programs, kill -9 loops. Two packages at a time, because most of them keep several
# processors busy; the limit (TIMEOUT) is for a package that hangs, not for one on a slow machine.
test: build
	CORTEN_BIN_DIR=$(abspath $(BIN)) CGO_ENABLED=0 $(GO) test -p 2 -timeout $(TIMEOUT) ./...

# Dockerfiles as people have them, with their installs of packages through the network. Debian's tree is made once (needs debootstrap); about five minutes.
test-real: build
	CORTEN_REAL=1 CGO_ENABLED=0 $(GO) test -count 1 -timeout 15m -v ./internal/realbuild

# The same main job and the suites of the rooms that touch the kernel, in a Debian virtual machine with cgroup v2 and systemd.
test-vm: build
	./internal/vm/run

lint:
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	@test -z "$$(gofmt -l cmd internal)" || { echo "gofmt needed:"; gofmt -l cmd internal; exit 1; }
	$(GO) test ./internal/house

bench: build
	$(GO) run ./cmd/corten-bench -bin bin
	$(GO) run ./cmd/corten-bench -bin bin -build -json bench-build.json
	$(GO) run ./cmd/corten-bench -bin bin -ship

# Start time, ps and memory while 0, 200 and 1,000 other containers run.
bench-scale: build
	$(GO) run ./cmd/corten-bench -bin bin -scale 0,20,200,1000
	$(GO) run ./cmd/corten-bench -bin bin -networks
	$(GO) run ./cmd/corten-bench -bin bin -volumes

docs:
	$(GO) run ./cmd/corten-docs docs
	UPDATE=1 $(GO) test ./internal/settings

# The command line for the desks of people, both binaries for the other Linux machines.
cross: embed
	for t in darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do \
	  CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) build -o /dev/null ./cmd/corten || exit 1; done
	for t in ./cmd/corten ./cmd/cortend ./cmd/corten-monitor ./cmd/corten-init ./cmd/corten-hello ./cmd/corten-registry; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null $$t || exit 1; done

clean:
	rm -rf bin $(EMBED)
