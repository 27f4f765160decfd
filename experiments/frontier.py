"""Likelihood and repair of RBMs against what learning costs, for rules with and without persistent chains.

    python -m experiments.frontier --dataset=mnist --num_seeds=5 --workdir=runs/frontier

For each rule the log-likelihood of the binarised test images in nats (annealed importance sampling, forward and
reverse), the clamped repair of bands of them, Gibbs sweeps per step and seconds of training; with --lengths=1,2 also
after training for twice as many epochs, since a rule whose chains are too short can lose again what it had. Writes
table.md, frontier.png and summary.json into --workdir and the trained machines into --models, which other experiments
can share. A second start resumes; a finished run says so. A quick setting, two minutes on two cores:

    python -m experiments.frontier --dataset=mnist_5k --num_seeds=2 --rules=cd1,tethered1,pcd1,ratio --hidden=32 \
        --epochs=4 --num_chains=50 --num_temperatures=200 --workdir=runs/quick
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import named_recipes
from vpf_jax import figures
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.tables import cell, markdown_table, mean_and_error
from vpf_jax.evaluate.reconstruction import SIDES
from vpf_jax.settings import setting

# Where rules without chains stand on the axis of sweeps.
NO_SWEEPS = 0.5


@dataclasses.dataclass(frozen=True)
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "frontier"

    rules: tuple[str, ...] = setting(tuple(named_recipes.RBMS), "Rules in the table", choices=tuple(named_recipes.RBMS))
    hidden: int = setting(196, "Hidden units", least=1)
    epochs: int = setting(40, "Passes over the training images", least=2)
    lengths: tuple[int, ...] = setting((1,), "Multiples of the epochs for which each rule trains", least=1)
    num_chains: int = setting(100, "Annealed chains", least=2)
    num_temperatures: int = setting(5000, "Inverse temperatures of the annealing", least=2, most=2**31 - 1)


def run(config: Config) -> dict[str, Any]:
    """Trains, measures and draws; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`)."""
    workshop = config.workshop()
    images = workshop.images
    annealing = {"num_chains": config.num_chains, "num_temperatures": config.num_temperatures}
    kinds = [(rule, length) for rule in config.rules for length in config.lengths]
    some = {kind: named_recipes.rbm(kind[0], config.hidden, config.epochs * kind[1]) for kind in kinds}
    workshop.check(next(iter(some.values())))
    runs.check_memory("num_chains", config.num_chains, 8 * config.num_chains * (images.num_visible + config.hidden))
    told = f"{config.data_name}, {config.hidden} hidden units, {config.epochs} epochs"

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        rows = []
        for (rule, length), recipe in some.items():
            trained = workshop.run(recipe, stops)
            evaluate = functools.partial(measure, trained, images, annealing)
            measured = runs.evaluate_seeds(folder, f"{rule}-{length}", config.seeds, stops, evaluate)
            sweeps = named_recipes.sweeps_per_step(recipe)
            about = {
                "rule": rule,
                "length": length,
                "epochs": recipe.epochs,
                "sweeps_per_step": sweeps,
                "seconds": trained.seconds,
            }
            rows.append({**about, "persistent": named_recipes.is_persistent(recipe), "runs": measured})
        figures.save(folder / "frontier.png", draw(rows, f"RBMs on {told}"))
        return {"rows": rows}, f"{told}; {config.told_of_means}\n\n{tabulate(rows)}"

    return runs.carry_out(config, work)


def measure(
    trained: recipes.Seeds, images: runs.Images, annealing: dict[str, int], index: int, seed: int
) -> dict[str, Any]:
    """Log-likelihood and clamped repair of the test images by the RBM of one seed; says so."""
    stack = trained.stack(index)
    found = named_recipes.rbm_log_likelihood(stack[0], images, seed, **annealing)
    clamped = named_recipes.repair_errors(stack, images, seed)["clamped"]
    errors = " ".join(f"{error:.1f}" for error in clamped.values())
    print(f"{trained.recipe.title}, seed {seed}: {found['log_likelihood']:.2f} nats, clamped {errors}", flush=True)
    return found | {"clamped": clamped}


def tabulate(rows: list[dict[str, Any]]) -> str:
    header = ["rule", "sweeps per step", "chains persist", "epochs", "log-likelihood, nats", "reverse - forward log Z"]
    header += ["effective samples", *(f"{side}, clamped" for side in SIDES), "training"]
    cells = [
        [
            named_recipes.RBMS[row["rule"]],
            f"{row['sweeps_per_step']:.3g}",
            "yes" if row["persistent"] else "no",
            str(row["epochs"]),
            cell([run["log_likelihood"] for run in row["runs"]], 2),
            cell([run["log_z_reverse"] - run["log_z"] for run in row["runs"]], 2),
            cell([run["effective_sample_size"] for run in row["runs"]], 0),
            *(cell([run["clamped"][side] for run in row["runs"]]) for side in SIDES),
            f"{row['seconds']:.0f} s",
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def draw(rows: list[dict[str, Any]], title: str) -> Any:
    """Both measures over both costs; rules of one family that differ in their number of sweeps are joined."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = named_recipes.RBMS[row["rule"]].rstrip("0123456789").rstrip("-") + ", persistent" * row["persistent"]
        name += f", {row['length']} times as long" if row["length"] > 1 else ""
        families.setdefault(name, []).append(row)
    lines = {}
    for name, some in families.items():
        # A rule without chains stands where the axis begins.
        costs = [[max(row["sweeps_per_step"], NO_SWEEPS), row["seconds"]] for row in some]
        scores = [
            [
                mean_and_error([run["log_likelihood"] for run in row["runs"]]),
                mean_and_error([float(np.mean(list(run["clamped"].values()))) for run in row["runs"]]),
            ]
            for row in some
        ]
        means, errors = np.moveaxis(np.array(scores, np.float64), 2, 0)
        lines[name] = np.array(costs), means, np.nan_to_num(errors)
    return figures.crossed(
        lines,
        xlabels=(f"Gibbs sweeps per step ({NO_SWEEPS}: none)", "seconds of training"),
        ylabels=("log-likelihood, nats", "clamped repair, mean L1 error"),
        title=title,
    )


if __name__ == "__main__":
    command.start(Config, run)
