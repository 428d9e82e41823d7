#!/usr/bin/env bash
# Builds the real programs that tests and benchmarks run against, once, into a cache folder.
#
#   tests/bed/tools.sh crictl containerd      # these programs
#   tests/bed/tools.sh control-plane          # etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl
#   tests/bed/tools.sh node                   # kubelet, containerd and its shim, ctr, runc, crictl, CNI plugins
#   tests/bed/tools.sh delivery               # helm, promtool, the kinds of the Prometheus operator
#
# Prints the folder they are in. Each comes from its Go module at the version below, built with the module's own go.mod,
# so the dependency versions are those its authors released. A second call takes no time; several at once wait for
# each other. Needs any Go: one that is too old fetches the right one, as a module. Status 3: there is no Go at all.
set -euo pipefail

CRI_TOOLS=v1.36.0
CONTAINERD=v2.4.2
GRPCURL=v1.9.3
KUBERNETES=v1.36.3
ETCD=v3.6.16
RUNC=v1.5.2
CNI=v1.9.1
HELM=v4.3.1
# Prometheus 3.15.0: its module has versions of its own.
PROMTOOL=v0.315.0
OPERATOR=v0.85.0
# Kubernetes says in its go.mod what it needs.
GO=go1.26.8

control_plane="etcd kube-apiserver kube-controller-manager kubectl kube-scheduler"
node="runc containerd containerd-shim-runc-v2 ctr crictl kubelet cni/bridge cni/host-local cni/loopback cni/portmap"
delivery="helm promtool prometheus-kinds"

bed=${LARDER_BED:-${XDG_CACHE_HOME:-$HOME/.cache}/larder-bed}
bin=$bed/bin
own=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/criclient
mkdir -p "$bin/cni" "$bed/src"

say() { echo "bed: $*" >&2; }

# recipe TOOL: sets where it comes from and how it is built.
recipe() {
    local stamp=k8s.io/component-base/version
    cgo=0 flags=() stamps="" subject=build
    case $1 in
    crictl | critest)
        version=$CRI_TOOLS module=sigs.k8s.io/cri-tools package=cmd/$1
        [ "$1" = crictl ] || subject="test -c"
        ;;
    containerd | ctr | containerd-shim-runc-v2)
        version=$CONTAINERD module=github.com/containerd/containerd/v2 package=cmd/$1
        stamps="-X $module/version.Version=$version"
        ;;
    grpcurl)
        version=$GRPCURL module=github.com/fullstorydev/grpcurl package=cmd/grpcurl
        ;;
    criclient)
        # A program of our own around kubelet's clients.
        version=$(cat "$own/go.mod" "$own"/*.go | cksum | tr ' ' -) module=. package=
        ;;
    kube-apiserver | kube-controller-manager | kube-scheduler | kubectl | kubelet)
        # They compare versions with each other, so the version must be in them.
        version=$KUBERNETES module=k8s.io/kubernetes package=cmd/$1
        stamps="-X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=36"
        ;;
    etcd)
        version=$ETCD module=go.etcd.io/etcd/server/v3 package=
        ;;
    runc)
        # Pods ask for the default seccomp profile, which only a runc with libseccomp can load.
        version=$RUNC module=github.com/opencontainers/runc package=
        cgo=1 flags=(-tags seccomp) stamps="-X main.version=${version#v}"
        ;;
    cni/bridge | cni/loopback)
        version=$CNI module=github.com/containernetworking/plugins package=plugins/main/${1#cni/}
        ;;
    cni/host-local)
        version=$CNI module=github.com/containernetworking/plugins package=plugins/ipam/host-local
        ;;
    cni/portmap)
        version=$CNI module=github.com/containernetworking/plugins package=plugins/meta/portmap
        ;;
    helm)
        version=$HELM module=helm.sh/helm/v4 package=cmd/helm
        # Charts may ask for the version.
        stamps="-X $module/internal/version.version=$version"
        ;;
    promtool)
        version=$PROMTOOL module=github.com/prometheus/prometheus package=cmd/promtool
        # Rules need none of the clouds' clients, which are most of what there is to compile.
        flags=(-tags remove_all_sd) stamps="-X github.com/prometheus/common/version.Version=${version#v}"
        ;;
    prometheus-kinds)
        # No program, but found like one: what the operator's own repository has for kubectl apply.
        version=$OPERATOR module=github.com/prometheus-operator/prometheus-operator
        package=example/prometheus-operator-crd subject=kinds
        ;;
    *)
        say "no recipe for $1"
        exit 2
        ;;
    esac
    stamp_file=$bin/$(dirname "$1")/.$(basename "$1")
}

# is_built TOOL, after its recipe
is_built() { [ -x "$bin/$1" ] && [ "$(cat "$stamp_file" 2>/dev/null)" = "$version" ]; }

# Puts a Go that is new enough first on PATH.
find_go() {
    # The toolchain is named here; the setting of a contributor's machine must not change it.
    export GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=mod"
    if [ ! -x "$bed/$GO/bin/go" ]; then
        command -v go >/dev/null || { say "Go is not installed"; exit 3; }
        local have
        have=$(go env GOVERSION)
        if [ "$(printf '%s\n' "${GO%.*}" "$have" | sort -V | head -n 1)" = "${GO%.*}" ]; then return; fi
        say "fetching $GO, as $have is too old"
        local info from
        mkdir -p "$bed/src/toolchain"
        info=$(cd "$bed/src/toolchain" && { [ -f go.mod ] || go mod init testbed 2>/dev/null; } &&
            go mod download -json "golang.org/toolchain@v0.0.1-$GO.$(go env GOOS)-$(go env GOARCH)")
        from=$(folder "$info")
        rm -rf "$bed/$GO.new"
        cp -r "$from" "$bed/$GO.new"
        # The archive of a module carries no modes.
        chmod -R u+w "$bed/$GO.new"
        chmod +x "$bed/$GO.new"/bin/* "$bed/$GO.new"/pkg/tool/*/*
        mv "$bed/$GO.new" "$bed/$GO"
    fi
    unset GOROOT
    export PATH="$bed/$GO/bin:$PATH"
}

