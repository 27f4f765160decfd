"""Target propagation: inference and learning by hand in float64, sampling, in-painting, the script at quick settings.

Statistical tests have fixed keys and compare within four standard errors of the draws.
"""

import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import oracles
import pytest
from families import assert_close, in_float64
from programs import FEW, quick_flags, start_here
from typed import refused

from experiments import mnist_target as script
from vpf_jax.app.runs import Images
from vpf_jax.checks import SettingError
from vpf_jax.data import load_dataset
from vpf_jax.related import target_propagation as tp

SIZES = 5, 4, 3
ACTIVATIONS = tp.Parameters("softplus", "sigmoid", "sigmoid", "softplus")


def random_parameters(seed=0, sizes=SIZES):
    """Weights and biases of order 1, float64 where that is enabled."""
    rng = np.random.default_rng(seed)
    shapes = [(0, 1), (1, 2), (1, 0), (2, 1)]
    return tp.Parameters(
        *(
            tp.Affine(jnp.asarray(rng.normal(size=(sizes[i], sizes[j]))), jnp.asarray(rng.normal(size=sizes[j])))
            for i, j in shapes
        )
    )


def random_images(batch=6, seed=1, n_0=SIZES[0]):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(batch, n_0)))


def random_states(batch=6, seed=2):
    rng = np.random.default_rng(seed)
    hidden = tp.HiddenLayers(
        jnp.asarray(rng.normal(size=(batch, SIZES[1]))), jnp.asarray(rng.uniform(size=(batch, SIZES[2])))
    )
    inputs = tp.Inputs(*(jnp.asarray(rng.normal(size=(batch, SIZES[layer]))) for layer in (0, 1, 1, 2)))
    return inputs, hidden


def numpy_maps(parameters):
    """The four maps of vectors in NumPy."""
    functions = {"softplus": lambda z: np.logaddexp(z, 0), "sigmoid": lambda z: 1 / (1 + np.exp(-z))}

    def made(affine, name):
        weights, biases = (np.asarray(part, np.float64) for part in affine)
        return lambda inputs: functions[name](inputs @ weights + biases)

    return [made(affine, name) for affine, name in zip(parameters, ACTIVATIONS, strict=True)]


def linear_maps(seed=0, sizes=SIZES):
    """Linear f and g, f the transpose of g; and g's matrices and offsets."""
    rng = np.random.default_rng(seed)
    pairs = []
    for below, above in ((sizes[0], sizes[1]), (sizes[1], sizes[2])):
        pairs.append((rng.normal(size=(below, above)), rng.normal(size=above), rng.normal(size=below)))
    (w1, b1, c1), (w2, b2, c2) = pairs
    maps = tp.Maps(
        f1=lambda x: x @ w1 + b1,
        f2=lambda h1: h1 @ w2 + b2,
        g1=lambda h1: h1 @ w1.T + c1,
        g2=lambda h2: h2 @ w2.T + c2,
    )
    return maps, ((w1, c1), (w2, c2))


def slope(function, point):
    """Central differences; exact for quadratic functions but for rounding."""
    steps = np.eye(len(point))
    return np.array([(function(point + step) - function(point - step)) / 2 for step in steps])


@in_float64
def test_linear_maps_go_along_the_gradient_of_the_log_likelihood():
    maps, decoders = linear_maps()
    rng = np.random.default_rng(3)
    x, h1, h2 = (rng.normal(size=n) for n in SIZES)
    rate = 0.07
    moved = tp.inference_step(
        maps, jnp.asarray(x), tp.HiddenLayers(jnp.asarray(h1), jnp.asarray(h2)), tp.Inference(1, rate, 0)
    )
    for below, above, found, (w, c) in ((x, h1, moved.h1, decoders[0]), (h1, h2, moved.h2, decoders[1])):
        log_likelihood = lambda h, below=below, w=w, c=c: -np.sum((below - h @ w.T - c) ** 2) / 2  # noqa: E731
        assert_close((np.asarray(found) - above) / rate, slope(log_likelihood, above), 1e-9)
    # The pull of the layer above is the gradient of its Gaussian, of variance rate / top_down in those units.
    inference = tp.Inference(1, rate, 0.02)
    pulled = tp.inference_step(maps, jnp.asarray(x), tp.HiddenLayers(jnp.asarray(h1), jnp.asarray(h2)), inference)
    (w1, c1), (w2, c2) = decoders

    def log_density(h):
        from_above = np.asarray(pulled.h2) @ w2.T + c2
        return -np.sum((x - h @ w1.T - c1) ** 2) / 2 - np.sum((h - from_above) ** 2) / (2 * inference.h1_variance)

    assert_close((np.asarray(pulled.h1) - h1) / rate, slope(log_density, h1), 1e-9)
    assert tp.Inference(top_down=0).h1_variance == np.inf


