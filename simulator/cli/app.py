"""The command line: dsv3sim run, sweep, validate, attribute, compare, replay, init, plan, show.

One module per command holds it; this one puts them together. Nothing else of the package prints.

What a user can mend ends with one line on standard error and exit code 2. Imports of the simulation
stay inside the commands, so that `dsv3sim --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import warnings
from importlib import import_module
from typing import Annotated

import typer

from simulator.cli.options import Stopped, stoppable

COMMANDS = {
    "run": "run:run_command",
    "sweep": "sweep:sweep_command",
    "validate": "validate:validate",
    "attribute": "attribute:attribute",
    "compare": "compare:compare",
    "sensitivity": "sensitivity:sensitivity",
    "replay": "replay:replay",
    "calibrate": "calibrate:calibrate",
    "list": "discover:list_names",
    "init": "init_serving:init_app",
    "plan": "plan:plan_app",
    "show": "show:show_app",
}
"""{command: its module in simulator.cli, and its name there}, in the order of --help."""


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"dsv3sim {version('dsv3sim')}")
        raise typer.Exit


def of_every_command(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Predict how long DeepSeek-V3-class models take on a GPU cluster, and where it goes."""


def command_line(asked: str | None = None) -> typer.Typer:
    """The commands; only the one that is asked for, if it is one: typer takes a twentieth of a
    second to make them all."""
    app = typer.Typer(
        callback=of_every_command, no_args_is_help=True, pretty_exceptions_enable=False
    )
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        module, _, held = COMMANDS[name].partition(":")
        command = getattr(import_module(f"simulator.cli.{module}"), held)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


BAD_INPUT = 2
"""Exit code for everything that the user can mend."""

LONGEST_WORD = 120
"""Characters of one word that a message shows of hostile input."""

LONGEST_MESSAGE = 900
"""Characters of a whole message, of the middle of which no more is shown."""

GARBAGE_AT = 300_000
"""Objects that are made before garbage is looked for: a command ends soon, and 700 as usual cost it
an eighth of its time."""

NO_READER = 1
"""Exit code where what reads the output has gone, as after `| head`."""


def main() -> None:
    """Entry point: errors that the user can mend become one line and exit code 2, warnings one."""
    gc.set_threshold(GARBAGE_AT)
    # Nor is it looked for at the end of the process, when all of it goes.
    atexit.register(gc.freeze)
    # Plug-ins for pydantic of other packages have no part here, and are long looked for.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Matrices are small here: threads for their products take longer to start than they save.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    warnings.formatwarning = lambda message, *_where: f"note: {message}\n"
    try:
        with stoppable():
            program = command_line(sys.argv[1] if sys.argv[1:] else None)
            code = program(prog_name="dsv3sim", standalone_mode=False)
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
    """The message with the middle of each word, and of the whole, cut that is longer than anybody
    reads."""

    def cut(text: str, longest: int) -> str:
        end = longest // 2
        return f"{text[:end]}...{text[-end:]}"

    found = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: cut(word[0], LONGEST_WORD), message)
    return cut(found, LONGEST_MESSAGE) if len(found) > LONGEST_MESSAGE else found


if __name__ == "__main__":
    main()
