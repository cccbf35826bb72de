"""``robustmix ls``."""

from robustmix.cli.options import Place
from robustmix.spec.named import shipped_recipes
from robustmix.spec.names import ATTACKS, DATA_CHOICES, LOSSES, METHODS, MODELS
from robustmix.spec.suite import known_suites

DEFAULTS = Place()


def ls(*, place: Place = DEFAULTS) -> None:
    """List the workspace's runs and everything that can be chosen by name."""
    workspace = place.enter()
    from robustmix.cli.tables import print_table
    from robustmix.store.runs import read_run, run_names

    rows = []
    for name in run_names(workspace):
        run = read_run(workspace, name)
        recipe = run.recipe
        imported = run.facts is not None and run.facts.imported_from
        state = "imported" if imported else "finished" if run.finished else f"{len(run.history)}/{recipe.epochs} epochs"
        figures = [f"{run.final(c):.2%}" if len(run.history) else "-" for c in ("train_error", "test_error")]
        figures = ["-" if figure == "nan%" else figure for figure in figures]
        size = "" if recipe.width is None else f" x{recipe.width}"
        rows.append([name, run.method, f"{recipe.model}{size}", recipe.data, state, *figures])
    if rows:
        print_table(["run", "method", "model", "data", "state", "training error", "test error"], rows, numeric=(5, 6))
    else:
        print(f"no runs in {workspace.runs}; start with: robustmix demo")
    for what, names in (
        ("data", [DATA_CHOICES]),
        ("models", MODELS),
        ("methods", METHODS),
        ("attacks", ATTACKS),
        ("losses", LOSSES),
        ("recipes", shipped_recipes()),
        ("suites", known_suites(workspace.root)),
    ):
        print(f"{what}: {', '.join(names)}")