@in_float64
def test_an_encoder_that_inverts_the_decoder_leaves_h1_where_it_is():
    rng = np.random.default_rng(0)
    matrix, offset = rng.normal(size=(4, 4)), rng.normal(size=4)
    other, _ = linear_maps(1, (4, 4, 3))
    maps = tp.Maps(
        f1=lambda x: jnp.linalg.solve(matrix.T, x - offset), f2=other.f2, g1=lambda h: h @ matrix + offset, g2=other.g2
    )
    x = jnp.asarray(rng.normal(size=4))
    held = tp.infer_single(maps, x, tp.Inference(15, 0.1, 0))
    assert_close(held.h1, np.linalg.solve(matrix.T, np.asarray(x) - offset), 1e-12)
    # The layer above has moved in the meantime, and pulls where it may.
    assert np.abs(held.h2 - maps.f2(maps.f1(x))).max() > 0.1
    assert np.abs(tp.infer_single(maps, x, tp.Inference(15, 0.1, 0.01)).h1 - held.h1).max() > 0.01


@in_float64
@pytest.mark.parametrize("inference", [tp.LEARNING, tp.Inference(3, 0.2, 0.3), tp.Inference(0)], ids=str)
def test_inference_follows_its_formula(inference):
    parameters, images = random_parameters(), random_images()
    hidden = tp.infer(parameters, images, inference)
    for row, x in enumerate(np.asarray(images)):
        states = oracles.target_propagation_inference(
            numpy_maps(parameters), x, inference.num_steps, inference.rate, inference.top_down
        )
        assert_close(hidden.h1[row], states[-1][0], 1e-12)
        assert_close(hidden.h2[row], states[-1][1], 1e-12)


@pytest.mark.slow
@in_float64
def test_the_local_gradients_by_hand():
    parameters, images = random_parameters(), random_images()
    inputs, hidden = random_states()
    losses, gradients = tp.layer_gradients(parameters, inputs, images, hidden)
    targets = hidden.h1, hidden.h2, images, hidden.h1
    for affine, seen, target, activation, loss, gradient in zip(
        parameters, inputs, targets, ACTIVATIONS, losses, gradients, strict=True
    ):
        arrays = (np.asarray(a) for a in (*affine, seen, target))
        value, by_weight, by_bias = oracles.squared_error_gradient(activation, *arrays)
        assert_close(loss, value, 1e-12)
        assert_close(gradient.weights, by_weight, 1e-12)
        assert_close(gradient.biases, by_bias, 1e-12)


@pytest.mark.slow
@in_float64
def test_without_noise_learning_is_the_sum_of_spike_timing_changes():
    parameters, images = random_parameters(), random_images(batch=1)
    x = np.asarray(images[0])
    states = oracles.target_propagation_inference(numpy_maps(parameters), x, 15, 0.1, 0.001)
    hidden = tp.infer(parameters, images)
    inputs = tp.Inputs(f1=images, f2=hidden.h1, g1=hidden.h1, g2=hidden.h2)
    gradient = tp.layer_gradients(parameters, inputs, images, hidden)[1].f1
    change = oracles.stdp_change(x, np.array([h1 for h1, _ in states]))
    firing = 1 / (1 + np.exp(-(x @ np.asarray(parameters.f1.weights) + np.asarray(parameters.f1.biases))))
    assert_close(gradient.weights, -2 * change * firing[None], 1e-10)


