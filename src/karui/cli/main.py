"""``karui VERB``: declares the verbs, runs one, and maps one error tree to exit codes.

0 budget met, 1 internal error, 2 usage, 3 nothing met the budget, 4 a needed runtime is missing,
5 too noisy to decide, 6 regression found by ``verify``, 130 interrupted and resumable.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from typing import final

from karui.errors import KaruiError, first_lines

VERBS = (
    "demo",
    "doctor",
    "init",
    "bench",
    "optimize",
    "prune",
    "finetune",
    "distill",
    "quantize",
    "resume",
    "report",
    "show",
    "explain",
    "compare",
    "table",
    "lock",
    "verify",
    "export",
    "agent",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; every error has the form what / why / try on standard error."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KaruiError as error:
        complain(args, error.exit_code, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain(args, 130, "interrupted")
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        complain(args, 2, f"a file cannot be read or written\n  why: {first_lines(error)}")
        return 2
    except BaseException:
        if isinstance(sys.exc_info()[1], SystemExit):
            raise
        complain(args, 1, f"internal error, please report it:\n{traceback.format_exc()}")
        return 1


def complain(args: argparse.Namespace, code: int, text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    if getattr(args, "json", False):
        print(json.dumps({"schema": "karui.error/1", "exit_code": code, "error": text}, ensure_ascii=False))


def parser() -> argparse.ArgumentParser:
    """The whole command line; building it imports no torch and no runtime."""
    top = argparse.ArgumentParser(
        prog="karui",
        description="Make a trained PyTorch model light: smaller and faster where it will run, "
        "inside an accuracy budget, every number measured.",
        epilog="Exit codes: 0 budget met, 1 internal error, 2 usage, 3 nothing met the budget, "
        "4 a needed runtime is missing, 5 too noisy to decide, 6 regression found, 130 interrupted.",
    )
    top.add_argument("--version", action=ShowVersion, nargs=0, help="show the version and exit")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        module = importlib.import_module(f"karui.cli.{verb}")
        one = verbs.add_parser(
            verb,
            help=first_line(module.__doc__),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.declare(one)
        one.set_defaults(run=module.run)
    return top


def first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0].rstrip(".")


@final
class ShowVersion(argparse.Action):
    """Looks the version up only when asked: that import alone takes as long as all the rest."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option: object = None,
    ) -> None:
        from importlib.metadata import version

        print(f"karui {version('karui')}")
        parser.exit()
