"""`python -m flotilla_devcluster.nodeagent --kubeconfig K --config F --directory D`."""

import argparse
import asyncio
import logging
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp

from flotilla import logs
from flotilla.kube.client import KubeClient
from flotilla_devcluster.engine.forkserver import Engines
from flotilla_devcluster.kubeconfig import load
from flotilla_devcluster.nodeagent.agent import Agent
from flotilla_devcluster.nodeagent.container import Host
from flotilla_devcluster.nodeagent.nodes import AgentConfig


async def run(kubeconfig: Path, config: AgentConfig, directory: Path) -> None:
    """Until SIGTERM or SIGINT."""
    engines = Engines.start(directory)
    client = await KubeClient.connect(kubeconfig=kubeconfig, user_agent="flotilla-nodeagent", pool=64)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        agent = Agent(Host(client, session, config, access=load(kubeconfig), directory=directory, engines=engines))
        work = asyncio.create_task(agent.run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        with suppress(asyncio.CancelledError):
            await work
    engines.stop()
    await client.close()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    logs.configure("INFO", "json")
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    config = AgentConfig.model_validate_json(options.config.read_text())
    asyncio.run(run(options.kubeconfig, config, options.directory))


if __name__ == "__main__":
    main()
