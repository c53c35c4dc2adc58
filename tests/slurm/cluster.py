"""A real SLURM on this machine: every daemon on loopback, everything else in a temporary folder."""

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

Value = TypeVar("Value")

# What Debian calls the package of each program that is started here.
PROGRAMS = {
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "slurmdbd": "slurmdbd",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
}
DATABASE_PLUGIN = "slurm*/accounting_storage_mysql.so"
# Root's programs are not on everybody's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[slurmctld]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Credentials that expire late keep a requeued job waiting for two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
MessageTimeout=30

# No control groups, which containers seldom give: processes are found by their parents, and memory
# is watched from outside.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
KillWait=2

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=20000,batch_sched_delay=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge={min_job_age}

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[slurmdbd]}
AccountingStoragePass={folder}/munge.socket
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu

# Nodes may have more of everything than this machine.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus}
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10 DefMemPerCPU=100
PartitionName=gpu Default=YES PriorityTier=10
PartitionName=low PriorityTier=1
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[slurmdbd]}
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[mariadbd]}
StorageUser=slurm
StoragePass={password}
"""

# The plugin that starts a job's step takes every SLURM_* variable away from its srun.
SRUN = """\
#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""


def missing() -> str:
    """Say in one sentence what this machine lacks to run a cluster; nothing if it lacks nothing."""
    packages = {package for name, package in PROGRAMS.items() if not shutil.which(name, path=PATH)}
    if not any(Path("/usr/lib").glob(f"*/{DATABASE_PLUGIN}")):
        packages.add("slurm-wlm-mysql-plugin")
    if packages:
        return f"missing: {', '.join(sorted(packages))}; 'make test-slurm' installs them."
    if os.getuid() != 0:
        return "only root can start a SLURM that sets up jobs: run the tests as root."
    return ""


def wait_for(condition: Callable[[], Value], seconds: float, what: str) -> Value:
    """Return the first true value of `condition`.

    Raises:
        TimeoutError: there was none; the message says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.1)
    return value


@dataclass(frozen=True)
class Job:
    """A job as SLURM tells of it."""

    id: int
    state: str  # such as RUNNING
    name: str
    comment: str
    folder: Path  # that it was submitted from
    node: str  # empty before it starts
    partition: str
    cpus: int
    memory: str  # with its unit, such as 8000M
    time_limit: str  # [days-]hours:minutes:seconds

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read the fields, in the order of this class, divided by tabs."""
        number, state, name, comment, folder, node, partition, cpus, *limits = line.split("\t")
        # The state of a cancelled job says who did it: "CANCELLED by 0".
        state = state.split()[0]
        return cls(
            int(number), state, name, comment, Path(folder), node, partition, int(cpus), *limits
        )


