#!/usr/bin/env bash
# make cluster: a cluster for a person, with what this checkout of larder has for it.
#
#   LARDER=target/debug/larder tests/bed/play.sh DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1

node=()
if [ "$(id -u)" = 0 ]; then node=(--node); else echo "bed: not root, so there will be no node that runs pods" >&2; fi
"$here/cluster.sh" up "$dir" "${node[@]+"${node[@]}"}"
export KUBECONFIG=$dir/admin.kubeconfig
bin=$("$here/tools.sh" kubectl)
"$LARDER" crds | "$bin/kubectl" apply --server-side -f -
"$bin/kubectl" wait --for=condition=Established crd --all --timeout=60s >/dev/null

# As far as this larder has them: the controller, and an agent with a store of its own on the node.
has() { "$LARDER" "$1" --help 2>/dev/null | grep -q -- "$2"; }
if has controller --kubeconfig; then
    "$here/cluster.sh" run "$dir" larder-controller "$LARDER" controller --kubeconfig "$KUBECONFIG" --http 127.0.0.1:0
fi
if [ ${#node[@]} -gt 0 ] && has agent --kubeconfig; then
    name=$("$bin/kubectl" get nodes -o name | sed -n 's|^node/||p')
    mkdir -p "$dir/larder"
    "$here/cluster.sh" run "$dir" larder-agent "$LARDER" agent --kubeconfig "$KUBECONFIG" --node-name "$name" \
        --root "$dir/larder/root" --socket "$dir/larder/larder.sock" --http 127.0.0.1:0
fi
cat <<END

    export KUBECONFIG=$KUBECONFIG PATH=$bin:\$PATH
    kubectl get nodes
    kubectl run shell --image=bed.local/busybox:1 --image-pull-policy=Never -- sleep 1000
    kubectl explain clusterimageprepull.spec

What larder logs is in $dir/logs.

It ends with: make cluster-down
END
