"""The embedded default task: does the verb of an English sentence agree with its subject?

A small grammar draws a subject, puts an adverb, one or two prepositional phrases, or a subject or
object relative clause after it, and ends in a present-tense verb. The nouns in between (attractors)
are singular or plural at random, so the noun next to the verb misleads as often as it helps:

    The pilot near the doctors waits.       1
    The pilot near the doctors wait.        0
    The actors that the driver likes smile. 1

Sentences come in twins that differ in the number of the last verb alone. That, with as many
singular as plural subjects, leaves counts of words and of pairs of words uninformative. Only the
last verb is ever wrong, so "first noun and last verb agree" is all there is to learn.

After Linzen, Dupoux & Goldberg 2016, "Assessing the Ability of LSTMs to Learn Syntax-Sensitive
Dependencies", TACL 4, https://aclanthology.org/Q16-1037.
"""

import random

Row = tuple[str, int]

# The lexicon is small on purpose: with twice the nouns and verbs, MiniLM under LoRA stayed at
# chance for some seeds.
NOUNS = ("actor", "artist", "author", "doctor", "driver", "farmer", "pilot", "teacher")
TRANSITIVE_VERBS = ("follow", "know", "like", "trust")
INTRANSITIVE_VERBS = ("laugh", "sleep", "smile", "wait")
PREPOSITIONS = ("behind", "beside", "near", "with")
ADVERBS = ("always", "never", "often", "rarely", "seldom", "sometimes")
MODIFIERS = ("adverb", "phrase", "two phrases", "subject relative", "object relative")


def _noun(noun: str, plural: bool) -> str:
    return f"the {noun}s" if plural else f"the {noun}"


def _verb(verb: str, plural: bool) -> str:
    return verb if plural else f"{verb}s"


def _stem(rng: random.Random, plural: bool) -> str:
    """Draw a sentence without its last verb, its subject in the number given."""
    subject, *others = rng.sample(NOUNS, 3)
    numbers = [rng.random() < 0.5 for _ in others]
    first, second = map(_noun, others, numbers)
    verb = rng.choice(TRANSITIVE_VERBS)
    match rng.choice(MODIFIERS):
        # No attractor here: without these easy sentences training sits at chance for longer.
        case "adverb":
            modifier = rng.choice(ADVERBS)
        case "phrase":
            modifier = f"{rng.choice(PREPOSITIONS)} {first}"
        case "two phrases":
            modifier = f"{rng.choice(PREPOSITIONS)} {first} {rng.choice(PREPOSITIONS)} {second}"
        case "subject relative":
            modifier = f"that {_verb(verb, plural)} {first}"
        case _:
            modifier = f"that {first} {_verb(verb, numbers[0])}"
    return f"{_noun(subject, plural)} {modifier}".capitalize()


def generate(
    train: int = 4000, validation: int = 1000, seed: int = 0
) -> tuple[list[Row], list[Row]]:
    """Return the (sentence, label) rows of the train and the validation split.

    Label 1 is acceptable, 0 is not. The same arguments give the same rows. Both splits are exactly
    balanced, no sentence occurs twice, and twins stay in one split. Raises ValueError for an odd
    size, which cannot be balanced.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: list[list[Row]] = []
    for size in (train, validation):
        if size % 2:
            raise ValueError(f"split sizes must be even to be balanced, got {size}")
        rows: list[Row] = []
        while len(rows) < size:
            # Subjects alternate in number, so that neither form of a verb hints at the label.
            plural = len(rows) % 4 == 0
            stem, verb = _stem(rng, plural), rng.choice(INTRANSITIVE_VERBS)
            acceptable = f"{stem} {_verb(verb, plural)}."
            if acceptable not in seen:
                seen.add(acceptable)
                rows += [(acceptable, 1), (f"{stem} {_verb(verb, not plural)}.", 0)]
        rng.shuffle(rows)
        splits.append(rows)
    return splits[0], splits[1]