# folder JSON: where `go mod download -json` put the module.
folder() {
    local from
    from=$(sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p' <<<"$1")
    [ -n "$from" ] || { say "a module could not be had: $1"; exit 1; }
    echo "$from"
}

# checkout MODULE VERSION: a folder with the module's own go.mod under another name.
checkout() {
    local name
    name=${1%/v[0-9]}
    local dir=$bed/src/${name##*/}-$2
    if [ "$1" = . ]; then
        # Copied, for go writes a go.sum beside it.
        dir=$bed/src/criclient
        mkdir -p "$dir"
        cp "$own/go.mod" "$own"/*.go "$dir/"
        echo "$dir"
        return
    fi
    if [ ! -f "$dir/go.mod" ]; then
        local info from
        mkdir -p "$dir"
        info=$(cd "$dir" && go mod download -json "$1@$2")
        from=$(folder "$info")
        cp "$from/go.sum" "$dir/go.sum"
        sed "s|^module .*|module testbed|" "$from/go.mod" >"$dir/go.mod.new"
        chmod u+w "$dir/go.sum" "$dir/go.mod.new"
        # A sibling module replaced by path in the author's checkout is not there: use its release. Those of
        # Kubernetes are required as v0.0.0 and released as v0.MINOR.PATCH.
        sed -i -E -e "s|=> \./staging/src/(.*)|=> \1 v0.${2#v1.}|" -e '/=> \.{1,2}\//d' "$dir/go.mod.new"
        go mod edit -require "$1@$2" "$dir/go.mod.new"
        mv "$dir/go.mod.new" "$dir/go.mod"
    fi
    echo "$dir"
}

wanted=()
for tool in "$@"; do
    case $tool in
    control-plane) wanted+=($control_plane) ;;
    node) wanted+=($node) ;;
    delivery) wanted+=($delivery) ;;
    *) wanted+=("$tool") ;;
    esac
done
missing=()
for tool in "${wanted[@]}"; do
    recipe "$tool"
    is_built "$tool" || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
    exec 9>"$bed/lock"
    flock 9
    find_go
    for tool in "${missing[@]}"; do
        recipe "$tool"
        if is_built "$tool"; then continue; fi
        say "building $tool $version"
        if [ "$subject" = kinds ]; then
            from=$(folder "$(cd "$bed" && go mod download -json "$module@$version")")
            cat "$from/$package"/*_podmonitors.yaml "$from/$package"/*_prometheusrules.yaml >"$bin/$tool.new"
            chmod 755 "$bin/$tool.new"
            mv "$bin/$tool.new" "$bin/$tool"
            echo "$version" >"$stamp_file"
            continue
        fi
        dir=$(checkout "$module" "$version")
        # A program that runs is replaced, never written to.
        # Nobody debugs them, and what a debugger would want is a seventh of the time to build.
        (cd "$dir" && CGO_ENABLED=$cgo nice go $subject -o "$bin/$tool.new" -gcflags=all=-dwarf=false -ldflags "-s -w $stamps" \
            "${flags[@]+"${flags[@]}"}" "$module${package:+/$package}" 9>&-)
        mv "$bin/$tool.new" "$bin/$tool"
        echo "$version" >"$stamp_file"
    done
fi
echo "$bin"
