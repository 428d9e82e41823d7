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
if crds=$("$LARDER" crds); then
    "$bin/kubectl" apply --server-side -f - <<<"$crds"
else
    echo "bed: this larder has no custom resources to install" >&2
fi
cat <<END

    export KUBECONFIG=$KUBECONFIG PATH=$bin:\$PATH
    kubectl get nodes
    kubectl run shell --image=bed.local/busybox:1 --image-pull-policy=Never -- sleep 1000

It ends with: make cluster-down
END
