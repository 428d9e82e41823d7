#!/usr/bin/env python3
"""Measures how containers start and read, side by side: containerd on larder's snapshots, and containerd on its own
overlayfs ones; same containerd, same image, same disk, same run.

    start.py --larder target/release/larder --bin BED/bin --images BED/images [--rounds 5] [--do shell] [-o json]

Pods are started over CRI as the kubelet does it, and times are those that containerd wrote beside what the container
prints. The sides take turns. `cold`: the page cache is dropped, and a pod of another image has been started since, so that
what the node's own programs need is there, as it is on a node that works. `boot`: all processes are new, nothing is mounted
and nothing is cached. Reported are medians, and the ratio of each round's pair. LARDER_BENCH_DIR is where the stores are.
Needs root, docker-registry, skopeo, and a static busybox.
"""
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from sides import FILES, Node, Registry, arguments, disk, drop_caches, versions

IMPORTS = "numpy, scipy.stats, pandas, sklearn.linear_model, sympy, django.http, sqlalchemy, aiohttp, boto3, grpc, pydantic, cryptography, PIL.Image, lxml.etree"
# What a container does, how one knows that it is done, and what counts.
WORK = {
    "shell": ("echo up", "", "from the request to the first line of a shell", lambda s: s["First"]),
    "python": (f"python3 -c 'import {IMPORTS}'; echo done", "done", "from the request until Python has imported 14 packages", lambda s: s["Last"]),
    "read": (f"echo up; {FILES} | xargs -0 cat >/dev/null; echo done", "done", "to find and read all files, from within", lambda s: s["Last"] - s["First"]),
    "list": ("echo up; ls -lR /bin /etc /lib /opt /usr /var >/dev/null; echo done", "done", "to list all directories with attributes", lambda s: s["Last"] - s["First"]),
}


def boot(node):
    node.down()
    node.unmount()
    node.up()
    drop_caches()


def cold(node):
    drop_caches()
    node.remove(node.start(node.pause, "echo up")["Pod"])


def measure(node, image, what):
    script, until, _, value = WORK[what]
    seen = node.start(image, script, until)
    node.remove(seen["Pod"])
    return {**seen, "value": value(seen)}


def same_files(nodes, image):
    """Whether all sides show as many files and bytes."""
    found = {}
    for node in nodes:
        script = f"{FILES} | tr -dc '\\0' | wc -c; {FILES} | xargs -0 cat | wc -c; echo done"
        seen = node.start(image, script, "done")
        node.remove(seen["Pod"])
        found[node.name] = seen["Lines"][:2]
    if len({tuple(lines) for lines in found.values()}) != 1:
        raise SystemExit(f"the sides differ: {found}")
    return [int(line) for line in found[nodes[0].name]]


def main():
    args = arguments(__doc__)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--image", default="py")
    args.add_argument("--do", action="append", choices=list(WORK), help="all by default")
    args.add_argument("--no-boot", action="store_true")
    args = args.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="larder-bench-", dir=os.environ.get("LARDER_BENCH_DIR", "/var/tmp")))
    todo = args.do or list(WORK)
    results = {}
    registry = Registry(work)
    nodes = []
    try:
        registry.push(args.images / args.image, f"{args.image}:1")
        pause, image = registry.push_pause(work), registry.name(f"{args.image}:1")
        nodes.append(Node("containerd", work, args.bin, pause))
        nodes.append(Node("larder", work, args.bin, pause, args.larder.resolve()))
        for node in nodes:
            node.pull(pause, image)
        files, size = same_files(nodes, image)
        disks = {node.name: disk(node.store()) for node in nodes}

        def one(what, how, round):
            for node in nodes if round % 2 == 0 else reversed(nodes):
                if how == "boot":
                    boot(node)
                elif how == "cold":
                    cold(node)
                seen = measure(node, image, what)
                results.setdefault((what, how), {}).setdefault(node.name, []).append(seen)
                print(f"round {round + 1} {what} {how} {node.name}: {seen['value']:.3f} s", file=sys.stderr)

        for round in range(args.rounds):
            for what in todo:
                one(what, "cold", round)
                # Once more, unmeasured, so that both are equally warm whoever came last.
                for node in nodes:
                    measure(node, image, what)
                one(what, "warm", round)
        for round in range(0 if args.no_boot else args.rounds):
            one("shell", "boot", round)
    finally:
        for node in nodes:
            node.end()
        registry.server.stop()
        shutil.rmtree(work, ignore_errors=True)

    seen = versions(args.larder, args.bin)
    if args.output == "json":
        flat = [{"what": what, "how": how, "sides": sides} for (what, how), sides in results.items()]
        print(json.dumps({"versions": seen, "files": files, "bytes": size, "disk": disks, "results": flat}, indent=1))
        return
    print(f"\n{seen['larder']}, containerd {seen['containerd']}, runc {seen['runc']}, Linux {seen['kernel']}, {os.cpu_count()} cpus, medians of {args.rounds} rounds")
    print(f"the image: {files} files of {size / 1e6:.0f} MB")
    print(f"{'what':<8} {'cache':<6} {'larder':>10} {'containerd':>11}   containerd / larder: least, median, most")
    for (what, how), sides in results.items():
        pairs = list(zip(sides["containerd"], sides["larder"]))
        ratios = [c["value"] / l["value"] for c, l in pairs]
        mid = lambda kind: statistics.median(seen["value"] for seen in sides[kind])
        print(f"{what:<8} {how:<6} {mid('larder') * 1e3:>7.0f} ms {mid('containerd') * 1e3:>8.0f} ms   {min(ratios):.2f} .. {statistics.median(ratios):.2f} .. {max(ratios):.2f}")
    for what in todo:
        print(f"{what}: {WORK[what][2]}")
    print("steps of a warm start, medians: ", end="")
    for kind in ["larder", "containerd"]:
        rounds = results.get((todo[0], "warm"), {}).get(kind, [])
        mid = lambda key: statistics.median(seen[key] for seen in rounds) * 1e3
        print(f"{kind}: sandbox {mid('Sandbox'):.0f}, created {mid('Created'):.0f}, started {mid('Started'):.0f} ms; ", end="")
    print()


main()
