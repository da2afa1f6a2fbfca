"""dsv3sim plan: the answer to how many, in which layout, of which hardware."""

from __future__ import annotations

import typer

from simulator.cli.plan_serving import plan_serving_command
from simulator.cli.plan_training import plan_training_command

plan_app = typer.Typer(
    help="Find the layout or the deployment for a job: what fits, what wins, and why not the rest.",
    no_args_is_help=True,
)
plan_app.command("serving")(plan_serving_command)
plan_app.command("training")(plan_training_command)