@in_float64
def test_each_loss_reaches_its_own_map_alone():
    parameters, images = random_parameters(), random_images()
    inputs, hidden = random_states()
    losses, gradients = tp.layer_gradients(parameters, inputs, images, hidden)
    for name in tp.Parameters._fields:
        other = parameters._replace(**{name: getattr(random_parameters(seed=9), name)})
        other_losses, other_gradients = tp.layer_gradients(other, inputs, images, hidden)
        for map_name in tp.Parameters._fields:
            same = bool(
                jnp.array_equal(getattr(gradients, map_name).weights, getattr(other_gradients, map_name).weights)
            )
            assert same == (map_name != name)
            assert (getattr(losses, map_name) == getattr(other_losses, map_name)) == (map_name != name)


@in_float64
def test_the_optimizer_is_centred_rmsprop_with_the_stabiliser_under_the_root():
    rng = np.random.default_rng(0)
    # Of very different sizes: the stabiliser decides the small ones.
    gradients = [np.array([1, 1e-2, 1e-4]) * (rng.normal(size=3) + 0.5) for _ in range(20)]
    config = tp.TargetConfig()
    expected = oracles.centred_rmsprop(
        gradients, config.learning_rate, config.decay, config.momentum, config.stabiliser
    )
    optimizer = tp._optimizer(config)
    state = optimizer.init(jnp.zeros(3))
    for gradient, change in zip(gradients, expected, strict=True):
        update, state = optimizer.update(jnp.asarray(gradient), state)
        assert_close(update, change, 1e-10)


@pytest.mark.slow
@in_float64
def test_an_epoch_of_one_minibatch_is_one_step_by_hand():
    # Inputs of the top layer so large that its rates are 0 or 1: their Bernoulli samples are no matter of chance.
    parameters = random_parameters()
    sharp = tp.Affine(jnp.zeros((SIZES[1], SIZES[2])), jnp.array([80.0, -80.0, 80.0]))
    parameters = parameters._replace(f2=sharp)
    images = random_images()
    config = tp.TargetConfig(batch_size=6, feedback_noise=0, forward_noise=0, learning_rate=1e-3)
    state = tp.init_state(jax.random.key(0), SIZES, config).replace(parameters=jax.tree.map(jnp.copy, parameters))
    state, losses = tp.train_epoch(state, images, config=config)
    assert int(state.epoch) == 1

    final = [oracles.target_propagation_inference(numpy_maps(parameters), x, 15, 0.1, 0.001)[-1] for x in images]
    h1, h2 = (np.array(layer) for layer in zip(*final, strict=True))
    seen_and_wanted = (images, h1), (h1, h2), (h1, images), (h2, h1)
    for affine, learnt, activation, loss, (seen, wanted) in zip(
        parameters, state.parameters, ACTIVATIONS, losses, seen_and_wanted, strict=True
    ):
        arrays = (np.asarray(a) for a in (*affine, seen, wanted))
        value, *by_hand = oracles.squared_error_gradient(activation, *arrays)
        assert_close(loss, value, 1e-9)
        for before, after, gradient in zip(affine, learnt, by_hand, strict=True):
            (change,) = oracles.centred_rmsprop([gradient], 1e-3, 0.95, 0.9, 1e-4)
            assert_close(after - before, change, 1e-9)


@pytest.mark.slow
def test_an_epoch_uses_every_example_once_in_a_fresh_order():
    images = random_images(batch=20).astype(jnp.float32)
    config = tp.TargetConfig(batch_size=5, feedback_noise=0, forward_noise=0, learning_rate=1e-12)
    state = tp.init_state(jax.random.key(0), SIZES, config)
    # At a learning rate of nearly 0 the mean over the minibatches is that over the images, whatever the order.
    hidden = tp.infer(state.parameters, images)
    inputs = tp.Inputs(f1=images, f2=hidden.h1, g1=hidden.h1, g2=hidden.h2)
    expected = tp.layer_losses(state.parameters, inputs, images, hidden)
    state, first = tp.train_epoch(state, images, config=config)
    state, second = tp.train_epoch(state, images, config=config)
    for losses in (first, second):
        np.testing.assert_allclose(losses[:3], expected[:3], rtol=1e-5)
    # The Bernoulli samples are drawn anew.
    assert first.g2 != second.g2


