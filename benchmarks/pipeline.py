"""scikit-learn's example of RBM features, with our estimator in the place of BernoulliRBM: accuracy and seconds.

    python -m benchmarks.pipeline --dataset=digits --num_seeds=5
    python -m benchmarks.pipeline --dataset=mnist --images=10000 --num_seeds=5

"Restricted Boltzmann Machine features for digit classification" of scikit-learn's gallery: grey values scaled to
[0, 1], RBM, logistic regression. The RBM is BernoulliRBM with the settings of that example (rate 0.06, 10 passes,
minibatches of 10), ours with its defaults, or none. --shifted adds its copies of the 8 x 8 digits, each moved by a
pixel to the four sides; as in the example they are made before the split, so that copies of one digit lie on both
sides of it. Every seed has a split of its own (MNIST: the official test images, and its own training images) and a
machine of its own. --trials compares settings of ours by cross-validation within the training part of the first seed
and looks at no test image: how the defaults were chosen. Prints a table; keeps nothing.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from vpf_jax import rules
from vpf_jax.app import command
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.data import load_dataset
from vpf_jax.settings import Settings, setting
from vpf_jax.sklearn import BINARISE, BoltzmannTransformer

# x_train, x_test, y_train, y_test, as train_test_split gives them.
Split = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings; each is a flag."""

    dataset: str = setting("digits", "8 x 8 digits of scikit-learn, or MNIST", choices=("digits", "mnist"))
    data_dir: str | None = setting(None, "Folder with mnist/; else $VPF_DATA_DIR")
    shifted: bool = setting(False, "Whether the digits' copies, a pixel to each side, are added, as in the example")
    images: int = setting(10_000, "Training images of MNIST, drawn for each seed", least=100)
    hidden: int = setting(100, "Hidden units", least=1)
    num_seeds: int = setting(5, "Splits and machines", least=1)
    trials: bool = setting(False, "Whether settings of ours are compared by cross-validation instead")
    rules: tuple[str, ...] = setting(("cd", "pcd", "vpf"), "Of --trials", choices=rules.names())
    rates: tuple[float, ...] = setting((2e-3, 5e-3, 1e-2), "Of --trials, learning rates", above=0)
    decays: tuple[float, ...] = setting((1e-3,), "Of --trials, weight decays", least=0)
    steps: tuple[int, ...] = setting((1000, 4000), "Of --trials, steps of training", least=1)
    batch_sizes: tuple[int, ...] = setting((40,), "Of --trials, examples per step", least=1)
    binarise: tuple[str, ...] = setting(("sample",), "Of --trials, how grey values become bits", choices=BINARISE)


def run(config: Config) -> str:
    """Measures, prints and returns the table."""
    table = trials(config) if config.trials else comparison(config)
    print(table)
    return table


def comparison(config: Config) -> str:
    """Accuracy on the test part and seconds of the fit, of RBM and regression, over the seeds."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(config.num_seeds):
        part = split(config, seed)
        for name, rbm in machines(config.hidden, seed).items():
            found.setdefault(name, []).append(measured(rbm, part))
    cells = [
        [
            name,
            *(
                cell(np.array(column), digits)
                for column, digits in zip(zip(*rows, strict=True), (3, 2, 2), strict=True)
            ),
        ]
        for name, rows in found.items()
    ]
    return markdown_table(["features", "accuracy", "RBM, seconds", "regression, seconds"], cells)


def machines(hidden: int, seed: int) -> dict[str, Any]:
    """What comes before the regression."""
    example = {"learning_rate": 0.06, "n_iter": 10, "random_state": seed}
    return {
        "grey values": "passthrough",
        "BernoulliRBM": BernoulliRBM(n_components=hidden, **example),
        "BoltzmannTransformer": BoltzmannTransformer(hidden, random_state=seed),
    }


def measured(rbm: Any, part: Split) -> tuple[float, float, float]:
    """Accuracy, and seconds of the machine and of the regression."""
    x_train, x_test, y_train, y_test = part
    scaler = MinMaxScaler(clip=True).fit(x_train)
    begun = time.perf_counter()
    features = make_pipeline(rbm).fit(scaler.transform(x_train))
    trained = time.perf_counter()
    regression = classifier(rbm).fit(features.transform(scaler.transform(x_train)), y_train)
    ended = time.perf_counter()
    accuracy = regression.score(features.transform(scaler.transform(x_test)), y_test)
    return accuracy, trained - begun, ended - trained


def classifier(rbm: Any) -> LogisticRegression:
    """With the example's penalties: of the grey values, and of the features."""
    return LogisticRegression(C=100.0 if rbm == "passthrough" else 6000.0, max_iter=2000)


def trials(config: Config) -> str:
    """Mean accuracy of each combination by 3-fold cross-validation."""
    x, _, y, _ = split(config, 0)
    cells = []
    for rule, rate, decay, steps, batch_size, binarise in itertools.product(
        config.rules, config.rates, config.decays, config.steps, config.batch_sizes, config.binarise
    ):
        passes = max(1, round(steps * batch_size / (len(x) * 2 / 3)))
        rbm = BoltzmannTransformer(
            config.hidden,
            rule=rule,
            learning_rate=rate,
            n_iter=passes,
            batch_size=batch_size,
            weight_decay=decay,
            binarise=binarise,
            random_state=0,
        )
        begun = time.perf_counter()
        scores = cross_val_score(make_pipeline(MinMaxScaler(clip=True), rbm, classifier(rbm)), x, y, cv=3)
        seconds = time.perf_counter() - begun
        cells.append([rule, rate, decay, batch_size, steps, passes, binarise, cell(scores, 4), f"{seconds:.1f}"])
        print(*cells[-1], flush=True)
    names = ["rule", "rate", "decay", "batch", "steps", "passes", "bits", "accuracy over 3 folds", "seconds"]
    return markdown_table(names, [[str(value) for value in row] for row in cells])


def split(config: Config, seed: int) -> Split:
    """Images and digits of the training and of the test part."""
    if config.dataset == "digits":
        x, y = load_digits(return_X_y=True)
        if config.shifted:
            x, y = np.concatenate(list(moved(x))), np.tile(y, 5)
        return train_test_split(x.astype(np.float32), y, test_size=0.2, random_state=seed)
    data = load_dataset("mnist", config.data_dir)
    digits, test_digits = data.train.labels, data.test.labels
    assert digits is not None
    assert test_digits is not None
    chosen = np.random.default_rng(seed).permutation(len(digits))[: config.images]
    return [data.train.examples[chosen], data.test.examples, digits[chosen], test_digits]


def moved(x: np.ndarray) -> Iterator[np.ndarray]:
    """The images, and their copies moved by a pixel up, left, right and down."""
    padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    for down, right in ((1, 1), (2, 1), (1, 2), (1, 0), (0, 1)):
        yield padded[:, down : down + 8, right : right + 8].reshape(x.shape)


if __name__ == "__main__":
    command.start(Config, run)
