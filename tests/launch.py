"""Several processes as `torchrun` starts them, without the launcher's own process: they meet through gloo."""

import os
import socket
import subprocess
import sys


def start(count: int, *command, **environment) -> list[subprocess.Popen]:
    """Start `python COMMAND` so often, as one launch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": 1,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ
            | {k: str(v) for k, v in (shared | environment | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def outputs(workers: list[subprocess.Popen], timeout: float = 250) -> list[str]:
    """What each printed, when all have ended; none outlives a failure or the timeout."""
    try:
        return [worker.communicate(timeout=timeout)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
