"""Run every recipe over several seeds: python scripts/recipe_table.py --data-root DIR

Writes runs/bench/recipes.md, the README's table.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch

from manual_backprop.programs.environment import environment
from manual_backprop.training.config import RECIPES
from manual_backprop.training.data import load
from manual_backprop.training.trainer import Trainer

THREADS = torch.get_num_threads()  # torch's own choice, for the recipes that leave it


def measure(recipe: str, seed: int, data_root: Path) -> dict[str, float]:
    """Accuracy after the last epoch and the best in percent, and the seconds of all epochs with their scores."""
    config = dataclasses.replace(RECIPES[recipe].config, seed=seed, data_root=data_root)
    torch.set_num_threads(config.threads or THREADS)
    mnist, _ = load(config, config.torch_device)
    started = time.perf_counter()
    trainer = Trainer(config, mnist, config.torch_device)
    trainer.fit()
    return {
        "accuracy": trainer.history[-1][f"accuracy_{RECIPES[recipe].measured_on}"],
        "best": max(row[f"accuracy_{RECIPES[recipe].measured_on}"] for row in trainer.history),
        "run": time.perf_counter() - started,
    }


def row(recipe: str, runs: list[dict[str, float]]) -> str:
    """A line of the table."""
    config, _, reported, _ = RECIPES[recipe]
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    accuracy, best = columns["accuracy"], columns["best"]
    cells = [
        f"`{recipe}`",
        f"{'-'.join(map(str, config.sizes))}, {config.cost.replace('_', '-')}, {config.epochs} epochs",
        f"{reported} %" if reported else "–",
        f"{statistics.mean(accuracy):.2f} ± {statistics.stdev(accuracy):.2f} %",
        f"{max(best):.2f} %",
        f"{statistics.median(columns['run']):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="as in train_mnist.py (default: data)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two (default: 0 1 2)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="(default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/recipes.md"), help="(default: %(default)s)")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds: expected at least two, for a standard deviation")
    lines = [
        "| recipe | network | the book | ours, last epoch | our best epoch | s a run |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in options.recipes:
        lines.append(row(recipe, [measure(recipe, seed, options.data_root) for seed in options.seeds]))
        print(lines[-1], flush=True)
    found = environment(torch.device("cpu"))
    lines += ["", f"{found['device']}, torch {found['torch']}, up to {THREADS} threads, seeds {options.seeds}"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")
    print(f"{lines[-1]}; all in {options.out}")


if __name__ == "__main__":
    main()
