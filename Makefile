# Everything a contributor runs. `make` alone lists the targets.

CARGO ?= cargo
PREFIX ?= /usr/local
IMAGE ?= larder:dev
CLUSTER ?= $(abspath $(TARGET_DIR))/cluster
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help build test lint fmt bench bench-start bench-pods bench-scale critest cluster node cluster-down install krew image clean manifests

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## build the release binary
	$(CARGO) build --release --locked

test: ## set up, check format and lints, run all tests; what cannot run here is listed as skipped
	@tests/run.sh

lint: ## clippy, warnings are errors
	$(CARGO) clippy --all-targets --locked -- -D warnings

fmt: ## format the sources
	$(CARGO) fmt

bench: ## measure pulls side by side with containerd (root)
	@tests/bench/run.sh

bench-start: ## measure how containers start and read, side by side with containerd on overlayfs (root); START passes flags
	@tests/bench/nodes.sh start $(START)

bench-pods: ## measure what 100 pods of 10 images cost, side by side with containerd on overlayfs (root); PODS passes flags
	@tests/bench/nodes.sh pods $(PODS)

bench-scale: ## measure what SCALE (--nodes 2000) simulated agents cost an API server
	@tests/bench/scale.sh $(SCALE)

critest: ## run the whole of critest on containerd alone and with larder (root); lists and logs in OUT
	$(CARGO) build --locked
	python3 tests/bed/critest.py $(TARGET_DIR)/debug/larder $(or $(OUT),$(TARGET_DIR)/critest)

cluster: ## start a real Kubernetes cluster in CLUSTER to play with; with root it has a node that runs pods
	$(CARGO) build --locked
	@LARDER=$(TARGET_DIR)/debug/larder tests/bed/play.sh $(CLUSTER)

node: ## start a one-node cluster in CLUSTER whose kubelet and containerd have their images from larder (root)
	$(CARGO) build --locked
	@LARDER=$(TARGET_DIR)/debug/larder tests/bed/play.sh --larder $(CLUSTER)

cluster-down: ## end that cluster and remove all of it
	@tests/bed/cluster.sh down $(CLUSTER)

install: build ## install the binary and the systemd unit below PREFIX (and DESTDIR)
	install -D -m 0755 $(TARGET_DIR)/release/larder $(DESTDIR)$(PREFIX)/bin/larder
	install -D -m 0755 $(TARGET_DIR)/release/kubectl-larder $(DESTDIR)$(PREFIX)/bin/kubectl-larder
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin/larder|$(PREFIX)/bin/larder|' manifests/systemd/larder.service \
		>$(DESTDIR)$(PREFIX)/lib/systemd/system/larder.service

manifests: ## write the CRDs of the Rust types into manifests/, and their fields and the roles' rights into docs/
	$(CARGO) build --locked
	$(TARGET_DIR)/debug/larder crds >manifests/base/crds/crds.yaml
	LARDER_WRITE_DOCS=yes $(CARGO) test --locked --test it -- --exact docs::each_kind_has_a_page_with_all_its_fields \
		docs::the_rights_of_everybody_are_those_of_the_manifests

KREW = $(TARGET_DIR)/krew
ARCH = $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))

krew: build ## pack kubectl-larder for krew, with its manifest, into target/krew
	install -D -m 0755 $(TARGET_DIR)/release/kubectl-larder $(KREW)/kubectl-larder
	install -m 0644 LICENSE $(KREW)/LICENSE
	tar -C $(KREW) --owner=0 --group=0 -czf $(KREW)/kubectl-larder_linux_$(ARCH).tar.gz kubectl-larder LICENSE
	sum=$$(sha256sum <$(KREW)/kubectl-larder_linux_$(ARCH).tar.gz | cut -d' ' -f1) && \
		sed "/linux_$(ARCH)/{n;s/0\{64\}/$$sum/}" manifests/krew/larder.yaml >$(KREW)/larder.yaml

image: ## build the container image as IMAGE
	docker build --tag $(IMAGE) .

clean: ## remove what was built
	$(CARGO) clean
