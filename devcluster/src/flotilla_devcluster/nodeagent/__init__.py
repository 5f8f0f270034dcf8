"""The node agent: simulated GPU nodes, and a kubelet that runs each pod's container as a local process.

A test tool. Probes, environment, logs, exit codes, back-off, preStop and grace behave as Kubernetes documents them;
ConfigMaps and Secrets are mounted as files, and `kubectl logs` shows what the processes write; there are no namespaces,
other volumes or limits, and exec probes and hooks are taken for done.
"""

import sys
from pathlib import Path

from flotilla_devcluster.nodeagent.nodes import AgentConfig
from flotilla_devcluster.process import Process
from flotilla_devcluster.wait import until


class NodeAgent:
    """The agent as a process of its own; its pods die with it."""

    def __init__(self, process: Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        """Holds `pods/<namespace>_<name>_<uid>/<container>/<restart>.log`."""

    @classmethod
    def start(cls, kubeconfig: Path, config: AgentConfig, directory: Path, *, timeout_s: float = 30.0) -> "NodeAgent":
        """Start and wait until the nodes are registered; raises NotReady with the log when it dies instead."""
        config.write(directory / "config.json")
        log = directory / "nodeagent.log"
        process = Process.start(
            "nodeagent",
            [
                sys.executable,
                "-m",
                "flotilla_devcluster.nodeagent",
                "--kubeconfig",
                str(kubeconfig),
                "--config",
                str(directory / "config.json"),
                "--directory",
                str(directory),
            ],
            log=log,
        )

        def ready() -> bool:
            process.check()
            return '"ready"' in log.read_text(errors="replace")

        try:
            until(ready, what="the simulated nodes to register", timeout_s=timeout_s)
        except BaseException:
            process.kill()
            raise
        return cls(process, directory)

    def stop(self) -> None:
        """End the agent and every process of its pods."""
        self.process.stop(grace_s=5)
