"""All jobs of a study, as Snakemake plans them into an empty folder."""

from collections.abc import Iterable
from dataclasses import dataclass

from transfer_influence.config.study import Mode, Study

# What each rule makes, in the words of the progress table, in the order in which the data flows.
RULES = {
    "convert_dataset": "data sets",
    "plot_dataset": "pictures of data sets",
    "train_sources": "source models",
    "import_sources": "shards of source models",
    "transfer": "transfers",
    "summarize": "summary",
    "estimate_influence": "influences",
    "rank_units": "ranking",
    "measure_reliability": "reliability",
    "plot_accuracies": "figure of accuracies",
    "plot_influences": "figure",
    "plot_reliability": "figure of reliability",
    "counterfactual_source": "retrained source models",
    "counterfactual_transfer": "their transfers",
    "summarize_counterfactual": "counterfactuals",
    "plot_counterfactuals": "figure",
    "list_extremes": "classes",
    "compare_targets": "comparison of targets",
    "find_subpopulations": "subpopulations",
    "debug_failures": "failures",
    "find_pairs": "pairs of images",
    "draw_rulegraph": "rule graph",
}


@dataclass(frozen=True)
class Job:
    """One job. Its files are named as seen from the folder of the study's results.

    Attributes:
        name: the values of its wildcards, joined as the rules join them in file names.
        output: the file that says that the job is done.
        benchmark: the file that Snakemake writes its wall time to.
    """

    name: str
    output: str
    benchmark: str


@dataclass(frozen=True)
class JobGroup:
    """The jobs of one rule; of one target and mode, where the rule has them.

    Attributes:
        rule: name of the rule.
        jobs: all of them.
        models: how many models each job trains; 0 where they train none.
        transfer: target and mode, where the rule has them.
    """

    rule: str
    jobs: list[Job]
    models: int = 0
    transfer: tuple[str, Mode] | None = None


def job_groups(study: Study) -> list[JobGroup]:
    """Return all jobs of a study, in the order of `RULES`."""
    groups = [
        _group("convert_dataset", study.datasets, "data/{}/dataset.json"),
        _sources(study),
        _group("plot_dataset", study.datasets, "report/datasets/{}.svg"),
        _group("plot_accuracies", [""], "report/accuracies.svg"),
        _group("draw_rulegraph", [""], "report/rulegraph.svg"),
    ]
    for target, mode in study.transfers:
        groups += _groups_of_transfer(study, target, mode)
        groups += _applications(study, target, mode)
    if study.compares_targets:
        groups.append(_group("compare_targets", [""], "applications/classes.parquet"))
    if study.counterfactuals:
        output = "counterfactuals/sources/{}.parquet"
        groups.append(_group("counterfactual_source", study.all_removals, output, models=1))
    order = list(RULES)
    return sorted(groups, key=lambda group: order.index(group.rule))


def _sources(study: Study) -> JobGroup:
    output = "sources/{}.parquet"
    if study.source.checkpoints:
        return _group("import_sources", study.shards, output)
    return _group("train_sources", study.shards, output, study.models_per_job)


def _groups_of_transfer(study: Study, target: str, mode: Mode) -> list[JobGroup]:
    here = f"{target}/{mode}"
    estimators = [f"{here}/{estimator}" for estimator in study.influence.estimators]
    transfers = [f"{here}/{shard}" for shard in study.shards]
    at = (target, mode)
    groups = [
        _group("transfer", transfers, "transfers/{}.parquet", study.models_per_job, at),
        _group("summarize", [here], "summaries/{}.parquet", transfer=at),
    ]
    if study.estimates:
        groups += [
            _group("estimate_influence", estimators, "influences/{}.parquet", transfer=at),
            _group(
                "measure_reliability",
                estimators,
                "influences/{}.reliability.parquet",
                transfer=at,
            ),
            _group("rank_units", [here], "influences/{}/ranking.parquet", transfer=at),
            _group("plot_influences", [here], "report/{}/influences.svg", transfer=at),
            _group("plot_reliability", [here], "report/{}/reliability.svg", transfer=at),
        ]
    if study.counterfactuals:
        names = [f"{here}/{removal.name}" for removal in study.removals(target, mode)]
        output = "counterfactuals/transfers/{}.parquet"
        groups += [
            _group("counterfactual_transfer", names, output, 1, at),
            _group("summarize_counterfactual", [here], "counterfactuals/{}.parquet", transfer=at),
            _group("plot_counterfactuals", [here], "report/{}/counterfactuals.svg", transfer=at),
        ]
    return groups


def _applications(study: Study, target: str, mode: Mode) -> list[JobGroup]:
    if not study.estimates:
        return []
    tables = {"list_extremes": "classes", "find_subpopulations": "helped"}
    tables["debug_failures"] = "failures"
    if study.source.subset.unit == "example":
        tables["find_pairs"] = "pairs"
    return [
        _group(
            rule,
            [f"{target}/{mode}"],
            f"applications/{{}}/{table}.parquet",
            transfer=(target, mode),
        )
        for rule, table in tables.items()
    ]


def _group(
    rule: str,
    names: Iterable[str],
    output: str,
    models: int = 0,
    transfer: tuple[str, Mode] | None = None,
) -> JobGroup:
    """Return the jobs of a rule from their names, empty for a rule without wildcards.

    `output` has braces where the name belongs.
    """
    jobs = [
        Job(name, output.format(name), "/".join(filter(None, ["benchmarks", rule, name])) + ".tsv")
        for name in names
    ]
    return JobGroup(rule, jobs, models, transfer)
