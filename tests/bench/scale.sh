#!/usr/bin/env bash
# make bench-scale: a control plane of its own, larder installed as its users install it, then simulated agents.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/bed/tools.sh etcd kube-apiserver kube-controller-manager kube-scheduler kubectl >/dev/null
bed=${LARDER_BED:-${XDG_CACHE_HOME:-$HOME/.cache}/larder-bed}
cargo build --release --locked
dir=$(mktemp -d)
trap 'tests/bed/cluster.sh down "$dir/cluster"; rm -rf "$dir"' EXIT
tests/bed/cluster.sh up --direct-etcd --audit "$dir/cluster"
# Simulated nodes send no heartbeat, and no pod shall run on them.
for part in controller-manager scheduler; do tests/bed/cluster.sh stop "$part" "$dir/cluster"; done
kubectl=("$bed/bin/kubectl" --kubeconfig "$dir/cluster/admin.kubeconfig")
"${kubectl[@]}" kustomize manifests/base | "${kubectl[@]}" apply --server-side -f - >/dev/null || true
"${kubectl[@]}" wait --for=condition=Established crd -l app.kubernetes.io/part-of=larder --timeout=60s >/dev/null
"${kubectl[@]}" kustomize manifests/base | "${kubectl[@]}" apply --server-side -f - >/dev/null
# status says with its exit code that two parts are down, which is known here.
pids=$({ tests/bed/cluster.sh status "$dir/cluster" || true; } | awk '$1 == "apiserver" || $1 == "etcd" {print $2}' | paste -sd,)
cargo bench --locked --bench scale -- \
    --kubeconfig "$dir/cluster/admin.kubeconfig" --audit "$dir/cluster/audit.log" --larder "${CARGO_TARGET_DIR:-target}/release/larder" --pids "$pids" "$@"
