"""What a recipe accepts, before its stages are read."""

from ml_collections import ConfigDict

from dinov2_jax.config.checks import DISTRIBUTED, PROCESSES, Range, Rules, check_values
from dinov2_jax.config.files import leaves
from dinov2_jax.eval.rules import RULES as EVALUATION
from dinov2_jax.train.checks import RULES as TRAINING

RULES: Rules = DISTRIBUTED | {"plan.mfu": Range(0.01, 1), "evaluation.data.workers": PROCESSES}


def rules_for(recipe: ConfigDict) -> Rules:
    """RULES, and those of training and evaluation for the fields that the recipe gives them."""
    found = dict(RULES)
    for name in leaves(recipe):
        first, _, rest = name.partition(".")
        if first == "stages":
            rest = rest.partition(".set.")[2]
        rules = {"set": TRAINING, "stages": TRAINING, "evaluation": EVALUATION}.get(first, {})
        if rest in rules:
            found[name] = rules[rest]
    return found


def check_recipe(recipe: ConfigDict) -> None:
    """Refuses a field that is out of its range, or none of its names, by a ConfigError."""
    check_values(recipe, rules_for(recipe) if "stages" in recipe else RULES)
