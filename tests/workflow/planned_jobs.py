"""The jobs of the tiny study, each by the sentence that Snakemake says of it.

The sentence names its data set, its shard, its removal, and its target and mode: a pair, such as
"photos, fixed".
"""

from collections.abc import Iterable

PHOTOS = ("photos, fixed", "photos, full")
HELD_OUT = ("held_out, fixed",)
PAIRS = PHOTOS + HELD_OUT
SHARDS = ("000000-000003", "000004-000007")
SHARED = ("none", "random-2")  # points of curves that are the same for all targets


def conversion(*datasets: str) -> set[str]:
    return {f"{act} images of {name}" for name in datasets for act in ("Convert the", "Draw some")}


def source_models(*shards: str) -> set[str]:
    return {f"Train source models {shard}" for shard in shards}


def transfers(*pairs: str, shards: tuple[str, ...] = SHARDS) -> set[str]:
    return {f"Transfer source models {shard} to {pair}" for pair in pairs for shard in shards}


def retrained_models(*points: str) -> set[str]:
    """A job for all replicates of each point, named after the first."""
    return {f"Retrain source models with classes removed: {point}-0" for point in points}


def retrained_transfers(*pairs: str, points: Iterable[str] = SHARED) -> set[str]:
    return {f"Transfer retrained models to {pair}: {point}-0" for pair in pairs for point in points}


def ranked_removals(*pairs: str, count: int = 2) -> set[str]:
    """The removals that follow the ranking of each pair, retrained and transferred."""
    jobs = set()
    for pair in pairs:
        points = ranked_points(pair, count)
        jobs |= retrained_models(*points) | retrained_transfers(pair, points=points)
    return jobs


def ranked_points(pair: str, count: int = 2) -> list[str]:
    return [f"{pair.replace(', ', '-')}-{order}-{count}" for order in ("top", "bottom")]


def all_retrained_transfers(*pairs: str) -> set[str]:
    ranked = [retrained_transfers(pair, points=ranked_points(pair)) for pair in pairs]
    return retrained_transfers(*pairs).union(*ranked)


def summary_and_after(*pairs: str) -> set[str]:
    return (
        {"Draw the accuracies of all models"}
        | {f"Put together the outcomes on {pair}" for pair in pairs}
        | influence_and_after(*pairs)
    )


def influence_and_after(*pairs: str) -> set[str]:
    estimates = {f"Estimate influences on {pair}, by difference_in_means" for pair in pairs}
    return estimates | reliability(*pairs) | subpopulations(*pairs) | ranking_and_after(*pairs)


def reliability(*pairs: str) -> set[str]:
    return {
        job
        for pair in pairs
        for job in (
            f"Measure the reliability on {pair}, by difference_in_means",
            f"Draw the reliability on {pair}",
        )
    }


def ranking_and_after(*pairs: str) -> set[str]:
    return (
        {f"Rank the source classes for {pair}" for pair in pairs}
        | {f"Draw the influences on {pair}" for pair in pairs}
        | extremes(*pairs)
        | failures(*pairs)
        | ranked_removals(*pairs)
        | curves(*pairs)
    )


def extremes(*pairs: str) -> set[str]:
    lists = {f"List the most helpful and most harmful classes for {pair}" for pair in pairs}
    return lists | {"Compare the influences on all targets"}


def subpopulations(*pairs: str) -> set[str]:
    return {f"Find what helps which part of {pair}" for pair in pairs}


def failures(*pairs: str) -> set[str]:
    return {f"Find what is behind wrong predictions on {pair}" for pair in pairs}


def curves(*pairs: str) -> set[str]:
    summaries = {f"Put together the counterfactuals of {pair}" for pair in pairs}
    return summaries | drawn_curves(*pairs)


def drawn_curves(*pairs: str) -> set[str]:
    return {f"Draw the counterfactuals of {pair}" for pair in pairs}


def transfers_and_after(*pairs: str) -> set[str]:
    return transfers(*pairs) | retrained_transfers(*pairs) | summary_and_after(*pairs)


TRAINING_AND_AFTER = (
    source_models(*SHARDS) | retrained_models(*SHARED) | transfers_and_after(*PAIRS)
)
