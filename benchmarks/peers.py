"""What people would use instead, each with its own defaults where nothing else is said; all peers are optional."""

import importlib
import importlib.metadata
import types
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Case, MissingPeerError
from vpf_jax import BoltzmannMachine
from vpf_jax.app.keys import key_for
from vpf_jax.stack import Stack
from vpf_jax.units import BINARY, Categorical, Unit


def _peer(module: str, distribution: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingPeerError(f"{distribution} is not installed (pip install {distribution})") from None


class Sklearn:
    """scikit-learn's BernoulliRBM: PCD-1, plain gradient ascent."""

    def __init__(self, visible: np.ndarray, num_hidden: int, batch_size: int, learning_rate: float):
        neural_network = _peer("sklearn.neural_network", "scikit-learn")
        self._images = visible.astype(np.float32)
        self._rbm = neural_network.BernoulliRBM(
            num_hidden, learning_rate=learning_rate, batch_size=batch_size, n_iter=0, random_state=0
        )
        self.reset()

    def reset(self) -> None:
        from sklearn.utils import check_random_state

        # Without iterations `fit` draws the parameters and no more.
        self._rbm.fit(self._images)
        self._random = check_random_state(0)

    def epoch(self) -> None:
        """An iteration of `fit`, which itself begins anew at each call; `partial_fit` goes on, in double precision."""
        for start in range(0, len(self._images), self._rbm.batch_size):
            self._rbm._fit(self._images[start : start + self._rbm.batch_size], self._random)

    def stack(self) -> Stack:
        rbm = self._rbm
        return _stack(rbm.components_.T, rbm.intercept_visible_, rbm.intercept_hidden_)


class Rbms:
    """The package rbms: PCD with as many chains as a batch has examples, by centred gradients of norm 1, its own."""

    kind = ("rbms.bernoulli_bernoulli.classes", "BBRBM")

    def __init__(
        self,
        visible: np.ndarray,
        num_hidden: int,
        batch_size: int,
        learning_rate: float,
        steps: int = 1,
        seed: int = 0,
    ):
        self._torch = _peer("torch", "torch")
        with warnings.catch_warnings():
            # It compiles by what newer versions of torch would rather not.
            warnings.simplefilter("ignore", FutureWarning)
            module, name = self.kind
            self._kind = getattr(_peer(module, "rbms"), name)
            self._fit_batch = _peer("rbms.training.pcd", "rbms").fit_batch_pcd
        self._images = self._torch.from_numpy(visible.astype(np.float32))
        self._num_hidden, self._batch_size, self._learning_rate = num_hidden, batch_size, learning_rate
        self._steps, self._seed = steps, seed
        self.reset()

    def reset(self) -> None:
        torch = self._torch
        torch.manual_seed(self._seed)
        dataset = types.SimpleNamespace(data=self._images)
        self._rbm = self._kind.init_parameters(self._num_hidden, dataset, self._images.device, self._images.dtype)
        self._chains = self._rbm.init_chains(self._batch_size)
        for parameter in self._rbm.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer = torch.optim.SGD(self._rbm.parameters(), lr=self._learning_rate, maximize=True)

    def epoch(self) -> None:
        torch = self._torch
        weights = torch.ones(self._batch_size)
        with torch.no_grad():
            for rows in torch.randperm(len(self._images)).split(self._batch_size):
                batch = self._images[rows], weights[: len(rows)]
                self._optimizer.zero_grad(set_to_none=False)
                self._chains, _ = self._fit_batch(batch, self._chains, self._rbm, gibbs_steps=self._steps, beta=1.0)
                self._optimizer.step()
                self._after_step()

    def _after_step(self) -> None:
        """What its training does with the parameters of this kind."""

    def stack(self) -> Stack:
        return _stack(*(parameter.numpy() for parameter in self._rbm.parameters()))


class RbmsPotts(Rbms):
    """The categorical RBM of rbms, which takes codes; after each step in the zero-sum gauge, as its training does."""

    kind = ("rbms.potts_bernoulli.classes", "PBRBM")

    def _after_step(self) -> None:
        _peer("rbms.potts_bernoulli.utils", "rbms").ensure_zero_sum_gauge(self._rbm)

    def stack(self) -> Stack:
        return potts_stack(*(parameter.numpy() for parameter in self._rbm.parameters()))


class Port:
    """The released algorithm in PyTorch, VPF at the paper's settings."""

    def __init__(self, visible: np.ndarray, hidden: tuple[int, ...], intra: bool = False):
        torch = _peer("torch", "torch")
        self._images = torch.from_numpy(visible.astype(np.float32))
        self._sizes, self._intra = (visible.shape[1], *hidden), intra
        self.reset()

    def reset(self) -> None:
        from benchmarks.dense_port import DenseTraining

        self._training = DenseTraining(self._images, self._sizes, self._intra)

    def epoch(self) -> None:
        self._training.epoch()

    def stack(self) -> Stack:
        """Of an RBM."""
        (pair,) = self._training.pairs
        biases = pair.biases.detach().numpy()
        weights = pair.symmetric().detach().numpy()[: pair.num_lower, pair.num_lower :]
        return _stack(weights, biases[: pair.num_lower], biases[pair.num_lower :])


def potts_stack(weights: np.ndarray, visible_bias: np.ndarray, hidden_bias: np.ndarray) -> Stack:
    """Our RBM of the parameters of rbms' Potts-Bernoulli one: weights [n_0, q, n_1], visible biases [n_0, q]."""
    count, q, num_hidden = weights.shape
    units = Categorical(q), BINARY
    return _stack(weights.reshape(count * q, num_hidden), visible_bias.reshape(count * q), hidden_bias, units)


def _stack(
    weights: np.ndarray, visible_bias: np.ndarray, hidden_bias: np.ndarray, units: tuple[Unit, ...] = (BINARY, BINARY)
) -> Stack:
    """Our RBM of a peer's parameters, weights [n_0, n_1]; copies, as peers learn in place."""
    parameters = [jnp.array(parameter, jnp.float32) for parameter in (weights, visible_bias, hidden_bias)]
    biases = tuple(parameters[1:])
    return (BoltzmannMachine(biases=biases, weights=(parameters[0],), intra=(None, None), units=units),)


def sklearn_case(name: str, visible: np.ndarray, num_hidden: int, batch_size: int, against: tuple[str, ...]) -> Case:
    """An epoch of scikit-learn's BernoulliRBM: PCD-1."""
    return Case(name, lambda: Sklearn(visible, num_hidden, batch_size, 0.01).epoch, against=against)


def port_case(name: str, visible: np.ndarray, hidden: tuple[int, ...], intra: bool, against: tuple[str, ...]) -> Case:
    """An epoch of the released algorithm in PyTorch."""
    return Case(name, lambda: Port(visible, hidden, intra).epoch, against=against)


def rbms_case(name: str, visible: np.ndarray, num_hidden: int, batch_size: int, against: tuple[str, ...]) -> Case:
    """An epoch of rbms: PCD-1 with as many chains as a batch has examples."""
    return Case(name, lambda: Rbms(visible, num_hidden, batch_size, 0.01).epoch, against=against)


def thrml_case(
    name: str, sizes: tuple[int, int], num_chains: int, num_sweeps: int, full: tuple[int, int], against: tuple[str, ...]
) -> Case:
    """Block Gibbs sampling in thrml, on fewer chains and sweeps than `full` (chains, sweeps), scaled up to them."""

    def setup() -> Callable[[], object]:
        thrml = _peer("thrml", "thrml")
        from thrml.models import ising

        lower, upper = ([thrml.SpinNode() for _ in range(n)] for n in sizes)
        edges = [(a, b) for a in lower for b in upper]
        rng = np.random.default_rng(0)
        weights = jnp.asarray(rng.normal(size=len(edges)) / np.sqrt(len(edges)), jnp.float32)
        model = ising.IsingEBM([*lower, *upper], edges, jnp.zeros(sum(sizes)), weights, jnp.asarray(1.0))
        blocks = [thrml.Block(upper), thrml.Block(lower)]
        program = ising.IsingSamplingProgram(model, blocks, [])
        schedule = thrml.SamplingSchedule(n_warmup=num_sweeps, n_samples=1, steps_per_sample=1)
        states = [jnp.asarray(rng.integers(0, 2, (num_chains, len(block))), bool) for block in blocks]

        @jax.jit
        def sample(key: jax.Array, states: list[jax.Array]) -> object:
            keys = jax.random.split(key, num_chains)
            return jax.vmap(lambda k, s: thrml.sample_states(k, program, schedule, s, [], blocks))(keys, states)

        return lambda: jax.block_until_ready(sample(key_for(0, "chains of a peer"), states))

    work = num_chains * num_sweeps / (full[0] * full[1])
    note = f"timed on {num_chains} chains and {num_sweeps} sweeps, scaled"
    return Case(name, setup, flops=0, against=against, work=work, note=note)
