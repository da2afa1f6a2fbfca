"""The command line in a process of its own, as the tests of commands call it."""

import subprocess
import sys

from simulator.cli.progress import PREFIX

MAIN = "dualpipe_h800_2048"
SMALL = (
    "--set", "training.pp=2", "--set", "training.ep=32", "--set", "cluster.nodes=8",
    "--set", "training.global_batch_sequences=256", "--set", "model.num_nextn_predict_layers=1",
    "--set", "cluster.node.gpu.hbm_capacity=900 GiB",
)  # fmt: skip


def started(*arguments, cwd):
    """The process of a command, in a group of its own as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "simulator.cli", *arguments], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
    )  # fmt: skip


def dsv3sim(*arguments, cwd=None):
    """What a command gave; what it says of its progress comes with time and is left out."""
    done = subprocess.run(
        [sys.executable, "-m", "simulator.cli", *arguments],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip
    done.stderr = without_progress(done.stderr)
    return done


def without_progress(said):
    """What a command says on standard error, less its progress."""
    lines = said.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(PREFIX))
