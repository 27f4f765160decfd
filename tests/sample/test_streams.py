"""The generator against published vectors and JAX's own, and its numbers against the uniform distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32 as reference

from vpf_jax.sample.streams import of_rows, permutation, stream_of, substream, substreams, threefry_2x32, uniform


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        # Known answers of the authors' Random123 distribution.
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    found = threefry_2x32(tuple(map(jnp.uint32, key)), tuple(jnp.asarray([c], jnp.uint32) for c in counter))
    assert tuple(int(word[0]) for word in found) == expected


def test_it_is_jaxs_generator():
    counters = np.random.default_rng(0).integers(0, 2**32, (2, 100), dtype=np.uint32)
    words = jnp.asarray([123, 456], jnp.uint32)
    expected = reference(words, jnp.asarray(counters).ravel())
    found = threefry_2x32((words[0], words[1]), (jnp.asarray(counters[0]), jnp.asarray(counters[1])))
    np.testing.assert_array_equal(jnp.concatenate(found), expected)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_numbers_are_uniform_and_uncorrelated(impl):
    assert_uniform_and_uncorrelated(uniform(stream_of(jax.random.key(0, impl=impl)), (1000, 1000)))


@pytest.mark.slow
def test_numbers_of_neighbouring_streams_are_uniform_and_uncorrelated():
    streams = substreams(substream(stream_of(jax.random.key(0)), 7), 1000)
    assert_uniform_and_uncorrelated(jax.vmap(lambda stream: uniform(stream, (1000,)))(streams))


def assert_uniform_and_uncorrelated(numbers):
    numbers = np.asarray(numbers, np.float64)
    count = numbers.size
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Each bound is four standard errors of the statistic under independence and uniformity.
    assert abs(numbers.mean() - 0.5) < 4 * np.sqrt(1 / 12 / count)
    histogram, _ = np.histogram(numbers, bins=256, range=(0, 1))
    chi_square = np.sum((histogram - count / 256) ** 2) / (count / 256)
    assert abs(chi_square - 255) < 4 * np.sqrt(2 * 255)
    centred = numbers - 0.5
    for shifted in (np.roll(centred, 1, axis=0), np.roll(centred, 1, axis=1)):
        assert abs(np.mean(centred * shifted)) < 4 / 12 / np.sqrt(count)


def test_numbers_differ_by_key_and_agree_by_key_under_jit_and_vmap():
    def draw(key):
        return uniform(stream_of(key), (50,))

    rows = [np.asarray(draw(key)) for key in jax.random.split(jax.random.key(1), 3)]
    assert len(np.unique(rows)) > 140
    mapped = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 3))
    np.testing.assert_array_equal(mapped, rows)


def test_streams_are_the_ciphers_blocks_apart_from_its_numbers():
    stream = stream_of(jax.random.key(2))
    words = tuple(int(word) for word in stream)
    expected = reference(stream, jnp.asarray([0xFFFFFFFF, 5], jnp.uint32))
    np.testing.assert_array_equal(substream(stream, 5), expected)
    np.testing.assert_array_equal(substreams(stream, 6)[5], expected)
    family = {words, *(tuple(int(w) for w in row) for row in substreams(stream, 1000))}
    assert len(family) == 1001


@pytest.mark.slow
def test_a_permutation_holds_every_number_and_each_order_is_as_likely():
    streams = substreams(stream_of(jax.random.key(3)), 24_000)
    orders = np.asarray(jax.vmap(lambda stream: permutation(stream, 4))(streams))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(4), (24_000, 1)))
    _, counts = np.unique(orders @ [1000, 100, 10, 1], return_counts=True)
    assert len(counts) == 24
    # Chi-square with 23 degrees of freedom, of standard deviation sqrt(46): four of them.
    assert abs(np.sum((counts - 1000) ** 2) / 1000 - 23) < 4 * np.sqrt(46)


def test_rows_far_apart_have_numbers_of_their_own():
    stream = stream_of(jax.random.key(3))
    few = uniform(of_rows(stream, jnp.array([0, 1, 5])), (3, 8))
    np.testing.assert_array_equal(few, uniform(stream, (6, 8))[jnp.array([0, 1, 5])])
    # Numbers 2^32 apart, which 32 bits do not tell from one another: the cipher's counter goes on in its other word.
    assert np.all(uniform(of_rows(stream, jnp.array([2**29, 2**29 + 1])), (2, 8)) != few[:2])


@pytest.mark.parametrize(("row", "count"), [(2**31 + 12345, 8), (2**32 - 1, 70_001), (613_566_756, 7)])
def test_places_are_counted_in_64_bits(row, count):
    stream = stream_of(jax.random.key(4))
    places = [divmod(row * count + entry, 2**32) for entry in range(count)]
    # The last case goes over in the middle of its row.
    assert (places[0][0] < places[-1][0]) == (count == 7)
    high, low = (jnp.asarray(words, jnp.uint32) for words in zip(*places, strict=True))
    words = threefry_2x32((stream[0], stream[1]), (high, low))[0]
    found = uniform(of_rows(stream, jnp.asarray([row - 2**32 * (row >= 2**31)], jnp.int32)), (1, count))[0]
    np.testing.assert_array_equal(found, np.asarray(words >> 8, np.float32) * 2.0**-24)


def test_a_row_holds_no_more_than_a_stream():
    with pytest.raises(OverflowError, match="up to 4294967296 rows of as many"):
        jax.eval_shape(lambda stream: uniform(stream, (2, 2**32 + 8)), stream_of(jax.random.key(0)))


def test_no_kernel_derives_the_stream_that_it_draws_from():
    """Some that did, with a sum in them, took the compiler fifteen seconds."""

    def drawn(stream):
        return jnp.sum(uniform(substream(substream(substream(stream, 1), 2), 3), (19, 64)) < 0.5, axis=0)

    program = jax.jit(drawn).lower(jnp.zeros(2, jnp.uint32)).compile().as_text()
    # Of one cipher there are 20 rounds and the third word of its key, of four there are four times as many.
    rounds = [computation.count(" xor(") for computation in program.split("\n\n")]
    assert sum(rounds) >= 4 * 20
    assert max(rounds) < 2 * 20
