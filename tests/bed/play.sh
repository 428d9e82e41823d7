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

# The controller, and an agent with a store of its own on the node. Registries are known to both as they are to containerd.
hosts=()
if [ ${#node[@]} -gt 0 ]; then hosts=(--hosts-dir "$dir/node/hosts.d"); fi
"$here/cluster.sh" run "$dir" larder-controller "$LARDER" controller --kubeconfig "$KUBECONFIG" --http 127.0.0.1:0 \
    "${hosts[@]+"${hosts[@]}"}"
mkdir -p "$dir/larder"
if [ ${#node[@]} -gt 0 ]; then
    name=$("$bin/kubectl" get nodes -o name | sed -n 's|^node/||p')
    "$here/cluster.sh" run "$dir" larder-agent "$LARDER" agent --kubeconfig "$KUBECONFIG" --node-name "$name" \
        --root "$dir/larder/root" --socket "$dir/larder/larder.sock" --http 127.0.0.1:0 "${hosts[@]}"
fi
ln -sfn "$(realpath "$LARDER")" "$dir/larder/larder"
cat >"$dir/env" <<END
export KUBECONFIG=$KUBECONFIG LARDER_SOCKET=$dir/larder/larder.sock PATH=$dir/larder:$bin:\$PATH
END
cat <<END

    . $dir/env
    kubectl get nodes
    kubectl run shell --image=bed.local/busybox:1 --image-pull-policy=Never -- sleep 1000
    kubectl explain clusterimageprepull.spec

What larder logs is in $dir/logs. docs/tutorial.md goes on from here.

It ends with: make cluster-down
END
