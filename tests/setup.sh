#!/usr/bin/env bash
# Installs the programs that tests use, as far as this machine allows. Never fails: a test that misses its program
# reports itself as skipped.
#
#   tests/setup.sh packages    # of the system
#   tests/setup.sh programs    # built with Go: clients, a Kubernetes cluster, helm, promtool
#
# Without an argument both. LARDER_SETUP=no turns it off.
set -uo pipefail
cd "$(dirname "$0")/.."
[ "${LARDER_SETUP:-yes}" != no ] || exit 0
say() { echo "setup: $*" >&2; }

what=${1:-all}

packages() {
    # program:package
    local wanted="cc:gcc fsck.erofs:erofs-utils skopeo:skopeo docker-registry:docker-registry setfattr:attr python3:python3 tar:tar zstd:zstd
        go:golang-go openssl:openssl ip:iproute2 busybox:busybox-static pkg-config:pkg-config podman:podman"
    local missing=()
    for pair in $wanted; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ -e /usr/include/seccomp.h ] || missing+=(libseccomp-dev)
    [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    if [ ${#missing[@]} -gt 0 ]; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "installing ${missing[*]}"
            # RUNLEVEL=1: a package must not start its service on a contributor's machine.
            export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
            apt-get update -qq >/dev/null </dev/null || say "apt-get update did not succeed"
            for package in "${missing[@]}"; do
                apt-get install -y -qq --no-install-recommends "$package" >/dev/null </dev/null ||
                    say "$package could not be installed"
            done
        else
            say "not installed, and only root with apt-get could: ${missing[*]}"
        fi
    fi
}

programs() {
    # The clients that the agent is tested with, and a Kubernetes cluster. Built once into a cache folder: the clients take a
    # minute or two the first time, the cluster 8 minutes on two cores, helm and promtool 5 more.
    if command -v go >/dev/null; then
        timeout 900 tests/bed/tools.sh crictl critest grpcurl criclient >/dev/null </dev/null ||
            say "crictl, critest, grpcurl and criclient could not be built"
        timeout 2400 tests/bed/tools.sh control-plane node >/dev/null </dev/null ||
            say "the programs of a Kubernetes cluster could not be built"
        timeout 1500 tests/bed/tools.sh delivery >/dev/null </dev/null ||
            say "helm and promtool could not be built"
    else
        say "Go is not installed: no crictl, critest, grpcurl and criclient, no Kubernetes cluster, no helm and promtool"
    fi
}

case $what in
packages | programs) "$what" ;;
*)
    packages
    programs
    ;;
esac
exit 0
