"""`python -m san_target.cli` is `san-target`."""

from san_target.cli.main import main

main(prog_name="san-target")
