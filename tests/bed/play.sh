#!/usr/bin/env bash
# make cluster, make node: a cluster for a person, with this checkout of larder.
#
#   LARDER=target/debug/larder tests/bed/play.sh [--larder] DIR
#
# --larder: containerd and the kubelet of its node have their images from larder; the controller is a pod.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mode=cluster
if [ "$1" = --larder ]; then mode=larder && shift; fi
dir=$1
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
LARDER=$(realpath "$LARDER")

bed() { "$here/cluster.sh" "$@"; }

node=()
if [ $mode = larder ]; then
    node=(--larder "$LARDER")
elif [ "$(id -u)" = 0 ]; then
    node=(--node)
else
    echo "bed: not root, so there will be no node that runs pods" >&2
fi
bed up "$dir" "${node[@]+"${node[@]}"}"
export KUBECONFIG=$dir/admin.kubeconfig
bin=$("$here/tools.sh" kubectl)
kubectl() { "$bin/kubectl" "$@"; }
socket=$dir/larder/larder.sock

if [ $mode = larder ]; then
    socket=$dir/node/host/run/larder/larder.sock
    # As somebody would have it who keeps larder's manifests beside a kustomization of their own.
    bed image "$dir" bed.local/larder:0.1.0 "$LARDER"
    own=$dir/larder
    mkdir -p "$own"
    cp "$dir/node/hosts.d/bed.local/hosts.toml" "$own/"
    cat >"$own/kustomization.yaml" <<END
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
sortOptions: {order: fifo}
resources: [$(realpath --relative-to="$own" "$here/../../manifests/overlays/systemd")]
images:
- {name: ghcr.io/larder-dev/larder, newName: bed.local/larder, newTag: 0.1.0}
replicas:
- {name: larder-controller, count: 1}
configMapGenerator:
- {name: larder-hosts, namespace: larder, files: [hosts.toml]}
patches:
- patch: |
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: larder-controller, namespace: larder}
    spec:
      template:
        spec:
          containers:
          - name: controller
            volumeMounts:
            - {name: hosts, mountPath: /etc/larder/hosts.d/bed.local, readOnly: true}
          volumes:
          - {name: hosts, configMap: {name: larder-hosts}}
END
    kubectl apply --server-side -k "$own"
    kubectl rollout status --namespace larder --timeout=120s deployment/larder-controller
else
    "$LARDER" crds | kubectl apply --server-side -f -
    kubectl wait --for=condition=Established crd --all --timeout=60s >/dev/null
    # Registries are known to both as they are to containerd.
    hosts=()
    if [ ${#node[@]} -gt 0 ]; then hosts=(--hosts-dir "$dir/node/hosts.d"); fi
    bed run "$dir" larder-controller "$LARDER" controller --kubeconfig "$KUBECONFIG" --http 127.0.0.1:0 \
        "${hosts[@]+"${hosts[@]}"}"
    mkdir -p "$dir/larder"
    if [ ${#node[@]} -gt 0 ]; then
        name=$(kubectl get nodes -o name | sed -n 's|^node/||p')
        bed run "$dir" larder-agent "$LARDER" agent --kubeconfig "$KUBECONFIG" --node-name "$name" \
            --root "$dir/larder/root" --socket "$socket" --http 127.0.0.1:0 "${hosts[@]}"
    fi
fi
ln -sfn "$(realpath "$LARDER")" "$dir/larder/larder"
cat >"$dir/env" <<END
export KUBECONFIG=$KUBECONFIG LARDER_SOCKET=$socket PATH=$dir/larder:$bin:\$PATH
END
cat <<END

    . $dir/env
    kubectl get nodes
    kubectl explain clusterimageprepull.spec
END
if [ ${#node[@]} -gt 0 ]; then
    cat <<END
    kubectl run shell --image=bed.local/busybox:1 --image-pull-policy=IfNotPresent -- sleep 1000
    larder images

The registry bed.local has server:1, server:2 and private/server:1 (user and password: bed).
END
fi
cat <<END

What its parts log is in $dir/logs. docs/tutorial.md goes on from here.

It ends with: make cluster-down
END