def test_corruption_has_the_stated_noise():
    n = 20_000
    hidden = tp.HiddenLayers(jnp.full((n, 1), 2.0), jnp.tile(jnp.array([[0.3, -0.5, 1.5]]), (n, 1)))
    inputs = tp.corrupt(jax.random.key(0), jnp.full((n, 1), 0.5), hidden, tp.TargetConfig())
    noise = {}
    for name, mean, deviation in (("f1", 0.5, 0.5), ("f2", 2, 0.5), ("g1", 2, 0.3)):
        noise[name] = np.asarray(getattr(inputs, name), np.float64)[:, 0] - mean
        assert abs(noise[name].mean()) < 4 * deviation / np.sqrt(n)
        # The variance of n squares of normals is 2 / n.
        assert abs(noise[name].var() / deviation**2 - 1) < 4 * np.sqrt(2 / n)
    for one, other in (("f1", "f2"), ("f1", "g1"), ("f2", "g1")):
        assert abs(np.corrcoef(noise[one], noise[other])[0, 1]) < 4 / np.sqrt(n)
    seen = np.asarray(inputs.g2, np.float64)
    # Clipped to [0, 1].
    assert (seen[:, 1] == 0).all()
    assert (seen[:, 2] == 1).all()
    expected = np.array([0.7**3, 3 * 0.3 * 0.7**2, 3 * 0.3**2 * 0.7, 0.3**3])
    counts = np.bincount(np.rint(3 * seen[:, 0]).astype(int), minlength=4)
    assert (np.abs(counts - n * expected) < 4 * np.sqrt(n * expected * (1 - expected))).all()


@in_float64
def test_the_joint_density_by_enumeration():
    parameters = random_parameters()
    rng = np.random.default_rng(4)
    h1, h2, mean = rng.normal(size=SIZES[1]), rng.normal(size=SIZES[2]), rng.normal(size=SIZES[2])
    prior = tp.Prior(jnp.asarray(mean), jnp.array([0.5, 1.0, 2.0]), jnp.asarray(0.3))
    hidden = tp.HiddenLayers(jnp.asarray(h1), jnp.asarray(h2))
    maps = numpy_maps(parameters)
    # A grey image: mean over all images of bits that are 1 with its grey values as probabilities.
    bits, grey = oracles.all_states(SIZES[0]), rng.uniform(size=SIZES[0])
    weights = np.array([np.exp(oracles.bernoulli_log_probability(grey, row)) for row in bits])
    logs = np.array([oracles.bernoulli_log_probability(maps[2](h1), row) for row in bits])
    found = tp.log_joint(parameters, prior, jnp.asarray(grey), hidden)
    assert_close(found.visible, weights @ logs, 1e-12)
    np.testing.assert_allclose(weights.sum(), 1)
    for row, expected in zip(bits, logs, strict=True):
        assert_close(tp.log_joint(parameters, prior, jnp.asarray(row), hidden).visible, expected, 1e-12)
    assert_close(found.h1, oracles.normal_log_density(h1, maps[3](h2), np.full(SIZES[1], 0.3)), 1e-12)
    assert_close(found.h2, oracles.normal_log_density(h2, mean, np.array([0.5, 1.0, 2.0])), 1e-12)
    assert_close(found.total, float(found.visible + found.h1 + found.h2), 1e-12)


@pytest.mark.slow
@in_float64
def test_the_curve_has_the_joint_density_of_every_step():
    parameters, images = random_parameters(), random_images()
    prior = tp.fit_prior(parameters, images)
    curve = tp.log_joint_curve(parameters, prior, images, tp.Inference(num_steps=4))
    assert curve.total.shape == (6, 5)
    for row, x in enumerate(np.asarray(images)):
        states = oracles.target_propagation_inference(numpy_maps(parameters), x, 4, 0.1, 0.001)
        for step, (h1, h2) in enumerate(states):
            hidden = tp.HiddenLayers(jnp.asarray(h1), jnp.asarray(h2))
            expected = tp.log_joint(parameters, prior, images[row], hidden)
            for name in tp.LogJoint._fields:
                assert_close(getattr(curve, name)[row, step], getattr(expected, name), 1e-9)


