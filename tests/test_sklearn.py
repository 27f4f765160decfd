"""The estimator of scikit-learn: its own checks, pipelines, and what it adds to BernoulliRBM."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from jax import monitoring
from joblib.externals.loky import get_reusable_executor
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from vpf_jax import rules
from vpf_jax.sklearn import BoltzmannTransformer

REPEATED = "minibatches are drawn at random: a weight of 2 is two copies in the mean alone"
EXPECTED_TO_FAIL = {
    "check_sample_weight_equivalence_on_dense_data": REPEATED,
    "check_sample_weight_equivalence_on_sparse_data": REPEATED,
}
# Two patterns, each with one bit in twenty flipped.
PATTERNS = np.array([[1, 1, 1, 0, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1, 0, 1]])


def small(**given):
    settings = {"n_components": 4, "rule": "cd", "n_iter": 20, "batch_size": 20, "learning_rate": 2e-2}
    return BoltzmannTransformer(**{**settings, "random_state": 0, **given})


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    return np.abs(PATTERNS[y] - (rng.uniform(size=(200, 8)) < 0.05)).astype(float), y


@pytest.fixture(scope="module")
def fitted(data):
    return small(n_iter=60).fit(data[0])


@pytest.mark.slow
def test_the_checks_of_scikit_learn():
    estimator = BoltzmannTransformer(n_components=3, n_iter=2)
    with warnings.catch_warnings():
        # The checks give data beyond [0, 1], too.
        warnings.simplefilter("ignore")
        found = check_estimator(estimator, expected_failed_checks=EXPECTED_TO_FAIL)
    # An array of CuPy or PyTorch is nothing that an estimator has to take.
    assert {one["check_name"] for one in found if one["status"] == "skipped"} <= {"check_array_api_input"}
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(EXPECTED_TO_FAIL)
    assert len(found) > 40
    assert {one["status"] for one in found} <= {"passed", "xfail", "skipped"}


def test_stands_in_for_bernoulli_rbm(data):
    X, y = data
    grid = {"rbm__learning_rate": [1e-3, 2e-2], "rbm__n_iter": [1, 30], "rbm__batch_size": [20]}

    def searched(rbm):
        pipeline = make_pipeline(rbm, LogisticRegression())
        pipeline.steps[0] = ("rbm", rbm)
        return GridSearchCV(pipeline, grid, cv=2).fit(X, y)

    theirs = searched(BernoulliRBM(n_components=4, random_state=0))
    ours = searched(BoltzmannTransformer(n_components=4, verbose=0, random_state=0))
    assert theirs.cv_results_["params"] == ours.cv_results_["params"]
    assert ours.best_score_ > 0.95
    assert not np.isnan(ours.cv_results_["mean_test_score"]).any()


@pytest.mark.slow
def test_searches_in_two_processes(data):
    X, y = data
    pipeline = make_pipeline(small(n_iter=2), LogisticRegression())
    search = GridSearchCV(pipeline, {"boltzmanntransformer__learning_rate": [2e-2]}, cv=2, n_jobs=2, refit=False)
    together = search.fit(X, y).cv_results_["mean_test_score"]
    # Workers wait for more; they should not outlive this test.
    get_reusable_executor().shutdown(wait=True)
    np.testing.assert_array_equal(together, search.set_params(n_jobs=1).fit(X, y).cv_results_["mean_test_score"])


def test_other_rates_passes_and_seeds_compile_nothing(data):
    small().fit(data[0]).transform(data[0])
    compiled = []

    def note(event, duration, **more):
        compiled.append(event)

    monitoring.register_event_duration_secs_listener(note)
    try:
        small(learning_rate=1e-3, n_iter=7, random_state=3).fit(data[0]).transform(data[0])
        assert [event for event in compiled if "compile" in event] == []
        small(batch_size=7).fit(data[0])
        assert [event for event in compiled if "compile" in event]
    finally:
        monitoring.unregister_event_duration_listener(note)


def test_learns_the_patterns(fitted, data):
    X, y = data
    assert fitted.score(X) > small(n_iter=0).fit(X).score(X) + 1
    assert LogisticRegression().fit(fitted.transform(X), y).score(fitted.transform(X), y) > 0.95
    drawn = fitted.sample(400, random_state=1)
    assert drawn.dtype == bool
    nearest = np.abs(drawn[:, None].astype(int) - PATTERNS).sum(axis=2).min(axis=1)
    assert np.mean(nearest <= 1) > 0.8


def test_attributes_are_those_of_bernoulli_rbm(fitted, data):
    theirs = BernoulliRBM(n_components=4)
    for name in ("components_", "intercept_hidden_", "intercept_visible_"):
        setattr(theirs, name, getattr(fitted, name))
    np.testing.assert_allclose(theirs.transform(data[0]), fitted.transform(data[0]), rtol=1e-5)


def test_scores_by_every_visible_unit(fitted, data):
    theirs = BernoulliRBM(n_components=4, random_state=0)
    for name in ("components_", "intercept_hidden_", "intercept_visible_"):
        setattr(theirs, name, getattr(fitted, name))
    X = data[0][:20]
    free = theirs._free_energy(X)
    flipped = [theirs._free_energy(np.abs(X - np.eye(8)[i])) for i in range(8)]
    np.testing.assert_allclose(fitted.score_samples(X), sum(-np.logaddexp(0, free - f) for f in flipped), rtol=1e-4)


def test_a_stack(data):
    X, _ = data
    estimator = small(n_components=(5, 3), rule=rules.VPF(estep="minibatch")).fit(X)
    assert [machine.sizes for machine in estimator.stack_] == [(8, 5), (5, 3)]
    assert estimator.transform(X).shape == (200, 3)
    assert list(estimator.get_feature_names_out()) == [f"boltzmanntransformer{i}" for i in range(3)]
    assert estimator.sample(2, n_sweeps=3).shape == (2, 8)


def test_sparse_is_dense(data):
    X, _ = data
    for values in (X, X * 0.7):
        dense, loose = (small().fit(form(values)) for form in (np.asarray, sparse.csr_array))
        np.testing.assert_array_equal(dense.components_, loose.components_)
        np.testing.assert_array_equal(dense.transform(values), loose.transform(sparse.csc_matrix(values)))
        assert loose.score(sparse.csr_array(values)) == dense.score(values)


def test_pickled_copied_and_cloned(fitted, data):
    X, _ = data
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(X), fitted.transform(X))
    before = fitted.transform(X)
    # The generator goes along, so that the copy goes on as the original would.
    np.testing.assert_array_equal(
        again.partial_fit(X).transform(X), pickle.loads(pickle.dumps(fitted)).partial_fit(X).transform(X)
    )
    np.testing.assert_array_equal(fitted.transform(X), before)
    with pytest.raises(NotFittedError):
        clone(fitted).transform(X)


def test_random_states_are_scikit_learns(data):
    X, _ = data
    first, second = (small(random_state=np.random.RandomState(3)).fit(X).components_ for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, small(random_state=3).fit(X).components_)
    assert (small(random_state=None).fit(X).components_ != small(random_state=None).fit(X).components_).any()


def test_weights_are_copies_in_the_mean(data):
    X, y = data
    weights = np.where(y == 1, 3, 1)
    weighted = small(rule="vpf").fit(X, sample_weight=weights)
    share = weighted.sample(500, random_state=0)[:, 3].mean()
    copied = np.r_[X[y == 1], X[y == 1], X[y == 1], X[y == 0]]
    assert share == pytest.approx(copied[:, 3].mean(), abs=0.08)
    np.testing.assert_array_equal(
        weighted.components_, small(rule="vpf").fit(X, sample_weight=10 * weights).components_
    )
    one = small(rule="vpf").fit(X, sample_weight=y)
    assert one.score(X[y == 1]) > one.score(X[y == 0]) + 2


def test_missing_entries(data):
    X, y = data
    holes = np.where(np.random.default_rng(1).uniform(size=X.shape) < 0.2, np.nan, X)
    estimator = small(n_iter=60).fit(holes)
    assert estimator.score(X) > small(n_iter=0).fit(X).score(X) + 1
    filled = estimator.inpaint(holes, random_state=0)
    np.testing.assert_array_equal(filled[~np.isnan(holes)], X[~np.isnan(holes)])
    lost = np.isnan(holes)
    assert np.mean((filled > 0.5)[lost] == X[lost]) > 0.85
    masked = estimator.inpaint(X, np.arange(8) < 3, random_state=0)
    assert np.mean((masked > 0.5) == X) > 0.9
    features = estimator.transform(holes)
    assert np.isfinite(features).all()
    assert LogisticRegression().fit(features, y).score(features, y) > 0.9
    # Rows are completed one by one, up to rounding: a product of one row may be summed in another order.
    np.testing.assert_allclose(estimator.transform(holes[5:6]), features[5:6], rtol=1e-5)
    assert np.isfinite(estimator.score_samples(holes)).all()


def test_probabilities_are_drawn_or_cut(data):
    X, _ = data
    grey = 0.2 + 0.6 * X
    drawn, cut = (small(binarise=how).fit(grey) for how in ("sample", "threshold"))
    np.testing.assert_array_equal(cut.components_, small().fit(X).components_)
    np.testing.assert_array_equal(cut.transform(grey), cut.transform(X))
    assert (drawn.transform(grey) != drawn.transform(X)).any()
    assert set(np.unique(drawn.gibbs(grey))) == {False, True}


def test_parts_of_the_data_one_by_one(data):
    X, _ = data
    estimator = small()
    for _ in range(20):
        for part in (X[:100], X[100:]):
            estimator.partial_fit(part)
    assert estimator.score(X) > small(n_iter=0).fit(X).score(X) + 1
    # Fewer rows than a minibatch.
    assert estimator.partial_fit(X[:3]).components_.shape == (4, 8)


def test_gibbs_goes_on(fitted, data):
    X = data[0][:5]
    same = pickle.loads(pickle.dumps(fitted))
    first = same.gibbs(X)
    assert first.dtype == bool
    assert (first != same.gibbs(X)).any()
    assert same.gibbs(X, n_sweeps=3).shape == (5, 8)


def test_tells_of_every_pass(data, capsys):
    small(n_iter=2, verbose=1).fit(data[0])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("[BoltzmannTransformer] Iteration 2, pseudo-likelihood = -")


def test_values_beyond_probabilities_are_told(data):
    with pytest.warns(UserWarning, match=r"got X with values from 0 to 255, which are taken for the nearer of 0 and 1"):
        small(n_iter=1).fit(data[0] * 255)


WRONG = {
    "n_components": (0, "got n_components=0; it takes a positive integer, or several, bottom first"),
    "rule": ("sml", "got rule=sml; it takes one of "),
    "learning_rate": (-1, "got learning_rate=-1; it takes a positive finite number"),
    "batch_size": (0, "got batch_size=0; it takes an integer of at least 1"),
    "n_iter": (1.5, "got n_iter=1.5; it takes an integer of at least 0, or 'auto'"),
    "weight_decay": (-1, "got weight_decay=-1; it takes a finite number of at least 0"),
    "binarise": ("round", "got binarise=round; it takes one of sample, threshold"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters(data, name):
    given, told = WRONG[name]
    with pytest.raises(ValueError, match=r"^got ") as caught:
        small(**{name: given}).fit(data[0])
    assert str(caught.value).startswith(told)


def test_wrong_calls(fitted, data):
    X, _ = data
    holes = np.where(X == 1, np.nan, X)
    for call, told in (
        (lambda: small().fit(X, sample_weight=np.ones(3)), "got sample_weight="),
        (lambda: small().fit(X, sample_weight=np.zeros(200)), "got sample_weight="),
        (lambda: fitted.gibbs(holes), "got v with missing entries; gibbs takes whole rows"),
        (lambda: fitted.gibbs(X, 0), "got n_sweeps=0"),
        (lambda: fitted.sample(0), "got n_samples=0"),
        (lambda: fitted.inpaint(X, np.ones(3, bool)), "got mask="),
        (lambda: fitted.set_params(n_components=7).partial_fit(X), "got n_components=7; it takes (4,)"),
    ):
        with pytest.raises(ValueError, match=r"^got ") as caught:
            call()
        assert str(caught.value).startswith(told)


def test_without_scikit_learn():
    told = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['sklearn'] = None; import vpf_jax, vpf_jax.sklearn"],
        capture_output=True,
        text=True,
    )
    last = told.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: vpf_jax.sklearn needs scikit-learn, not installed here")


KIND = np.random.default_rng(5).random((300, 1)) < 0.5
OTHER = {
    "gaussian": np.random.default_rng(6).normal(np.where(KIND, [1, -1, 2, 0, 1], [-1, 1, -2, 1, 0]), 0.5),
    "count": np.random.default_rng(6).poisson(np.where(KIND, [6, 1, 9, 1, 2], [1, 6, 1, 2, 1])),
    "categorical": np.where(
        np.random.default_rng(6).random((300, 5)) < 0.8,
        np.where(KIND, 1, 2),
        np.random.default_rng(7).integers(0, 4, (300, 5)),
    ),
}
FEW = {"n_iter": 20, "n_components": 3, "random_state": 0}


@pytest.fixture(scope="module")
def fitted_to():
    return {units: BoltzmannTransformer(units=units, **FEW).fit(X) for units, X in OTHER.items()}


@pytest.mark.slow
@pytest.mark.parametrize("units", OTHER)
def test_values_that_are_no_bits(fitted_to, units):
    model, X = fitted_to[units], OTHER[units]
    width = model.n_values_ if units == "categorical" else 1
    assert model.components_.shape == (3, 5 * width)
    features = model.transform(X)
    assert ((features >= 0) & (features <= 1)).all()
    # The two kinds of examples lie apart in the features, many standard errors.
    split = [features[KIND[:, 0] == side] for side in (True, False)]
    assert np.abs(split[0].mean(axis=0) - split[1].mean(axis=0)).max() > 0.3
    drawn = model.sample(400, n_sweeps=50, random_state=1)
    assert drawn.shape == (400, 5)
    if units == "categorical":
        assert set(np.unique(drawn)) <= set(range(model.n_values_))
    else:
        errors = np.sqrt(X.var(axis=0) * (1 / 300 + 1 / 400))
        assert (np.abs(drawn.mean(axis=0) - X.mean(axis=0)) < 8 * errors).all()
        assert units == "gaussian" or (drawn == np.rint(drawn)).all()
    # What is missing is filled in from the kind of the example.
    holes = X.astype(float)
    holes[:, 0] = np.nan
    repaired = model.inpaint(holes, random_state=0)
    np.testing.assert_array_equal(repaired[:, 1:], X[:, 1:])
    nearer = np.abs(repaired[:, 0] - X[:, 0]) < np.abs(np.roll(repaired[:, 0], 1) - X[:, 0])
    assert np.mean(np.abs(repaired[:, 0] - X[:, 0])) < np.mean(np.abs(X[:, 0].mean() - X[:, 0])), nearer.mean()
    assert np.isfinite(model.transform(holes)).all()
    assert model.gibbs(X[:7]).shape == (7, 5)
    with pytest.raises(ValueError, match=f"got units='{units}'; score_samples and score take binary units"):
        model.score_samples(X)
    assert model.partial_fit(X[:100]) is model
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))


@pytest.mark.slow
def test_real_values_have_any_scale(fitted_to):
    """The machine is of the values as given: what it finds does not depend on their units of measurement."""
    X, scale, origin = OTHER["gaussian"], np.array([1e3, 1, 1e-3, 50, 2]), np.array([5e3, 0, 0, -100, 1])
    one, other = fitted_to["gaussian"], BoltzmannTransformer(units="gaussian", **FEW).fit(scale * X + origin)
    np.testing.assert_allclose(
        other.transform(scale * X + origin),
        BoltzmannTransformer(units="gaussian", **FEW).fit(X).transform(X),
        atol=0.02,
    )
    drawn = other.sample(400, n_sweeps=50, random_state=1)
    errors = np.sqrt(X.var(axis=0) * (1 / 300 + 1 / 400))
    assert (np.abs((drawn.mean(axis=0) - origin) / scale - X.mean(axis=0)) < 8 * errors).all()
    assert one.n_features_in_ == other.n_features_in_


@pytest.mark.parametrize(
    ("units", "X", "told"),
    [
        ("count", [[0.5, 1]], "got X=.*; it takes counts, whole numbers from 0 to"),
        ("count", [[-1, 1]], "got X=.*; it takes counts"),
        ("categorical", [[0.5, 1]], "got X=.*; it takes codes, whole numbers from 0 to 254"),
        ("categorical", [[255, 1]], "it takes codes, whole numbers from 0 to 254"),
        ("gaussian", [[np.inf, 1]], "infinity"),
        ("potts", [[0, 1]], "got units=potts; it takes one of binary, gaussian, count, categorical"),
    ],
)
def test_values_of_other_units_are_refused(units, X, told):
    with pytest.raises(ValueError, match=told):
        BoltzmannTransformer(3, units=units, n_iter=1).fit(np.array(X))
    with pytest.raises(ValueError, match="got binarise=threshold; it takes sample, as units are count"):
        BoltzmannTransformer(3, units="count", binarise="threshold").fit(np.array([[1, 2]]))


def test_a_code_that_fit_has_not_seen_is_refused(fitted_to):
    with pytest.raises(ValueError, match="it takes codes, whole numbers from 0 to 3"):
        fitted_to["categorical"].transform(np.full((2, 5), 4))
