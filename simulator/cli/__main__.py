"""Run the command line as `python -m simulator.cli`."""

from simulator.cli.app import main

main()
