"""What the console script `initiator-sim` calls: it loads the program, and Ctrl-C meanwhile is no traceback."""

import sys


def run() -> None:
    try:
        from initiator_sim.cli import main
    except KeyboardInterrupt:
        print("initiator-sim: interrupted", file=sys.stderr)
        sys.exit(130)
    main(prog_name="initiator-sim")
