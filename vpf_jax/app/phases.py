"""Training through one phase or more, resumed from the newest sound checkpoint.

Phases follow one another with a fresh optimizer (`vpf_jax.train.start_phase`). The checkpoints of the first lie in
checkpoints/, those of the n-th in checkpoints-n/. Not here: what is measured after an epoch, and what is reported.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from vpf_jax import checkpoint, train


class PhasedRun:
    """A run of one seed, or of several along a leading axis of the state's arrays."""

    def __init__(
        self,
        folder: Path,
        state: train.TrainState,
        visible: jax.Array,
        phases: Sequence[train.TrainConfig],
        *,
        checkpoint_every: int,
        at_once: int | None = None,
    ) -> None:
        """Goes to where the checkpoints of an earlier start end.

        Args:
          folder: where the folders of checkpoints lie.
          state: before the first epoch.
          visible: the training images, zeros and ones.
          phases: settings of the phases.
          checkpoint_every: epochs between checkpoints; the end of a phase has one too.
          at_once: of several seeds, those in one batched computation; None: all.

        Raises:
          vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged, or one is of something else or of an epoch
            beyond its phase.
        """
        self.state = state
        self.epoch = 0
        """Finished epochs."""
        self.saved = 0
        """Epoch of the newest checkpoint."""
        self.info: dict[str, Any] = {"train_seconds": 0.0}
        """Saved with every checkpoint: seconds spent in epochs, without compilation, and what the caller adds."""
        self._folder, self._visible, self._phases = folder, visible, phases
        self._every, self._at_once = checkpoint_every, at_once
        self._phase = 0
        self._restore()

    def epochs(self, stops: Sequence[int]) -> Iterator[tuple[int, train.Metrics]]:
        """Runs the epochs that are left, giving the number and metrics of each as it ends.

        Once the caller is done with an epoch it is saved where that is due; where a signal is in `stops` it is saved
        in any case, and no other epoch is run. A caller that raises leaves the last checkpoint as it is.
        """
        run_epoch = None
        while not stops:
            if self.epoch == self._end():
                if self._phase + 1 == len(self._phases):
                    return
                self._start_next_phase()
                run_epoch = None
            if run_epoch is None:
                run_epoch = train.compile_epoch(self.state, self._visible, self._phases[self._phase], self._at_once)
                # Compiling takes long, and a signal may have arrived meanwhile.
                continue
            started = time.perf_counter()
            self.state, measured = run_epoch(self.state, self._visible)
            jax.block_until_ready(measured)
            self.info["train_seconds"] += time.perf_counter() - started
            self.epoch += 1
            yield self.epoch, measured
            if self.epoch % self._every == 0 or self.epoch == self._end() or stops:
                checkpoint.save_checkpoint(self._checkpoints(), self.epoch, _stored(self.state), self.info)
                self.saved = self.epoch

    def _restore(self) -> None:
        """Goes to the newest sound checkpoint of the last phase that has one."""
        damage = None
        for number in reversed(range(len(self._phases))):
            self._phase = number
            try:
                found = checkpoint.restore_checkpoint(self._checkpoints(), _stored(self._first_state()))
            except checkpoint.CheckpointMismatchError:
                raise
            except checkpoint.CheckpointError as error:
                # The phase can be trained again from the end of the one before it.
                damage = damage or error
                continue
            if found is None:
                continue
            self.epoch, stored, self.info = found
            if self.epoch > self._end():
                raise checkpoint.CheckpointError(
                    f"{self._checkpoints() / str(self.epoch)} is of an epoch beyond the {self._end()} of this run; "
                    "remove it to go on from the one before it"
                )
            self.state = dataclasses.replace(self.state, **stored)
            self.saved = self.epoch
            if damage is not None:
                logging.getLogger(__name__).warning(
                    "%s: trained again from the end of epoch %s", self._folder, self.epoch
                )
            return
        if damage is not None:
            raise damage

    def _first_state(self) -> train.TrainState:
        """The structure of the phase's states."""
        if self._phase == 0:
            return self.state
        return jax.eval_shape(self._started, self.state)

    def _started(self, state: train.TrainState) -> train.TrainState:
        """The state from which the phase goes on."""
        phase, visible = self._phases[self._phase], self._visible
        start = jax.jit(lambda state: train.start_phase(state, visible, phase))
        return jax.vmap(start)(state) if state.epoch.ndim else start(state)

    def _end(self) -> int:
        return sum(phase.epochs for phase in self._phases[: self._phase + 1])

    def _checkpoints(self) -> Path:
        return self._folder / ("checkpoints" if self._phase == 0 else f"checkpoints-{self._phase + 1}")

    def _start_next_phase(self) -> None:
        self._phase += 1
        self.state = self._started(self.state)


def _stored(state: train.TrainState) -> dict[str, Any]:
    """What a checkpoint holds: without chains, where there are none, the same as before version 0.3 knew of them."""
    stored = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return stored if state.chains else {name: value for name, value in stored.items() if name != "chains"}