@in_float64
def test_the_prior_has_the_moments_of_the_inferred_states():
    parameters, images = random_parameters(), random_images(batch=9)
    prior = tp.fit_prior(parameters, images)
    maps = numpy_maps(parameters)
    final = [oracles.target_propagation_inference(maps, x, 15, 0.1, 0.001)[-1] for x in np.asarray(images)]
    h1, h2 = (np.array(layer) for layer in zip(*final, strict=True))
    assert_close(prior.mean, h2.mean(axis=0), 1e-12)
    assert_close(prior.variance, h2.var(axis=0), 1e-10)
    assert_close(prior.h1_variance, np.mean((h1 - maps[3](h2)) ** 2), 1e-12)
    assert_close(tp.widen(prior, 3).variance, 9 * h2.var(axis=0), 1e-10)


def test_the_variance_of_a_nearly_constant_unit_is_not_negative():
    rng = np.random.default_rng(0)
    # Many units, of different means: which of them come out negative is a matter of rounding.
    deviations = np.repeat([0, 1e-6, 1e-5, 1e-4], 25)
    values = (rng.uniform(0.9, 1, size=100) + deviations * rng.normal(size=(5000, 100))).astype(np.float32)
    short = jnp.mean(values**2, axis=0) - jnp.mean(values, axis=0) ** 2
    assert (np.asarray(short) < 0).any()
    mean, variance = tp.mean_and_variance(jnp.asarray(values))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6)
    # The error of the mean enters squared: 7e-7 with the sums of jaxlib 0.10.0, and up to what is allowed above.
    np.testing.assert_allclose(variance, exact.var(axis=0), rtol=1e-3, atol=1e-6**2)
    assert (np.asarray(variance) >= 0).all()


@in_float64
def test_samples_of_a_prior_without_width_are_its_mean_decoded_and_encoded():
    parameters = random_parameters()
    mean = np.array([0.2, 0.5, 0.9])
    prior = tp.Prior(jnp.asarray(mean), jnp.zeros(3), jnp.asarray(0.1))
    *_, g1, g2 = maps = numpy_maps(parameters)
    x = g1(g2(mean))
    for rounds in (0, 1, 2):
        samples = tp.generate(jax.random.key(rounds), parameters, prior, 3, rounds)
        assert_close(samples, np.tile(x, (3, 1)), 1e-12)
        x = g1(oracles.target_propagation_inference(maps, x, 15, 0.1, 0.3)[-1][0])


def test_direct_samples_have_the_moments_of_the_prior():
    one_to_one = tp.Affine(jnp.eye(2), jnp.zeros(2))
    parameters = tp.Parameters(one_to_one, one_to_one, one_to_one, one_to_one)
    prior = tp.Prior(jnp.array([0.3, 0.8]), jnp.array([0.04, 0.25]), jnp.asarray(1.0))
    n = 5000
    x = np.asarray(tp.generate(jax.random.key(0), parameters, prior, n, 0), np.float64)
    h2 = np.log(np.expm1(np.log(x / (1 - x))))
    assert (np.abs(h2.mean(axis=0) - prior.mean) < 4 * np.sqrt(prior.variance / n)).all()
    assert (np.abs(h2.var(axis=0) / prior.variance - 1) < 4 * np.sqrt(2 / n)).all()
    assert abs(np.corrcoef(h2.T)[0, 1]) < 4 / np.sqrt(n)


