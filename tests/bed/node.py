"""The node of a cluster of cluster.py: cgroups, a bridge, and what containerd and the kubelet are told.

Everything made outside of the cluster's folder is found again by a name that only this cluster uses, and removed.
"""
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import layout
import registry

# Set by the kubelet without asking.
SYSCTLS = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"]
# Made by containerd, libcni and the kubelet, wherever they are told to keep their things.
FIXED = ["/run/containerd", "/var/lib/cni/results", "/var/lib/cni", "/var/log/containers"]
FIXED += ["/var/lib/kubelet/device-plugins/kubelet.sock", "/var/lib/kubelet/device-plugins", "/var/lib/kubelet"]
# One record for each node on this machine, gone with a reboot as what it tells of.
SHARED = pathlib.Path("/run/larder-bed")
# Any image with this name on the node runs as the sandbox of pods.
PAUSE = "bed.local/pause:1"
BUSYBOX = "bed.local/busybox:1"
# In the registry besides: two versions of a server of one page, and images that not everybody may have.
SERVER = "bed.local/server"
PRIVATE = {"bed.local/private/server:1": "private", "bed.local/private/ahead:1": "ahead"}
REGISTRY_PORT = 5000


class Fault(Exception):
    """It did not work."""


@contextlib.contextmanager
def one_at_a_time():
    """Of the clusters on this machine."""
    lock = os.open(SHARED.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def mounts():
    """(mount point, file system type) in the order of mounting."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        point = fields[4].encode().decode("unicode_escape").encode("latin-1").decode()
        yield pathlib.Path(point), fields[fields.index("-") + 1]


def private(path, text):
    """For nobody else of the machine: it has a token."""
    path.touch(mode=0o600)
    path.write_text(text)


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"{' '.join(argv)}: {done.stderr.strip()}")


class Node:
    def __init__(self, root, key, net, larder=None, disk=None):
        """key: what is unique of the cluster; net: 10.A.B; larder: the program, if images are its affair; disk: the MiB
        of their file system"""
        self.root = root / "node"
        self.name = f"bed-{key}"
        self.bridge = f"lb{key}"
        self.net = net
        self.group = f"larder-bed-{key}"
        self.larder, self.disk = larder, disk
        self.socket = self.root / "run/containerd.sock"
        self.sockets = {"containerd": self.socket, "larder": self.root / "host/run/larder/larder.sock"}
        self.record = SHARED / f"{key}.json"

    # Control groups: one below the root of each hierarchy.

    def groups(self):
        return [(point / self.group, kind) for point, kind in mounts() if kind in ["cgroup", "cgroup2"]]

    def make_groups(self):
        for group, kind in self.groups():
            group.mkdir(exist_ok=True)
            if kind == "cgroup2":
                wanted = {"cpu", "cpuset", "io", "memory", "pids"} & set((group.parent / "cgroup.controllers").read_text().split())
                for folder in [group.parent, group]:
                    for controller in wanted:
                        with contextlib.suppress(OSError):
                            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            # A new cpuset of the first version admits nobody before it has these.
            for name in ["cpuset.cpus", "cpuset.mems"]:
                if kind == "cgroup" and (group / name).exists():
                    (group / name).write_text((group.parent / name).read_text())

    def runtime_procs(self):
        """Where containerd goes, so that its shims can be found whatever becomes of it."""
        groups = [group for group, kind in self.groups() if kind == "cgroup2" or group.parent.name == "pids"]
        leaf = groups[0] / "runtime"
        leaf.mkdir(exist_ok=True)
        return leaf / "cgroup.procs"

    def members(self):
        found = set()
        for group, _ in self.groups():
            for procs in group.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    found.update(map(int, procs.read_text().split()))
            with contextlib.suppress(OSError):
                found.update(map(int, (group / "cgroup.procs").read_text().split()))
        return found

    # Making it.

    def prepare(self, service_ip, ca, kubelet_config, bin_dir):
        """Everything on disk; then what is outside of it."""
        root = self.root
        for folder in ["run", "s", "cni.d", "cni", "conf.d", "hosts.d/bed.local", "host", "kubelet", "kubelet.d", "plugins", "pod-logs"]:
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.remember()
        self.share()
        (root / "containerd.toml").write_text(self.containerd(bin_dir))
        (root / "kubelet.yaml").write_text(json.dumps(self.kubelet(ca), indent=1))
        private(root / "kubelet.kubeconfig", kubelet_config)
        (root / "hosts.d/bed.local/hosts.toml").write_text(f'server = "http://{self.registry_address()}"\n')
        network = {
            "cniVersion": "1.0.0",
            "name": self.bridge,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(root / "cni"),
                        "ranges": [[{"subnet": f"{self.net}.0/25", "gateway": f"{self.net}.1"}]],
                        "routes": [{"dst": "0.0.0.0/0", "gw": f"{self.net}.1"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (root / "cni.d/10-bed.conflist").write_text(json.dumps(network, indent=1))
        if self.larder:
            self.prepare_larder()
        self.make_groups()
        if not pathlib.Path("/sys/class/net", self.bridge).exists():
            run("ip", "link", "add", self.bridge, "type", "bridge")
        # The node's address, and that of the service `kubernetes`.
        for address in [f"{self.net}.1/25", f"{service_ip}/32"]:
            run("ip", "address", "replace", address, "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")

    def prepare_larder(self):
        """As docs/containerd.md says."""
        socket, store = self.sockets["larder"], self.root / "host/var/lib/larder"
        if self.disk and not store.exists():
            store.mkdir(parents=True)
            image = self.root / "larder.img"
            with image.open("wb") as file:
                file.truncate(self.disk << 20)
            run("mkfs.ext4", "-q", str(image))
            # The loop device goes with the mount.
            run("mount", "-o", "loop", str(image), str(store))
        (self.root / "conf.d/larder.toml").write_text(f"""version = 4
[proxy_plugins.larder]
  type = 'snapshot'
  address = '{socket}'
  capabilities = ['remap-ids']
  [proxy_plugins.larder.exports]
    root = '{store}'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'larder'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux'
  snapshotter = 'larder'
""")
        kubelet = {"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "imageServiceEndpoint": f"unix://{socket}"}
        (self.root / "kubelet.d/10-larder.conf").write_text(json.dumps(kubelet))

    def share(self):
        """What is mounted in our folder reaches the pods that ask for it, and theirs reaches us: as on a machine with
        systemd, where all mounts are shared from the beginning."""
        if self.root in [point for point, _ in mounts()]:
            return
        for flags in [["--bind", str(self.root), str(self.root)], ["--make-shared", str(self.root)]]:
            run("mount", *flags)

    def containerd(self, bin_dir):
        return f"""version = 4
root = '{self.root}/containerd'
state = '{self.root}/run'
# A test adds its own here.
imports = ['{self.root}/conf.d/*.toml']

[plugins.'io.containerd.server.v1.grpc']
  address = '{self.socket}'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '{self.socket}.ttrpc'
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '{self.root}/s'
[plugins.'io.containerd.internal.v1.opt']
  path = '{self.root}/opt'
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE}'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '{self.root}/hosts.d'
[plugins.'io.containerd.cri.v1.runtime']
  # A machine without CAP_SYS_RESOURCE cannot lower it.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '{bin_dir}/runc'
  Root = '{self.root}/runc'
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['{bin_dir}/cni']
  conf_dir = '{self.root}/cni.d'
  use_internal_loopback = true
