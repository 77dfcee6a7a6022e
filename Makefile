# The two commands to start with are `make run` and `make test`; `make help` lists the others.
PREFIX ?= /usr/local
DESTDIR ?=
PRESET ?= release
BUILD ?= build/$(PRESET)
MESON ?= meson

.PHONY: help run build deps configure test unit e2e bench fuzz lint tsan install clean kernel

help:
	@echo 'make run      install packages, build all, run an OCI image in its own VM (root)'
	@echo 'make test     install what the tests need, run all of them (root)'
	@echo 'make build    programs, guest kernel and images, in build/release/stage'
	@echo 'make install  PREFIX=/usr/local DESTDIR='
	@echo 'make unit | e2e | bench | fuzz | lint | tsan | clean'

run: deps
	@$(MAKE) --no-print-directory build
	tools/demo.sh $(BUILD)/stage

deps:
	tools/deps.sh build run demo

configure: $(BUILD)/build.ninja

$(BUILD)/build.ninja:
	$(MESON) setup $(BUILD) -Dpreset=$(PRESET) $(if $(filter release,$(PRESET)),-Dtests=false,)

kernel:
	guest/kernel/build

build: configure
	ninja -C $(BUILD)
	tools/stage.sh $(BUILD)

test:
	tools/test.sh all

unit:
	tools/test.sh unit

e2e:
	tools/test.sh e2e

bench:
	tools/deps.sh build run demo test bench
	@$(MAKE) --no-print-directory build
	[ -f build/bench/build.ninja ] || $(MESON) setup build/bench -Dpreset=release -Dtests=true
	ninja -C build/bench tests/interop/ttrpc/ttrpc_peer
	bench/run.sh $(BUILD) build/bench

fuzz:
	tools/deps.sh build run test lint
	tools/fuzz.sh

lint:
	tools/deps.sh build lint
	tools/lint.sh

tsan:
	tools/deps.sh build run test
	$(MESON) setup build/tsan -Dpreset=tsan || true
	ninja -C build/tsan
	$(MESON) test -C build/tsan --no-rebuild --print-errorlogs

install:
	tools/install.sh "$(BUILD)" "$(DESTDIR)$(PREFIX)"

clean:
	rm -rf build
