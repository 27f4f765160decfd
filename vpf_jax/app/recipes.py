"""Recipes: a model and how it is trained, from one seed or several at once, in a folder that is found again.

Trained machines are shared between scripts: each recipe's lie in a folder named after a digest of its settings, the
data and the seeds, so that a second script, or a second start, finds them. Not here: which recipes there are, what is
measured on trained machines.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

import vpf_jax
from vpf_jax import blocks, checks, sharding, train, units
from vpf_jax.app import devices, loop
from vpf_jax.app.folder import locked, write_json
from vpf_jax.app.keys import as_array, key_for
from vpf_jax.app.runs import Images, SeedsConfig, TrainingConfig, check_memory, keep_model
from vpf_jax.evaluate import monitor
from vpf_jax.models import NAME
from vpf_jax.settings import Settings, described, setting
from vpf_jax.units import BINARY, Unit

# Of what settings train to: another number where the same settings train to other bits. Settings at their defaults do
# not enter a folder's name, so that machines are found again by a version that knows more settings.
FORMAT = 2
# Of the backward weights at the start: the forward ones for good (symmetric machines), or, of directed machines, equal
# to the forward ones or drawn afresh.
BACKWARD_STARTS = ("tied", "equal", "drawn")
VISIBLE_BIASES = ("zero", "data")
# Training images on which the monitors of an epoch are measured.
NUM_WATCHED = 1000


@dataclasses.dataclass(frozen=True)
class Recipe(Settings):
    """A model and how it is trained."""

    title: str = setting("a recipe", "What tables call it")
    hidden: tuple[int, ...] = setting((196,), "Units of the hidden layers", least=1, distinct=False, fewest=0)
    phases: tuple[train.TrainConfig, ...] = (train.TrainConfig(),)
    """They follow one another with a fresh optimizer (`vpf_jax.train.start_phase`)."""
    intra: bool = setting(False, "Whether hidden layers have weights inside")
    visible_intra: bool = setting(False, "Whether the visible layer has weights inside; it is then one machine")
    joint: bool = setting(False, "Whether it is one deep machine and not a two-layer machine per pair of layers")
    backward_start: str = setting("tied", "Of the backward weights", choices=BACKWARD_STARTS)
    visible_biases: str = setting(
        "zero",
        "At the start: zero, or such that units without input have the means of the data. Real-valued units always "
        "start from means and variances: far from the precision of the data the first steps are lost, or overflow",
        choices=VISIBLE_BIASES,
    )
    hidden_units: str = setting(
        "binary", "What the units of the hidden layers are: binary, spin, normal, rectified, categorical(q) of q values"
    )

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          SettingError: a value outside its range, or an optimizer that no file can describe.
        """
        super().__post_init__()
        try:
            units.get(self.hidden_units)
        except checks.SettingError as error:
            raise checks.SettingError("hidden_units", self.hidden_units, error.allowed) from None
        for phase in self.phases:
            fits = isinstance(phase.optimizer, Settings)
            checks.require(
                fits, "optimizer", phase.optimizer, "settings such as train.Adam(), which name a run's folder"
            )

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def stack(self, key: PRNGKeyArray, num_visible: int, unit: Unit = BINARY) -> vpf_jax.Stack:
        """The machines before training, of so many entries of visible units of a kind."""
        key, backward_key = jax.random.split(key)
        hidden = units.get(self.hidden_units)
        sizes = (num_visible, *(number * hidden.width for number in self.hidden))
        kinds = (unit, *(hidden for _ in self.hidden))
        if self.joint or self.visible_intra or not self.hidden:
            intra = (*([0] if self.visible_intra else []), *(range(1, len(sizes)) if self.intra else ()))
            stack: vpf_jax.Stack = (vpf_jax.init_machine(key, sizes, intra, kinds),)
        else:
            stack = vpf_jax.init_stack(key, sizes, self.intra, kinds)
        if self.backward_start == "tied":
            return stack
        return vpf_jax.untie_stack(backward_key if self.backward_start == "drawn" else None, stack)

    def initial_state(
        self,
        seed: int | Array,
        num_visible: int,
        means: Array | None = None,
        variances: Array | None = None,
        unit: Unit = BINARY,
    ) -> train.TrainState:
        """The state before the first epoch.

        Args:
          seed: of the run.
          num_visible: entries of the visible units.
          means: of the training images; needed where visible biases start from them.
          variances: likewise, of real-valued units.
          unit: what the visible units are.

        Raises:
          ValueError: a rule that does not take the model, or no means where they are needed.
        """
        stack = self.stack(key_for(seed, "machines at the start"), num_visible, unit)
        if self.visible_biases == "data" or unit.own(num_visible) is not None:
            if means is None:
                raise checks.SettingError("means", means, "those of the data, from which visible biases start")
            stack = (vpf_jax.with_visible_means(stack[0], means, variances), *stack[1:])
        return train.init_state(key_for(seed, "training"), stack, self.phases[0])

    def initial_states(self, seeds: Sequence[int], num_visible: int, means: Array | None = None) -> train.TrainState:
        """`initial_state` of each seed, along a leading axis."""
        return jax.vmap(lambda seed: self.initial_state(seed, num_visible, means))(as_array(seeds))

    def run(
        self,
        folder: Path,
        state: train.TrainState,
        visible: train.AnyExamples | blocks.Source,
        at_once: int | None = None,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> loop.Trained:
        """`loop.train` of the recipe, from a state of one seed, or of several along a leading axis.

        Args:
          folder: where its checkpoints lie.
          state: before the first epoch; donated.
          visible: the training examples, zeros and ones, or `vpf_jax.Examples`; or, of one seed, what they are read
            from while others are learnt.
          at_once: of several seeds, those in one batched computation; None: all.
          mesh: of the devices that train; None: one.
          options: of `loop.train`.
        """
        several = bool(state.epoch.ndim)

        def place(state: Any) -> Any:
            return state if mesh is None else sharding.shard(state, mesh, several)

        if isinstance(visible, blocks.Source):
            phases = [_streamed_phase(config, visible) for config in self.phases]
        else:
            placed = visible if mesh is None else sharding.shard(visible, mesh)
            phases = [_phase(config, placed, at_once) for config in self.phases]
        return loop.train(folder, state, phases, place=place, **options)


class Seeds(NamedTuple):
    """Machines of a recipe, trained from several seeds."""

    recipe: Recipe
    seeds: tuple[int, ...]
    stacks: vpf_jax.Stack
    """Arrays with a leading axis of seeds."""
    seconds: float
    """Of training per seed, without compilation."""
    curves: dict[str, np.ndarray]
    """Monitors after each epoch, [epochs, num_seeds] each."""

    def stack(self, index: int) -> vpf_jax.Stack:
        """The machines of one seed."""
        return jax.tree.map(lambda leaf: leaf[index], self.stacks)

    @property
    def initial_stacks(self) -> vpf_jax.Stack:
        """Before training, drawn again; visible biases that started from the data are 0 here."""
        num_visible = self.stacks[0].biases[0].shape[-1]
        return self.recipe.initial_states(self.seeds, num_visible, jnp.full(num_visible, 0.5)).stack

    def alignment(self) -> np.ndarray:
        """Of two-layer machines, the cosine between forward and backward weights at the start and after each epoch.

        [epochs + 1, num_seeds]; those of symmetric weights are 1.
        """
        if self.recipe.backward_start == "tied":
            return np.ones((self.recipe.epochs + 1, len(self.seeds)))
        first = jax.vmap(lambda stack: monitor.alignment(stack[0])[0])(self.initial_stacks)
        return np.concatenate([np.asarray(first)[None], self.curves["alignment"]])


class Workshop(NamedTuple):
    """Where and how the recipes of a script are trained."""

    folder: Path
    """Of all recipes' trained machines."""
    images: Images
    seeds: tuple[int, ...]
    at_once: int
    """Runs in one batched computation."""
    checkpoint_every: int
    mesh: Mesh | None = None
    """Of the devices that train."""

    def run(self, recipe: Recipe, stops: Sequence[int]) -> Seeds:
        """Trains a recipe from all seeds, or goes on where an earlier start left off, or finds it finished.

        Raises:
          vpf_jax.app.folder.Stopped: a signal has arrived; a checkpoint is saved.
          vpf_jax.app.folder.UsageError: another process trains the recipe.
          vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged.
          vpf_jax.train.NonFiniteObjectiveError: training has overflowed in one of the runs; the last good checkpoint
            stays.
        """
        data = self.images.described | {"seeds": list(self.seeds)}
        settings, telling = described(recipe) | data, described(recipe, changed=True) | data
        own = self.folder / folder_name(recipe.title, telling)
        with locked(own, loop.WAIT):
            write_json(own / "recipe.json", settings)
            trained = recipe.run(
                own,
                recipe.initial_states(self.seeds, self.images.num_visible, self.images.train.means),
                self.images.train.visible,
                self.at_once,
                self.mesh,
                checkpoint_every=self.checkpoint_every,
                stops=stops,
                measure=self._watch,
                told=_told_of_seeds,
                name=recipe.title,
            )
            stacks = train.learnt(trained.state)
            self._keep_models(own, recipe, settings, stacks)
        seconds = trained.seconds / len(self.seeds)
        print(f"{recipe.title}: {seconds:.1f} s of training per seed", flush=True)
        curves = {name: np.array(trained.column(name)[1]) for name in trained.rows[-1] if name != "epoch"}
        return Seeds(recipe, self.seeds, stacks, seconds, curves)

    def _keep_models(self, folder: Path, recipe: Recipe, settings: dict[str, Any], stacks: vpf_jax.Stack) -> None:
        """One file per seed, where it is not there."""
        about = {"rule": recipe.phases[-1].rule.name, "settings": settings, "data": self.images.about}
        for index, seed in enumerate(self.seeds):
            name = f"model-{seed}.safetensors" if len(self.seeds) > 1 else NAME
            if not (folder / name).exists():
                keep_model(
                    folder, jax.tree.map(lambda leaf, index=index: leaf[index], stacks), about | {"seed": seed}, name
                )

    def _watch(self, states: train.TrainState, epoch: int) -> dict[str, Array]:
        return _watch_seeds(as_array(self.seeds), epoch, train.learnt(states), self.images.train.bits[:NUM_WATCHED])

    def check(self, recipe: Recipe, name: str = "hidden") -> None:
        """Raises SettingError, for a setting of this name, where the recipe's machines do not fit into memory."""
        check_recipe(recipe, self.images.num_visible, len(self.seeds), name)


@dataclasses.dataclass(frozen=True)
class RecipesConfig(SeedsConfig, TrainingConfig, devices.MeshSettings):
    """What the scripts that train recipes share; each setting is a flag."""

    takes: ClassVar[Collection[str]] = ("weights", "drawn")

    seeds_at_once: int = setting(
        0, "Runs trained in one batched computation (jax.vmap), the others after them; 0 for all", least=0
    )
    models: str | None = setting(
        None, "Folder of trained machines, shared between experiments; left out: models/ in that of the run"
    )

    def workshop(self) -> Workshop:
        """Where recipes are trained, with the data.

        Raises:
          SettingError: a folder that cannot be one.
          vpf_jax.data.DatasetError: data that cannot be read.
        """
        folder = Path(self.models or self.folder / "models")
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if self.models and not there.is_dir():
            raise checks.SettingError("models", self.models, f"a folder, which may be missing; {there} is a file")
        at_once = self.seeds_at_once or self.num_seeds
        mesh = self.devices(seeds=self.num_seeds)
        return Workshop(folder, self.images(), self.seeds, at_once, self.checkpoint_every, mesh)


def check_recipe(
    recipe: Recipe, num_visible: int, num_seeds: int = 1, name: str = "hidden", unit: Unit = BINARY
) -> None:
    """Refuses machines that their rule does not take (ValueError), or that do not fit into memory (SettingError)."""

    def needed() -> Any:
        state = recipe.initial_state(0, num_visible, jnp.full(num_visible, 0.5), unit=unit)
        # An epoch holds a gradient and an update, too.
        return [state.stack, state.optimizer, state.stack, state.stack]

    check_memory(name, recipe.hidden, needed, num_seeds)


def folder_name(title: str, settings: dict[str, Any]) -> str:
    """Of what is trained: readable, and different for different settings."""
    digest = hashlib.sha256(json.dumps(settings | {"format": FORMAT}, sort_keys=True).encode()).hexdigest()[:10]
    return f"{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}-{digest}"


@jax.jit
def watch(seed: Array, epoch: int | Array, stack: vpf_jax.Stack, visible: Array) -> dict[str, Array]:
    """What is watched of a stack after an epoch."""
    return monitor.watch(key_for(seed, "watching", epoch), stack, visible)


_watch_seeds = jax.jit(jax.vmap(watch, in_axes=(0, None, 0, None)))


def told_of_flow(row: loop.Row) -> str:
    """What is reported of an epoch."""
    score = f", Parzen {row['parzen_validation']:.1f}" if "parzen_validation" in row else ""
    return f"objective {row['objective']:.2f}, max |w| {row['max_abs_weight']:.2f}{score}"


def _told_of_seeds(row: loop.Row) -> str:
    return told_of_flow({"objective": np.mean(row["objective"]), "max_abs_weight": np.max(row["max_abs_weight"])})


def _phase(config: train.TrainConfig, visible: train.AnyExamples, at_once: int | None) -> loop.Phase:
    """Epochs of probability flow, or another rule."""

    def prepare(state: train.TrainState) -> loop.RunEpoch:
        several = bool(state.epoch.ndim)
        run_epoch = train.compile_epoch(state, visible, config, at_once if several else None)
        largest = np.ravel(_mapped(train.largest_weight, several)(state.stack))

        def run(state: train.TrainState, epoch: int) -> tuple[train.TrainState, loop.Row]:
            nonlocal largest
            state, metrics = run_epoch(state, visible)
            largest, before = np.ravel(metrics.max_abs_weight), largest
            for i, last in enumerate(before):
                train.check_finite(jax.tree.map(lambda leaf, i=i: leaf.ravel()[i], metrics), epoch, float(last))
            return state, {"objective": metrics.objective, "max_abs_weight": metrics.max_abs_weight}

        return run

    def start(state: train.TrainState) -> train.TrainState:
        begin = jax.jit(lambda state: train.start_phase(state, visible, config))
        return _mapped(begin, bool(state.epoch.ndim))(state)

    return loop.Phase(config.epochs, prepare, start)


def _streamed_phase(config: train.TrainConfig, source: blocks.Source) -> loop.Phase:
    """The same on examples that are read while others are learnt."""

    def prepare(state: train.TrainState | blocks.OpenEpoch) -> loop.RunEpoch:
        stack = state.began if isinstance(state, blocks.OpenEpoch) else state.stack
        largest = float(train.largest_weight(stack))

        def run(
            begun: train.TrainState | blocks.OpenEpoch, epoch: int, keep: Callable[[Any], None]
        ) -> tuple[train.TrainState, loop.Row]:
            nonlocal largest
            if isinstance(begun, train.TrainState):
                begun = blocks.open_epoch(begun, config)
            for going_on in blocks.train_blocks(begun, source, config=config):
                begun = going_on
                keep(begun)
            state, metrics = blocks.close_epoch(begun, len(source))
            train.check_finite(metrics, epoch, largest)
            largest = float(metrics.max_abs_weight)
            return state, {"objective": metrics.objective, "max_abs_weight": metrics.max_abs_weight}

        return run

    def start(state: train.TrainState) -> train.TrainState:
        return blocks.start_phase_from(state, source, config=config)

    return loop.Phase(config.epochs, prepare, start, functools.partial(blocks.open_epoch, config=config))


def _mapped(function: Any, several: bool) -> Any:
    return jax.vmap(function) if several else function
