"""What is compared: processes of a side, the registry they pull from, and nodes that run pods, with larder or without."""
import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "bed"))
import layout  # noqa: E402


# All files of an image, as a shell in it finds them.
FILES = "find /bin /boot /etc /home /lib /lib64 /media /mnt /opt /root /run /sbin /srv /usr /var -type f -print0"


def arguments(doc):
    """What all benchmarks take, described by the first line of a module's own words."""
    args = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name in ["--larder", "--bin", "--images"]:
        args.add_argument(name, required=True, type=pathlib.Path)
    args.add_argument("-o", "--output", choices=["table", "json"], default="table")
    return args


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(check, what, seconds=30):
    """Polls for a condition that has no event to wait on from outside the process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.02)
    raise SystemExit(f"{what} did not come up in {seconds} s")


def disk(path):
    return int(subprocess.run(["du", "-s", "--block-size=1", str(path)], capture_output=True, text=True, check=True).stdout.split()[0])


def crictl(side, *argv, check=True, timeout="60s"):
    at = f"unix://{side.socket}"
    return subprocess.run([str(side.bin / "crictl"), "-r", at, "-i", at, "--timeout", timeout, *argv], capture_output=True, text=True, check=check)


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


class Server:
    def __init__(self, argv, log, env=None):
        self.log = open(log, "ab")
        self.process = subprocess.Popen(argv, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=env)

    def status(self, key):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+) kB", text).group(1)) * 1024

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class Registry:
    def __init__(self, work):
        self.port = free_port()
        config = work / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {work}/registry}}}}\n"
            f"http: {{addr: 127.0.0.1:{self.port}}}\n"
        )
        self.server = Server(["docker-registry", "serve", str(config)], work / "registry.log")
        wait_for(lambda: self.get("/v2/") == 200, "registry")

    def get(self, path):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2).status
        except OSError:
            return 0

    def name(self, name):
        return f"127.0.0.1:{self.port}/{name}"

    def push(self, source, name):
        """From a folder, or from a tar."""
        kind = "oci-archive" if source.is_file() else "oci"
        subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"{kind}:{source}", f"docker://{self.name(name)}"], check=True)

    def push_pause(self, work):
        """The image of pods' sandboxes: a shell, which sleeps; its name."""
        file = work / "pause.tar"
        image = layout.Image("pause:1", {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sleep", "2147483647"]}, [layout.shell()])
        file.write_bytes(layout.layout([image]))
        self.push(file, "pause:1")
        file.unlink()
        return self.name("pause:1")


CONTAINERD = """version = 3
root = '{root}/containerd'
state = '{root}/run'
[plugins.'io.containerd.server.v1.grpc']
  address = '{socket}'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '{socket}.ttrpc'
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '{sockets}'
[plugins.'io.containerd.internal.v1.opt']
  path = '{root}/opt'
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.images']
  snapshotter = '{snapshotter}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  conf_dir = '{root}/cni'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '{bin}/runc'
  Root = '{root}/runc'
  SystemdCgroup = false
"""
LARDER = """[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux'
  snapshotter = 'larder'
[proxy_plugins.larder]
  type = 'snapshot'
  address = '{root}/l.sock'
  capabilities = ['remap-ids']
  [proxy_plugins.larder.exports]
    root = '{root}/larder'
"""


class Node:
    """containerd with its own overlayfs snapshotter, or with larder's and the agent. Both run pods, on the host's network
    and in control groups below one that nobody else uses."""

    def __init__(self, kind, work, bin, pause, larder=None):
        self.name, self.bin, self.pause, self.larder = kind, bin, pause, larder
        self.root = work / kind
        self.socket = self.root / "c.sock"
        # Images are pulled here.
        self.images = self.root / "l.sock" if larder else self.socket
        self.group = f"larder-bench-{os.getpid()}-{kind}"
        self.pods = 0
        (self.root / "cni").mkdir(parents=True)
        text = CONTAINERD + (LARDER if larder else "")
        # The length of these paths is limited, that of the store's is not.
        self.sockets = pathlib.Path("/run", self.group)
        self.sockets.mkdir(mode=0o700)
        values = {"root": self.root, "sockets": self.sockets, "socket": self.socket, "pause": pause, "bin": bin, "snapshotter": "larder" if larder else "overlayfs"}
        (self.root / "config.toml").write_text(text.format(**values))
        self.servers = []
        self.client = None
        try:
            self.up()
        except BaseException:
            print(self.tail(), file=sys.stderr)
            self.end()
            raise

    def up(self):
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        log = self.root / "log"
        if self.larder:
            argv = [self.larder, "agent", "--root", self.root / "larder", "--socket", self.images, "--http", "", "--containerd", self.socket]
            self.servers.append(Server([str(word) for word in argv], log))
        self.servers.append(Server([str(self.bin / "containerd"), "--config", str(self.root / "config.toml")], log, environment))
        wait_for(lambda: crictl(self, "version", check=False).returncode == 0 and crictl(self, "imagefsinfo", check=False).returncode == 0, self.name, 60)
        argv = [str(self.bin / "criclient"), "pods", f"unix://{self.socket}"]
        self.client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def down(self):
        if self.client:
            self.client.stdin.close()
            self.client.wait()
            self.client = None
        for server in reversed(self.servers):
            server.stop()
        self.servers.clear()

    def pull(self, *names):
        for name in names:
            at = f"unix://{self.images}"
            argv = [str(self.bin / "crictl"), "-r", f"unix://{self.socket}", "-i", at, "--timeout", "600s", "pull", name]
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{self.name}: crictl pull {name}: {done.stderr}\n{self.tail()}")

    def tail(self):
        return (self.root / "log").read_text(errors="replace")[-4000:]

    def order(self, order):
        self.client.stdin.write(json.dumps(order) + "\n")
        line = self.client.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: {order} came to nothing\n{self.tail()}")
        return json.loads(line)

    def start(self, image, script, until=""):
        """Starts a pod with one container, which runs a script of its image's shell. How long what took, in seconds."""
        self.pods += 1
        name = f"pod-{self.pods}"
        sandbox = {
            "metadata": {"name": name, "uid": name, "namespace": "bench"},
            "log_directory": str(self.root / "logs"),
            "linux": {"cgroup_parent": f"/{self.group}", "security_context": {"namespace_options": {"network": 2}}},
        }
        container = {
            "metadata": {"name": "c"},
            "image": {"image": image},
            "command": ["/bin/sh", "-c", script],
            "log_path": f"{name}.log",
            "linux": {},
        }
        return self.order({"Sandbox": sandbox, "Container": container, "Until": until})

    def remove(self, pod):
        self.order({"Remove": pod})

    def store(self):
        """Where its images are."""
        return self.root / ("larder" if self.larder else "containerd")

    def mounts(self):
        """Mount points below its folder, in the order of mounting."""
        points = [line.split(" ")[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{self.root}/")]

    def unmount(self):
        for point in reversed(self.mounts()):
            subprocess.run(["umount", "-l", point], capture_output=True)

    def groups(self):
        """Its control groups; one, or one of each hierarchy."""
        top = pathlib.Path("/sys/fs/cgroup")
        return [group for group in [top / self.group, *top.glob(f"*/{self.group}")] if group.is_dir()]

    def members(self):
        found = set()
        for group in self.groups():
            for procs in group.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    found.update(map(int, procs.read_text().split()))
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"containerd-shim-runc-v2") and str(self.socket).encode() in words:
                    found.add(int(folder.name))
        return found

    def end(self):
        """Leaves nothing of it."""
        self.down()
        end = time.monotonic() + 30
        while members := self.members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                print(f"{self.name}: processes {members} do not end", file=sys.stderr)
                break
            time.sleep(0.02)
        self.unmount()
        for group in self.groups():
            for folder, _, _ in os.walk(group, topdown=False):
                while time.monotonic() < end:
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
                        break
                    time.sleep(0.01)
        for folder in [self.root, self.sockets]:
            shutil.rmtree(folder, ignore_errors=True)


def versions(larder, bin):
    """Of what is compared, and of the kernel."""
    first = lambda *argv: subprocess.run([str(word) for word in argv], capture_output=True, text=True).stdout.split("\n")[0].strip()
    return {
        "larder": first(larder, "--version"),
        "containerd": first(bin / "containerd", "--version").split()[2],
        "runc": first(bin / "runc", "--version").split()[-1],
        "kernel": os.uname().release,
    }
