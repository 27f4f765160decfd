"""What people would use instead, each with its own defaults where nothing else is said; all peers are optional."""

import importlib
import importlib.metadata
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Case, MissingPeerError
from vpf_jax.app.keys import key_for


def _peer(module: str, distribution: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingPeerError(f"{distribution} is not installed (pip install {distribution})") from None


def sklearn_case(name: str, visible: np.ndarray, num_hidden: int, batch_size: int, against: tuple[str, ...]) -> Case:
    """An epoch of scikit-learn's BernoulliRBM: PCD-1."""

    def setup() -> Callable[[], object]:
        neural_network = _peer("sklearn.neural_network", "scikit-learn")
        images = visible.astype(np.float32)

        def run() -> object:
            rbm = neural_network.BernoulliRBM(
                num_hidden, learning_rate=0.01, batch_size=batch_size, n_iter=1, random_state=0
            )
            return rbm.fit(images)

        return run

    return Case(name, setup, flops=0, against=against)


def port_case(name: str, visible: np.ndarray, hidden: tuple[int, ...], intra: bool, against: tuple[str, ...]) -> Case:
    """An epoch of the released algorithm in PyTorch."""

    def setup() -> Callable[[], object]:
        torch = _peer("torch", "torch")
        from benchmarks.dense_port import DenseTraining

        images = torch.from_numpy(visible.astype(np.float32))
        return DenseTraining(images, (visible.shape[1], *hidden), intra).epoch

    return Case(name, setup, against=against)


def rbms_case(name: str, visible: np.ndarray, num_hidden: int, batch_size: int, against: tuple[str, ...]) -> Case:
    """An epoch of rbms: PCD-1 with as many chains as a batch has examples."""

    def setup() -> Callable[[], object]:
        torch = _peer("torch", "torch")
        _peer("rbms", "rbms")
        from rbms.bernoulli_bernoulli.classes import BBRBM
        from rbms.training.pcd import fit_batch_pcd

        images = torch.from_numpy(visible.astype(np.float32))
        num_visible = images.shape[1]
        rbm = BBRBM(0.01 * torch.randn(num_visible, num_hidden), torch.zeros(num_visible), torch.zeros(num_hidden))
        chains = rbm.init_chains(batch_size)
        for parameter in rbm.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.01, maximize=True)
        weights = torch.ones(batch_size)

        @torch.no_grad()
        def run() -> None:
            nonlocal chains
            for rows in torch.randperm(len(images)).split(batch_size):
                batch = images[rows], weights[: len(rows)]
                optimizer.zero_grad(set_to_none=False)
                chains, _ = fit_batch_pcd(batch, chains, rbm, gibbs_steps=1, beta=1.0)
                optimizer.step()

        return run

    return Case(name, setup, against=against)


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
