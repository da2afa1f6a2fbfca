"""The command line: dsv3sim run, sweep, validate, attribute, compare, replay, init, plan, show.

One module per command holds it; this one puts them together. Nothing else of the package prints.

What a user can mend ends with one line on standard error and exit code 2. Imports of the simulation
stay inside the commands, so that `dsv3sim --help` answers at once.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from simulator.cli.attribute import attribute
from simulator.cli.calibrate import calibrate
from simulator.cli.compare import compare
from simulator.cli.discover import list_names
from simulator.cli.init import init_app
from simulator.cli.init_serving import init_serving
from simulator.cli.options import Stopped, stoppable
from simulator.cli.plan import plan_app
from simulator.cli.replay import replay
from simulator.cli.run import run_command
from simulator.cli.sensitivity import sensitivity
from simulator.cli.show import show_app
from simulator.cli.sweep import sweep_command
from simulator.cli.validate import validate

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"dsv3sim {version('dsv3sim')}")
        raise typer.Exit


@app.callback()
def of_every_command(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Predict how long DeepSeek-V3-class models take on a GPU cluster, and where it goes."""


app.command("run")(run_command)
app.command("sweep")(sweep_command)
for command in (validate, attribute, compare, sensitivity, replay, calibrate):
    app.command()(command)
init_app.command("serving")(init_serving)
app.command("list")(list_names)
app.add_typer(init_app, name="init")
app.add_typer(plan_app, name="plan")
app.add_typer(show_app, name="show")

BAD_INPUT = 2
"""Exit code for everything that the user can mend."""

LONGEST_WORD = 120
"""Characters of one word that a message shows of hostile input."""

GARBAGE_AT = 100_000
"""Objects that are made before garbage is looked for: a command ends soon, and 700 as usual cost it
a twentieth of its time."""

NO_READER = 1
"""Exit code where what reads the output has gone, as after `| head`."""


def main() -> None:
    """Entry point: errors that the user can mend become one line and exit code 2, warnings one."""
    gc.set_threshold(GARBAGE_AT)
    warnings.formatwarning = lambda message, *_where: f"note: {message}\n"
    try:
        with stoppable():
            code = app(standalone_mode=False)
            sys.stdout.flush()
    except Stopped as stop:
        print(f"dsv3sim: stopped by {stop.by}: {stop.kept}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        _forget_output()
        sys.exit(NO_READER)
    except Exception as error:
        # typer's own usage errors carry a message in the place of a type that can be imported.
        usage = getattr(error, "format_message", None)
        if usage is None and not isinstance(error, ValueError | OSError | MemoryError):
            raise
        message = usage() if usage else str(error)
        context = getattr(error, "ctx", None)
        if context is not None and message.startswith("Missing "):
            message = f"{message.rstrip('.')}; {context.command_path} --help shows what it takes"
        if isinstance(error, MemoryError):
            message = f"not enough memory for a job of this size: {str(error) or 'none is left'}"
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename or 'standard output'}: {error.strerror}"
            if error.filename is None:
                _forget_output()
        print(f"dsv3sim: {_short(message)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    sys.exit(code if isinstance(code, int) else 0)


def _forget_output() -> None:
    """Let what could not be written be written nowhere, so that the end does not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _short(message: str) -> str:
    """The message with the middle of each word cut that is longer than anybody reads."""
    end = LONGEST_WORD // 2
    return re.sub(
        rf"\S{{{LONGEST_WORD},}}", lambda word: f"{word[0][:end]}...{word[0][-end:]}", message
    )


if __name__ == "__main__":
    main()
