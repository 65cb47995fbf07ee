"""The command that tests whether maps depend on what the network has learnt."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import Images, Json, MethodOptions, ModelName, ModelOptions, files_of, request_of, setup_of
from konkyo.apps.cli.terminal import print_json, print_table, progress_bar
from konkyo.errors import KonkyoError
from konkyo.utils.files import plain


@with_groups
def sanity(
    images: Images,
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[str, typer.Option("--method", help="Several, as in grad_cam,layer_cam, or 'all'.")] = "grad_cam",
    order: Annotated[str, typer.Option(help="cascading, bottom_up or independent randomisation.")] = "cascading",
    steps: Annotated[int, typer.Option(min=1, help="In how many parts the weights are drawn anew.")] = 10,
    model_options: ModelOptions = ModelOptions(),
    method_options: MethodOptions = MethodOptions(),
    as_json: Json = False,
) -> None:
    """Test whether maps depend on what the network has learnt, and on the class that is asked for."""
    from konkyo.data.images import open_image
    from konkyo.evaluation.sanity import random_class, randomisation

    setup = setup_of(model, model_options)
    names, request = request_of(method, method_options)
    pictures = [open_image(file) for file in files_of(images)]
    task = setup.model.task
    if task.instances and len(pictures) > 1:
        raise KonkyoError(f"a {task.noun} is tested on one picture at a time: each has {task.instances} of its own")
    verdicts: dict[str, dict[str, Any]] = {}
    with progress_bar("drawing weights anew", None) as progress:
        for done, name in enumerate(names):
            settings = {"seed": method_options.seed, **request["options"]}
            tests = [randomisation(setup.model, pictures, name, order=order, steps=steps, **settings)]  # type: ignore[arg-type]
            if not task.instances and setup.model.classes:
                tests.append(random_class(setup.model, pictures, name, **settings))
            verdicts[name] = {
                test.test: {
                    "passed": test.passed,
                    "verdict": test.verdict,
                    "similarity": dict(zip(test.steps, test.similarity.nanmean(1).tolist(), strict=True)),
                }
                for test in tests
            }
            progress(done + 1, len(names))
    if as_json:
        print_json(plain(verdicts))
        return
    rows = [
        (name, test, "passed" if outcome["passed"] else "failed", outcome["verdict"])
        for name, tests in verdicts.items()
        for test, outcome in tests.items()
    ]
    print_table(["method", "test", "", "what it says"], rows)
