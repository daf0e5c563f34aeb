"""What the console script `san-target` calls: it loads the program, and Ctrl-C meanwhile is no traceback."""

import sys


def run() -> None:
    try:
        from san_target.cli.main import main
    except KeyboardInterrupt:
        print("san-target: interrupted", file=sys.stderr)
        sys.exit(130)
    main(prog_name="san-target")
