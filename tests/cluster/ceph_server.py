"""A real Ceph cluster for tests, as small as can be: one monitor, one disk and one S3 gateway on loopback.

Debian's packages are used, and installed where they are missing and we are root. Booting takes about 20 s.
"""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

KEYS = ("cephtestkey", "cephtestsecret0123456789")
PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common")
PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
GATEWAY = "client.rgw.s3"
BOOT_S = 180.0

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{old_mon}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth allow insecure global id reclaim = false
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
log to stderr = false
crash dir = {folder}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = true
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
[mon]
mon data = {folder}/mon
mon cluster log file = {folder}/cluster.log
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = 4294967296
osd memory target = 939524096
[client.rgw.s3]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw data = {folder}/rgw
rgw thread pool size = 64
"""


class Ceph:
    """The cluster in a folder; `endpoint` answers after `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mon, old_mon, self._port = _free_ports(3)
        self._fsid = str(uuid.uuid4())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        text = _CONFIGURATION.format(fsid=self._fsid, mon=self._mon, old_mon=old_mon, port=self._port, folder=folder)
        (folder / "ceph.conf").write_text(text)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Make the cluster and boot it, with one user who has KEYS."""
        self._make_keys()
        monitors = self.folder / "monmap"
        address = f"[v2:127.0.0.1:{self._mon},v1:127.0.0.1:{self._mon + 1}]"
        _run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monitors)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        self._boot("mon", ["ceph-mon", "-f", "-i", "a"], lambda: self._ceph("mon", "stat"))
        disk = str(uuid.uuid4())
        self._ceph("osd", "new", disk, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self.start_disk()
        self.start_gateway()
        key_id, secret = KEYS
        user = ("--uid=tests", "--display-name=tests", f"--access-key={key_id}", f"--secret-key={secret}")
        self._run("radosgw-admin", "user", "create", *user)

    def start_disk(self) -> None:
        """Boot the disk's daemon, again after `kill_disk`."""
        self._boot("osd", ["ceph-osd", "-f", "-i", "0"], lambda: "1 up" in self._ceph("osd", "stat"))

    def kill_disk(self) -> None:
        """SIGKILL; what it had acknowledged is on the disk."""
        self._end("osd")

    def start_gateway(self) -> None:
        """Boot the S3 gateway, again after `kill_gateway`."""
        self._boot("rgw", ["radosgw", "-f", "-n", GATEWAY], self._is_answering)

    def kill_gateway(self) -> None:
        """SIGKILL."""
        self._end("rgw")

    def stop(self) -> None:
        for name in reversed(list(self._processes)):
            self._end(name)

    def _make_keys(self) -> None:
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        keyring = self.folder / "keyring"
        _run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "osd.0", GATEWAY):
            _run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)

    def _run(self, program: str, *args: str | Path) -> str:
        return _run(program, "-c", self.folder / "ceph.conf", *args)

    def _ceph(self, *args: str) -> str:
        return self._run("ceph", "--connect-timeout", "10", *args)

    def _is_answering(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), timeout=5):
            return True

    def _boot(self, name: str, command: Sequence[str], is_up: Callable[[], object]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [*command, "-c", str(self.folder / "ceph.conf")], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self._processes[name] = process
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            assert process.poll() is None, (self.folder / f"{name}.out").read_text()[-2000:]
            try:
                if is_up():
                    return
            except (OSError, subprocess.SubprocessError):
                pass
            time.sleep(0.2)
        raise TimeoutError(f"{name} must be up within {BOOT_S:.0f} s; see {self.folder}")

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """The cluster, or a skip with the reason."""
    if any(shutil.which(program) is None for program in PROGRAMS):
        _install()
    cluster = Ceph(tmp_path_factory.mktemp("ceph"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _install() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"Ceph is not installed; as root on Debian: apt-get install {' '.join(PACKAGES)}")
    try:
        _run("apt-get", "update", "-qq", patience_s=300)
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES, patience_s=900)
    except subprocess.SubprocessError as error:
        pytest.skip(f"Ceph cannot be installed: {error}")


def _run(program: str, *args: str | Path, patience_s: float = 60) -> str:
    command = [program, *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=patience_s).stdout


def _free_ports(num: int) -> list[int]:
    """Ports of which the first two follow each other, as Ceph wants its monitor's."""
    sockets = []
    try:
        while True:
            first = socket.create_server(("127.0.0.1", 0))
            sockets.append(first)
            port = first.getsockname()[1]
            try:
                sockets.append(socket.create_server(("127.0.0.1", port + 1)))
            except OSError:
                continue
            others = [socket.create_server(("127.0.0.1", 0)) for _ in range(num - 2)]
            sockets.extend(others)
            return [port, port + 1, *(other.getsockname()[1] for other in others)]
    finally:
        for opened in sockets:
            opened.close()