@in_float64
def test_inpainting_holds_the_known_pixels_and_fills_in_the_others():
    parameters, images = random_parameters(), random_images()
    mask = jnp.asarray(np.random.default_rng(7).uniform(size=images.shape) < 0.5)
    corrupted = tp.randomise(jax.random.key(0), images, mask)
    np.testing.assert_array_equal(corrupted[~mask], images[~mask])
    assert (np.abs(corrupted - images)[mask] > 0).all()
    filled = tp.inpaint(parameters, corrupted, mask, num_steps=3)
    np.testing.assert_array_equal(filled[~mask], images[~mask])
    maps = numpy_maps(parameters)
    for row, known in enumerate(np.asarray(corrupted)):
        x = known
        for _ in range(3):
            h1, _ = oracles.target_propagation_inference(maps, x, 15, 0.1, 0.3)[-1]
            x = np.where(mask[row], maps[2](h1), known)
        assert_close(filled[row], x, 1e-12)


def test_noise_is_uniform():
    n = 20_000
    noise = np.asarray(tp.randomise(jax.random.key(0), jnp.zeros((n, 1)), jnp.ones((n, 1), bool)), np.float64)
    assert noise.min() >= 0
    assert noise.max() < 1
    assert abs(noise.mean() - 0.5) < 4 * np.sqrt(1 / 12 / n)
    # Of the squares: mean 1/3, variance 1/5 - 1/9.
    assert abs((noise**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)


def test_weights_start_orthogonal():
    parameters = tp.init_parameters(jax.random.key(0), (20, 30, 10))
    assert parameters.sizes == (20, 30, 10)
    for affine in parameters:
        np.testing.assert_allclose(np.linalg.svd(affine.weights, compute_uv=False), 1, atol=1e-5)
        assert not affine.biases.any()
    # Drawn apart: no map is the transpose of another.
    assert np.abs(parameters.f1.weights - parameters.g1.weights.T).max() > 0.1


def test_learning_with_the_states_held_reduces_every_loss():
    parameters, images = random_parameters(), random_images()
    inputs, hidden = jax.tree.map(jnp.float32, random_states())
    config = tp.TargetConfig(learning_rate=1e-3)
    optimizer = tp._optimizer(config)

    def step(carry, _):
        parameters, state = carry
        losses, gradients = tp.layer_gradients(parameters, inputs, images, hidden)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state), losses

    _, losses = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=200))(parameters)
    for name, curve in losses._asdict().items():
        assert curve[-1] < 0.8 * curve[0], name


