"""Time to Parzen scores: stacks trained in turn, and how well the validation images score under what they generate.

The rules of the race are those of `quality`; a score is passed where the validation images read it, and the test images
are scored beside them.
"""

from collections.abc import Callable, Sequence

import jax

from benchmarks.quality import Competitor, Goal, RecipeLearner, Scores
from experiments import named_recipes
from vpf_jax.app.keys import key_for
from vpf_jax.app.runs import Images
from vpf_jax.evaluate import generation
from vpf_jax.stack import Stack

PARZEN = Goal("validation", "Parzen log-likelihood of the validation images, nats", (205, 235, 250), compared=205)
# The better of them on the validation images is read: the paper's, and a long chain in the top machine, which is for
# stacks that do not drift.
SAMPLERS = (generation.Sampler("prior", 3, 3), generation.Sampler("prior", 2, 30))
TOLD_SAMPLERS = "the better on the validation images of 3 steps in every machine, and 30 in the top one and 2 below"


def stacks(visible: jax.Array, hidden: tuple[int, ...], epochs: int, recipes: Sequence[str]) -> list[Competitor]:
    """Recipes of `named_recipes.STACKS`, the paper's with so many epochs."""

    def competitor(name: str) -> Competitor:
        recipe = named_recipes.stack(name, hidden, epochs)
        return Competitor(recipe.title, lambda: RecipeLearner(recipe, visible), recipe.epochs)

    return [competitor(name) for name in recipes]


def judge(images: Images, train_bits: jax.Array, num_samples: int) -> Callable[[Stack, int], Scores]:
    """Parzen scores of stacks by generated images, whose prior is of the training images; as `quality.judge`."""

    def look(stack: Stack, epoch: int) -> Scores:
        prior_key, *keys = jax.random.split(key_for(0, "looking at a stack", epoch), 1 + len(SAMPLERS))
        prior = generation.activations(prior_key, stack, train_bits)[-1]
        rows = []
        for key, sampler in zip(keys, SAMPLERS, strict=True):
            scored = images.score(generation.generate(key, stack, prior, sampler, num_samples))
            rows.append(
                {
                    "validation": scored["validation_mean"],
                    "test": scored["mean"],
                    "standard_error": scored["sem"],
                    "top_steps": sampler.top_gibbs_steps,
                }
            )
        return max(rows, key=lambda row: row["validation"])

    return look