class Cluster:
    """A cluster with made-up nodes and GPUs, and with SLURM's own daemons and jobs.

    It has the partitions `gpu`, the default, and `low`, whose jobs are requeued when one of `gpu`
    wants their place. As a context manager it starts, and ends without a trace, whatever happens.

    Args:
        nodes: their number; they are called n1, n2, …
        gpus: of each node.
        cpus: of each node.
        min_job_age: seconds for which slurmctld remembers a job that has ended; it looks for such
            jobs once a minute.
    """

    def __init__(
        self, nodes: int = 4, gpus: int = 2, cpus: int = 8, min_job_age: int = 300
    ) -> None:
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._gpus = gpus
        self._cpus = cpus
        self._min_job_age = min_job_age
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons, and return when every node is ready for jobs.

        Raises:
            RuntimeError: this machine lacks something, or a daemon ended.
            TimeoutError: a daemon did not come up. The notes have the last lines of all logs.
        """
        if lack := missing():
            raise RuntimeError(lack)
        # Not pytest's: the path of a socket must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        (self.folder / "tmp").mkdir()
        try:
            self._ports = free_ports(["mariadbd", "slurmdbd", "slurmctld", *self.nodes])
            self._start_munge()
            self._start_accounting()
            self._start_slurm()
        except BaseException as error:
            for log in sorted(self.folder.glob("*.log")):
                lines = log.read_text(errors="replace").splitlines()[-10:]
                error.add_note("\n".join([f"--- {log.name}", *lines]))
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every daemon and every process of every job, and delete the folder."""
        # Daemons first, so that they start nothing new. What they would tidy up is thrown away.
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        self._daemons.clear()
        wait_for(self._none_left, 30, "all processes to end")
        shutil.rmtree(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that uses this cluster and no other."""
        own = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(self.folder / "bin"), PATH]),
            # Killed jobs leave their temporary files.
            "TMPDIR": str(self.folder / "tmp"),
        }
        foreign = ("SLURM_", "SBATCH_", "SRUN_")
        others = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return {**others, **own}

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands, and return what it prints.

        Raises:
            RuntimeError: the command failed; the message is its own.
        """
        run = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {run.stderr.strip()}")
        return run.stdout

    def submit(self, command: str, *options: str) -> int:
        """Submit a shell command as a job, and return the job's number."""
        folder = ("--chdir", str(self.folder), "--output", str(self.folder / "job-%j.log"))
        return int(self.run("sbatch", "--parsable", *folder, *options, "--wrap", command))

    def jobs(self) -> list[Job]:
        """Return the jobs that slurmctld knows, by number: waiting, running, and lately ended."""
        fields = "\t".join(f"%{letter}" for letter in "iTjkZNPCml")
        lines = self.run("squeue", "--states=all", "--sort=i", "--noheader", "--format", fields)
        return [Job.parse(line) for line in lines.splitlines()]

    def job(self, number: int) -> Job | None:
        """Return a job, or nothing if slurmctld does not know it."""
        return next((job for job in self.jobs() if job.id == number), None)

    def history(self) -> list[Job]:
        """Return all jobs from the accounts; a requeued job once for each time it ran."""
        fields = (
            "JobIDRaw,State,JobName,Comment,WorkDir,NodeList,Partition,AllocCPUS,ReqMem,Timelimit"
        )
        options = ("--allocations", "--duplicates", "--starttime=now-1day", "--noheader")
        lines = self.run("sacct", *options, "--parsable2", "--delimiter=\t", "--format", fields)
        return [Job.parse(line) for line in lines.splitlines()]

    def cancel(self, *numbers: int) -> None:
        """Cancel jobs; those that are over already are no error."""
        self.run("scancel", "--quiet", *map(str, numbers))

    def requeue(self, number: int) -> None:
        """Send a running job back into the queue."""
        self.run("scontrol", "requeue", str(number))

    def set_node(self, name: str, state: str) -> None:
        """Set a node "down", which ends its jobs, or "resume" it."""
        self.run("scontrol", "update", f"NodeName={name}", f"State={state}", "Reason=test")

    def restart(self, daemon: str, number: signal.Signals) -> None:
        """End a daemon by a signal and start it again; jobs run on meanwhile.

        Args:
            daemon: `slurmctld`, or a node, whose slurmd it is.
            number: of the signal.
        """
        process = self._daemons.pop(daemon)
        process.send_signal(number)
        process.wait()
        self._spawn(daemon, list(process.args))
        self._wait_for(lambda: self._answers() and self._listens(daemon), daemon)

    def mend(self) -> list[str]:
        """Do what administrators do after an accident, and say what that was.

        SLURM holds jobs that could not start, and takes nodes out of use that it does not trust.
        """
        held = self.run("squeue", "--noheader", "--states=PENDING", "--format=%i %r").splitlines()
        stuck = [line.split()[0] for line in held if "held" in line]
        states = self.run("sinfo", "--Node", "--noheader", "--partition=gpu", "--format=%N %T")
        broken = [line.split()[0] for line in states.splitlines() if re.search("down|drain", line)]
        for job in stuck:
            self.run("scontrol", "release", job)
        for node in broken:
            self.set_node(node, "resume")
        return [*(f"released job {job}" for job in stuck), *(f"resumed {node}" for node in broken)]

    def remember_jobs(self, seconds: int) -> None:
        """Change for how long slurmctld remembers jobs that have ended (`min_job_age`)."""
        self._min_job_age = seconds
        self._write_slurm_conf()
        self.run("scontrol", "reconfigure")

    def pids(self, job: int | None = None) -> list[int]:
        """Return the processes that use this cluster, or those of one job."""
        marks = {f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()}
        if job is not None:
            marks.add(f"SLURM_JOB_ID={job}".encode())
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes()
            except OSError:  # it has just ended
                continue
            if marks <= set(environment.split(b"\0")):
                found.append(int(process.name))
        return found

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {
            "socket": self.folder / "munge.socket",
            "key-file": key,
            "pid-file": self.folder / "munge.pid",
            "seed-file": self.folder / "munge.seed",
            "log-file": self.folder / "munge.log",
        }
        options = [f"--{option}={path}" for option, path in files.items()]
        # Forced, since it would rather not have its socket in a folder of root alone.
        self._daemon("munged", "--foreground", "--force", *options)
        self._wait_for(files["socket"].exists, "munged's socket")

    def _start_accounting(self) -> None:
        data, mariadb_socket = self.folder / "mariadb", self.folder / "mariadb.sock"
        self.run(
            "mariadb-install-db",
            "--no-defaults",
            "--skip-test-db",
            "--user=root",
            f"--datadir={data}",
        )
        password = secrets.token_hex()
        statements = self.folder / "accounts.sql"
        statements.touch(mode=0o600)
        statements.write_text(
            "CREATE DATABASE slurm_acct_db;\n"
            f"CREATE USER slurm@127.0.0.1 IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm_acct_db.* TO slurm@127.0.0.1;\n"
        )
        self._daemon(
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            f"--socket={mariadb_socket}",
            f"--pid-file={self.folder / 'mariadb.pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self._ports['mariadbd']}",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",  # no waiting for the disk
            f"--init-file={statements}",
        )
        self._wait_for(lambda: self._listens("mariadbd"), "mariadbd")
        conf = self.folder / "slurmdbd.conf"
        conf.touch(mode=0o600)
        conf.write_text(
            SLURMDBD_CONF.format(folder=self.folder, ports=self._ports, password=password)
        )
        self._write_slurm_conf()
        self._daemon("slurmdbd", "-D")
        self._wait_for(lambda: self._listens("slurmdbd"), "slurmdbd")

    def _start_slurm(self) -> None:
        # Regular files would be refused, and CUDA_VISIBLE_DEVICES would then not be set.
        for number in range(self._gpus):
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(
            f"Name=gpu File={self.folder}/gpu[0-{self._gpus - 1}] Flags=nvidia_gpu_env\n"
        )
        srun = self.folder / "bin" / "srun"
        srun.parent.mkdir()
        srun.write_text(SRUN.format(folder=self.folder, srun=shutil.which("srun", path=PATH)))
        srun.chmod(0o755)
        self._daemon("slurmctld", "-D")
        for node in self.nodes:
            (self.folder / f"spool-{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node, log=node)
        self._wait_for(self._all_idle, "all nodes to be idle")

    def _write_slurm_conf(self) -> None:
        host = socket.gethostname().partition(".")[0]
        here = f"NodeHostname={host} NodeAddr=127.0.0.1"
        nodes = [f"NodeName={node} {here} Port={self._ports[node]}" for node in self.nodes]
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=host,
                folder=self.folder,
                ports=self._ports,
                nodes="\n".join(nodes),
                cpus=self._cpus,
                gpus=self._gpus,
                min_job_age=self._min_job_age,
            )
        )

    def _daemon(self, *command: str, log: str = "") -> None:
        # A pytest that is itself killed takes the daemons along.
        self._spawn(log or command[0], ["setpriv", "--pdeathsig", "KILL", *command])

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as opened:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _none_left(self) -> bool:
        """Kill the processes that are left, as some may just have started others."""
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a daemon to come up, in vain once one of them has ended."""

        def ended() -> bool:
            return any(daemon.poll() is not None for daemon in self._daemons.values())

        wait_for(lambda: condition() or ended(), 60, what)
        if ended():
            raise RuntimeError(f"a daemon ended while waiting for {what}")

    def _listens(self, daemon: str) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._ports[daemon])) == 0

    def _answers(self) -> bool:
        try:
            return bool(self.run("sinfo"))
        except RuntimeError:  # slurmctld is not up yet
            return False

    def _all_idle(self) -> bool:
        try:
            states = self.run("sinfo", "--Node", "--noheader", "--partition=gpu", "--format=%T")
        except RuntimeError:  # slurmctld is not up yet
            return False
        return states.split() == ["idle"] * len(self.nodes)


def free_ports(names: list[str]) -> dict[str, int]:
    """Return a free port on loopback for each name, none of which the kernel gives to a client."""
    ports: dict[str, int] = {}
    candidates = iter(random.sample(range(20000, 32000), 1000))
    for name in names:
        for port in candidates:
            with socket.socket() as server:
                if server.connect_ex(("127.0.0.1", port)) != 0:
                    ports[name] = port
                    break
    return ports
