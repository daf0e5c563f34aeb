"""`python -m san_target.cli` is `san-target`."""

from san_target.cli.entry import run

run()