@pytest.mark.slow
def test_training_makes_inferred_states_tell_more_of_unseen_images():
    data = load_dataset("mnist_5k")
    config = tp.TargetConfig()
    state = tp.init_state(jax.random.key(0), (784, 100, 30), config)
    unseen = jnp.asarray(data.test.examples)

    def error(parameters):
        hidden = tp.infer(parameters, unseen)
        return float(jnp.mean(jnp.sum((jax.vmap(parameters.maps.g1)(hidden.h1) - unseen) ** 2, axis=1)))

    errors, losses = [error(state.parameters)], []
    for _ in range(8):
        state, found = tp.train_epoch(state, jnp.asarray(data.train.examples), config=config)
        losses.append(found)
    errors.append(error(state.parameters))
    # The losses of f1 and g2 rise in the first epochs: the states that are their targets grow from softplus(0).
    assert losses[-1].g1 < 0.4 * losses[0].g1
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: tp.infer(p, jnp.zeros(5)), r"images of shape \(5,\); the maps take \[batch, 5\]"),
        (lambda p: tp.infer(p, jnp.zeros((0, 5))), "batch at least 1"),
        (lambda p: tp.infer(p, jnp.full((1, 5), 255)), r"values from 255 to 255; they are numbers in \[0, 1\]"),
        (lambda p: tp.fit_prior(p, jnp.full((1, 5), jnp.nan)), "values from nan to nan"),
        (lambda p: tp.log_joint_curve(p, None, jnp.zeros((2, 4))), "images of shape"),
        (lambda p: tp.inpaint(p, jnp.zeros((2, 5)), jnp.zeros((2, 5))), "dtype float32 for images of shape"),
        (lambda p: tp.inpaint(p, jnp.zeros((2, 5)), jnp.zeros(5, bool)), r"a mask of shape \(5,\)"),
        (lambda p: tp.inpaint(p, jnp.zeros((2, 5)), jnp.zeros((2, 5), bool), 0), "num_steps=0; it takes an integer"),
        (lambda p: tp.randomise(jax.random.key(0), jnp.zeros((2, 5)), jnp.zeros((3, 5), bool)), "a mask of shape"),
        (lambda p: tp.generate(jax.random.key(0), p, None, 0), "num_samples=0"),
        (lambda p: tp.generate(jax.random.key(0), p, None, 1, -1), "num_rounds=-1"),
        (lambda p: tp.widen(None, -1.0), "factor=-1.0; it takes a finite number of at least 0"),
        (lambda p: tp.init_parameters(jax.random.key(0), (5, 4)), r"sizes=\(5, 4\); it takes three positive"),
        (lambda p: tp.init_parameters(jax.random.key(0), (5, 0, 4)), "sizes="),
        (lambda p: tp.Inference(num_steps=-1), "num_steps=-1"),
        (lambda p: tp.Inference(rate=0), "rate=0; it takes a positive finite number"),
        (lambda p: tp.Inference(top_down=-0.1), "top_down=-0.1"),
        (lambda p: tp.TargetConfig(feedback_noise=-1), "feedback_noise=-1"),
        (lambda p: tp.TargetConfig(spikes=0), "spikes=0"),
        (lambda p: tp.TargetConfig(learning_rate=np.inf), "learning_rate=inf"),
        (lambda p: tp.TargetConfig(stabiliser=0), "stabiliser=0"),
        (lambda p: tp.TargetConfig(momentum=1), "momentum=1; it takes a finite number of at least 0 and below 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with refused(ValueError, match=message):
        call(random_parameters())


def test_fewer_images_than_a_minibatch_are_refused():
    state = tp.init_state(jax.random.key(0), SIZES, tp.TargetConfig())
    with pytest.raises(ValueError, match="batch_size=100 with 6 images"):
        tp.train_epoch(state, random_images(), config=tp.TargetConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "best"}, "got preset=best; it takes one of paper, released"),
        ({"epochs": -1}, "got epochs=-1"),
        ({"hidden": (4,)}, "got hidden=.*; it takes 2 positive integers"),
        ({"hidden": (4, 0)}, "got hidden="),
        ({"learning_rate": 0.0}, "got learning_rate=0.0; it takes a positive finite number"),
        ({"num_samples": 0}, "got num_samples=0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        script.Config(**settings)


def test_the_presets_differ_in_the_width_of_the_prior():
    assert {name: preset.widening**2 for name, preset in tp.PRESETS.items()} == {"paper": 4, "released": 16}
    images = Images(load_dataset("mnist_5k"))
    assert script.Config().learner(images).epochs == 20
    assert script.Config(epochs=3, preset="released").learner(images)[3:5] == (3, 4.0)


@pytest.mark.slow
def test_the_quick_setting_writes_everything_and_a_second_start_says_so(tmp_path):
    flags = [*quick_flags(script), f"--dataset={FEW}", "--hidden=40,10", f"--workdir={tmp_path / 'run'}"]
    ended = start_here("mnist_target", *flags)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    table = (tmp_path / "run" / "table.md").read_text()
    assert table in ended.stdout
    assert "nan" not in table
    assert set(summary["parzen"]) == {"encode/decode", "direct", "training images"}
    for found in summary["log_joint"].values():
        assert all(len(values) == 21 for values in found.values())
    # Inference makes the image more probable, whatever the widths of the model.
    visible = summary["log_joint"]["inference"]["visible"]
    assert visible[-1] > visible[0]
    for errors in summary["inpainting_error"].values():
        assert errors["filled in"] < errors["noise"]
    pictures = {p.name for p in (tmp_path / "run").glob("*.png")}
    assert pictures == {"samples.png", "direct.png", "inpainted.png", "losses.png", "log_joint.png"}
    assert all(matplotlib.image.imread(tmp_path / "run" / name).shape[0] > 200 for name in pictures)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "config.json"}
    again = start_here("mnist_target", *flags)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}
