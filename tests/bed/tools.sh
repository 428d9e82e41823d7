#!/usr/bin/env bash
# Builds the real programs that tests and benchmarks run against, once, into a cache folder.
#
#   tests/bed/tools.sh crictl critest containerd ctr grpcurl   # prints the folder they are in
#
# Each comes from its Go module at the version below, built with the module's own go.mod, so the
# dependency versions are those its authors released. A second call takes no time. Needs Go.
set -euo pipefail

CRI_TOOLS=v1.36.0
CONTAINERD=v2.4.2
GRPCURL=v1.9.3

bed=${LARDER_BED:-${XDG_CACHE_HOME:-$HOME/.cache}/larder-bed}
bin=$bed/bin
mkdir -p "$bin" "$bed/src"
export GOFLAGS="-buildvcs=false -mod=mod" CGO_ENABLED=0

say() { echo "bed: $*" >&2; }
command -v go >/dev/null || { say "go is not installed"; exit 3; }

# module NAME PATH VERSION: a folder with the module's own go.mod under another name.
module() {
    local dir=$bed/src/$1-$3
    if [ ! -f "$dir/go.mod" ]; then
        local info from
        mkdir -p "$dir"
        info=$(cd "$dir" && go mod download -json "$2@$3")
        from=$(sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p' <<<"$info")
        [ -n "$from" ] || { say "module $2@$3 has no folder: $info"; exit 1; }
        cp "$from/go.sum" "$dir/go.sum"
        sed "s|^module .*|module testbed|" "$from/go.mod" >"$dir/go.mod.new"
        chmod u+w "$dir/go.sum" "$dir/go.mod.new"
        # A sibling module replaced by path in the author's checkout is not there: use its release.
        sed -i -E '/=> \.{1,2}\//d' "$dir/go.mod.new"
        mv "$dir/go.mod.new" "$dir/go.mod"
        (cd "$dir" && go mod edit -require "$2@$3")
    fi
    echo "$dir"
}

# build OUTPUT STAMP DIR PACKAGE [go build arguments]
build() {
    local output=$1 stamp=$2 dir=$3 package=$4
    shift 4
    if [ -x "$bin/$output" ] && [ "$(cat "$bin/.$output" 2>/dev/null)" = "$stamp" ]; then return; fi
    say "building $output $stamp"
    (cd "$dir" && go build -o "$bin/$output" "$@" "$package")
    echo "$stamp" >"$bin/.$output"
}

for tool in "$@"; do
    case $tool in
    crictl)
        build crictl "$CRI_TOOLS" "$(module cri-tools sigs.k8s.io/cri-tools $CRI_TOOLS)" sigs.k8s.io/cri-tools/cmd/crictl
        ;;
    critest)
        if [ "$(cat "$bin/.critest" 2>/dev/null)" != "$CRI_TOOLS" ]; then
            say "building critest $CRI_TOOLS"
            dir=$(module cri-tools sigs.k8s.io/cri-tools $CRI_TOOLS)
            (cd "$dir" && go test -c -o "$bin/critest" sigs.k8s.io/cri-tools/cmd/critest)
            echo "$CRI_TOOLS" >"$bin/.critest"
        fi
        ;;
    containerd | ctr | containerd-shim-runc-v2)
        build "$tool" "$CONTAINERD" "$(module containerd github.com/containerd/containerd/v2 $CONTAINERD)" \
            "github.com/containerd/containerd/v2/cmd/$tool" \
            -ldflags "-X github.com/containerd/containerd/v2/version.Version=$CONTAINERD"
        ;;
    grpcurl)
        build grpcurl "$GRPCURL" "$(module grpcurl github.com/fullstorydev/grpcurl $GRPCURL)" github.com/fullstorydev/grpcurl/cmd/grpcurl
        ;;
    criclient)
        # A program of our own around kubelet's client; its module is copied, for go writes a go.sum beside it.
        own=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/criclient
        stamp=$(cat "$own/go.mod" "$own/main.go" | cksum)
        mkdir -p "$bed/src/criclient"
        cp "$own/go.mod" "$own/main.go" "$bed/src/criclient/"
        build criclient "$stamp" "$bed/src/criclient" .
        ;;
    *)
        say "no recipe for $tool"
        exit 2
        ;;
    esac
done
echo "$bin"
