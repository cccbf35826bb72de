"""The command line: one thin file per verb, loaded only when the verb is used."""

import os
import shlex
import sys
from keyword import iskeyword
from typing import Final

from cyclopts import App, CycloptsError
from cyclopts import ValidationError as OptionError

from robustmix._version import __version__
from robustmix.errors import RobustmixError

VERBS: Final = {
    "demo": "Train, attack and report on embedded digits, in a workspace of its own.",
    "run": "Do all that a suite asks for: train what is missing, attack, report.",
    "train": "Train one network, or go on with it.",
    "attack": "Attack runs with examples crafted on themselves and on each other.",
    "audit": "Test whether the attacks on runs measure robustness, or only their own weakness.",
    "results": "Print the table of all cells.",
    "compare": "Compare two networks example by example.",
    "crosscheck": "Compare our attacks with torchattacks and foolbox.",
    "report": "Write the HTML page.",
    "import": "Make a run from a checkpoint of another program.",
    "export": "Write a run for other programs, with a model card.",
    "ls": "List runs, data, models, methods, attacks and suites.",
    "validate": "Check a suite's file.",
}

app = App(
    name="robustmix",
    help="Does mixup make a network robust, or does it only look so? Start with: robustmix demo",
    version=__version__,
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for _verb, _summary in VERBS.items():
    # The summary stands in the list of verbs, which is printed without importing them; a verb's own help says more.
    _asked = _verb in sys.argv[1:2]
    _module = f"{_verb}_" if iskeyword(_verb) else _verb
    app.command(f"robustmix.cli.{_module}:{_module}", name=_verb, help=None if _asked else _summary)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 not as hoped, 2 bad input (one line on standard error), 130 interrupted.
    """
    try:
        code = app()
    except RobustmixError as error:
        fail(str(error))
    except OptionError as error:
        fail(_explain_options(error))
    except CycloptsError as error:
        fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        command = shlex.join(["robustmix", *sys.argv[1:]])
        print(f"\nrobustmix: interrupted; what had finished is kept. To go on: {command}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone (``| head``). Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str) -> None:
    """Print one line on standard error and exit with code 2."""
    print(f"robustmix: error: {message}", file=sys.stderr)
    sys.exit(2)


def _explain_options(error: OptionError) -> str:
    """Bad options in the words of recipes and suites, where pydantic found them."""
    from pydantic import ValidationError

    from robustmix.spec.recipe import Recipe
    from robustmix.spec.validation import explain

    cause = error.__cause__
    if isinstance(cause, ValidationError):
        text = explain(cause, Recipe)
        key = cause.errors()[0]["loc"]
        return f"--{text.replace('_', '-', str(key[0]).count('_'))}" if key else text
    return " ".join(str(error).split())
