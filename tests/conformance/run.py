"""Run libiscsi's conformance suites from the shell.

    python -m tests.conformance.run                       a member of its own, every kind of volume
    python -m tests.conformance.run --target tgt          the same against tgt
    python -m tests.conformance.run --target group        the same through one of three members that share each volume
    python -m tests.conformance.run --url iscsi://...     a target that runs already (its data is destroyed!)
        --second-url URL   another way to the same logical unit, for the multipath suite
    --kind NAME, --suite NAME   only these (repeatable)
    --json                one document instead of a table
    --write-docs          write its part of docs/conformance.md (needs every kind)

Exit status 1 when a test failed or broke.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.conformance.iscsi_test_cu import Outcomes, Verdict, count, run_suites
from tests.conformance.kinds import KINDS, run_kinds
from tests.conformance.report import document, write
from tests.support.group import Group
from tests.support.member import Member
from tests.support.target import Target
from tests.support.tgt import Tgt

TARGETS: dict[str, Callable[[Path], Target | Group]] = {"san-target": Member, "tgt": Tgt, "group": Group}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--second-url")
    parser.add_argument("--target", choices=list(TARGETS), default="san-target")
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--suite", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if options.write_docs and (options.url or options.kind or options.suite or options.target != "san-target"):
        parser.error("--write-docs goes with a whole run on san-target")
    return options


def tell(suite: str) -> None:
    print(f"  {suite}", file=sys.stderr, flush=True)


def print_table(results: dict[str, Outcomes]) -> None:
    for kind, outcomes in results.items():
        for test, outcome in outcomes.items():
            if outcome.verdict is not Verdict.PASSED:
                print(f"{kind}: {test}: {outcome.verdict.upper()} {outcome.detail}")
        print(f"{kind}: " + ", ".join(f"{number} {verdict}" for verdict, number in count(outcomes).items()))


def main() -> int:
    options = arguments()
    if options.url:
        urls = [url for url in (options.url, options.second_url) if url]
        results = {"url": run_suites(urls, options.suite, tell)}
    else:
        start = TARGETS[options.target]
        with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
            results = run_kinds(start, Path(directory), options.kind or list(KINDS), options.suite, tell)
    if options.json:
        plain = {
            kind: {test: {"verdict": outcome.verdict, "detail": outcome.detail} for test, outcome in outcomes.items()}
            for kind, outcomes in results.items()
        }
        print(json.dumps(plain, indent=1))
    else:
        print_table(results)
    if options.write_docs:
        write(suites=document(results))
    bad = {Verdict.FAILED, Verdict.BROKEN}
    return int(any(outcome.verdict in bad for outcomes in results.values() for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