"""

    def kubelet(self, ca):
        return {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": f"{self.net}.1",
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}, "x509": {"clientCAFile": str(ca)}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.group}",
            "failCgroupV1": False,
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "evictionHard": {"memory.available": "50Mi"},
            "failSwapOn": False,
            "healthzPort": 0,
            # By itself it collects nothing: the machine's disk may be as full as it likes.
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "podLogsDir": str(self.root / "pod-logs"),
            "resolvConf": "",
            "volumePluginDir": str(self.root / "plugins"),
        }

    def registry_address(self):
        """On the bridge, so that pods find it, too."""
        return f"{self.net}.1:{REGISTRY_PORT}"

    def command(self, name):
        if name == "registry":
            return [sys.executable, str(pathlib.Path(registry.__file__).resolve()), self.registry_address(), str(self.root / "registry")]
        if name == "larder":
            return [
                self.larder, "agent", f"--root={self.root}/host/var/lib/larder", f"--socket={self.sockets[name]}", f"--hosts-dir={self.root}/hosts.d",
                f"--http={self.net}.1:9640", f"--containerd={self.socket}", f"--kubeconfig={self.root}/kubelet.kubeconfig", f"--node-name={self.name}",
            ]  # fmt: skip
        if name == "containerd":
            return ["containerd", f"--config={self.root}/containerd.toml"]
        return [
            "kubelet", f"--config={self.root}/kubelet.yaml", f"--config-dir={self.root}/kubelet.d", f"--kubeconfig={self.root}/kubelet.kubeconfig",
            f"--root-dir={self.root}/kubelet", f"--cert-dir={self.root}/kubelet/pki", f"--hostname-override={self.name}", f"--node-ip={self.net}.1",
        ]  # fmt: skip

    @staticmethod
    def sysctl(name):
        with contextlib.suppress(OSError):
            return pathlib.Path("/proc/sys", name).read_text().strip()

    def make_images(self, bin_dir):
        """The sandbox of pods and a shell, from the machine's own static busybox, on the node and in the registry; in
        the registry some more."""
        done = self.root / "images"
        if done.exists():
            return
        shell = layout.shell()

        def image(name, config, *layers):
            return layout.Image(name, {"Env": ["PATH=/bin"], **config}, [shell, *layers])

        pause = image(PAUSE, {"Entrypoint": ["/bin/sleep", "2147483647"]})
        busybox = image(BUSYBOX, {"Cmd": ["sh"]})
        serve = {"Cmd": ["httpd", "-f", "-p", "8080", "-h", "/www"], "ExposedPorts": {"8080/tcp": {}}}
        pages = {f"{SERVER}:1": "one", f"{SERVER}:2": "two", **PRIVATE}
        servers = [image(name, serve, page(text)) for name, text in pages.items()]
        layout.push(servers, registry.Store(self.root / "registry"))
        self.load([pause, busybox], bin_dir)
        done.touch()

    def load_program(self, name, file, bin_dir):
        """An image of a program and nothing else, as the Dockerfile makes it."""
        program = os.path.basename(file)
        env = [f"SSL_CERT_FILE={layout.AUTHORITIES}"]
        config = {"Env": env, "Entrypoint": [f"/{program}"], "Cmd": ["agent"]}
        self.load([layout.Image(name, config, [layout.program(file, program)])], bin_dir)

    def load(self, images, bin_dir):
        """Into the registry, and onto the node: into the store of containerd, if it has one of its own."""
        layout.push([image for image in images if image.name.startswith("bed.local/")], registry.Store(self.root / "registry"))
        if self.larder:
            for image in images:
                if not image.name.startswith("bed.local/"):
                    raise Fault(f"{image.name}: give it a name in bed.local, from where larder pulls it")
                command = [self.larder, "--socket", str(self.sockets["larder"]), "pull", "--quiet", image.name]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise Fault(f"larder pull {image.name}: {done.stderr.strip()}")
            return
        file = self.root / "images.tar"
        file.write_bytes(layout.layout(images))
        command = [f"{bin_dir}/ctr", "--address", str(self.socket), "--namespace", "k8s.io", "images", "import", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        file.unlink()
        if done.returncode:
            raise Fault(f"ctr images import: {done.stderr.strip()}")

    # Ending it. containerd and the kubelet have ended.

    def remove(self):
        if not self.root.exists():
            return
        end = time.monotonic() + 20
        while members := self.members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                raise Fault(f"processes {members} of {self.group} do not end")
            time.sleep(0.01)
        if pathlib.Path("/sys/class/net", self.bridge).exists():
            run("ip", "link", "delete", self.bridge)
        for result in pathlib.Path("/var/lib/cni/results").glob(f"{self.bridge}-*"):
            result.unlink()
        with contextlib.suppress(OSError):
            for link in pathlib.Path("/var/log/containers").iterdir():
                if link.is_symlink() and os.readlink(link).startswith(f"{self.root}/"):
                    link.unlink()
        for group, _ in self.groups():
            for folder, _, _ in os.walk(group, topdown=False):
                self.remove_group(folder)
        self.restore()

    def others(self):
        """What nodes that are still there found when they were made."""
        records = [json.loads(file.read_text()) for file in SHARED.glob("*.json") if file != self.record]
        return [record for record in records if os.path.exists(record["root"])]

    def remember(self):
        """How the machine is without nodes."""
        with one_at_a_time():
            if self.record.exists():
                return
            others = self.others()
            before = others[0] if others else {
                "sysctls": {name: value for name in SYSCTLS if (value := self.sysctl(name)) is not None},
                "absent": [path for path in FIXED if not os.path.exists(path)],
            }  # fmt: skip
            SHARED.mkdir(exist_ok=True)
            new = self.record.with_suffix(".new")
            new.write_text(json.dumps({**before, "root": str(self.root)}))
            new.rename(self.record)

    def restore(self):
        """The last one makes the machine as it was."""
        with one_at_a_time():
            if not self.record.exists():
                return
            before = json.loads(self.record.read_text())
            if not self.others():
                for name, value in before["sysctls"].items():
                    if self.sysctl(name) != value:
                        with contextlib.suppress(OSError):
                            pathlib.Path("/proc/sys", name).write_text(value)
                for path in before["absent"]:
                    # Others may use them by now.
                    with contextlib.suppress(OSError):
                        os.unlink(path) if path.endswith(".sock") else os.rmdir(path)
            self.record.unlink()
            with contextlib.suppress(OSError):
                SHARED.rmdir()

    @staticmethod
    def remove_group(folder):
        """The kernel may hold one for a moment longer than its last process lives."""
        end = time.monotonic() + 20
        while True:
            try:
                return os.rmdir(folder)
            except OSError as why:
                if why.errno != errno.EBUSY or time.monotonic() > end:
                    raise Fault(f"{folder}: {why}") from why
            time.sleep(0.01)


def page(text):
    """A layer with one page."""
    layer = layout.Layer()
    layer.file("www/index.html", f"{text}\n".encode(), 0o644)
    return layer.bytes()
