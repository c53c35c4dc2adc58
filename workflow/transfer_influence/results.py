"""The result files of a study and the jobs that make them, as the rules have them.

Whatever wants to know where a result is, or which jobs a study has, and is no rule, asks here.
`tests/workflow/test_results.py` compares this list with what Snakemake plans.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from transfer_influence.config.study import Study

Wildcards = dict[str, str]  # the values of a job's wildcards, by name


# Which jobs a rule has, by the values of their wildcards; none in studies that lack the rule.


def once(study: Study) -> list[Wildcards]:
    """One job a study."""
    return [{}]


def once_if_compared(study: Study) -> list[Wildcards]:
    """One job a study that compares its targets."""
    return [{}] if study.compares_targets else []


def datasets(study: Study) -> list[Wildcards]:
    """One job a data set."""
    return [{"dataset": dataset} for dataset in study.datasets]


def shards(study: Study) -> list[Wildcards]:
    """One job a shard of source models."""
    return [{"shard": shard} for shard in study.shards]


def trained_shards(study: Study) -> list[Wildcards]:
    """One job a shard of source models that are trained here."""
    return [] if study.source.checkpoints else shards(study)


def imported_shards(study: Study) -> list[Wildcards]:
    """One job a shard of source models that exist already."""
    return shards(study) if study.source.checkpoints else []


def transfers(study: Study) -> list[Wildcards]:
    """One job a target and mode."""
    return [{"target": target, "mode": mode} for target, mode in study.transfers]


def transferred_shards(study: Study) -> list[Wildcards]:
    """One job a target, mode and shard."""
    return [transfer | shard for transfer, shard in product(transfers(study), shards(study))]


def estimated(study: Study) -> list[Wildcards]:
    """One job a target and mode whose influences are estimated."""
    return transfers(study) if study.estimates else []


def estimated_of_examples(study: Study) -> list[Wildcards]:
    """One job a target and mode, where the influences are those of single examples."""
    return estimated(study) if study.source.subset.unit == "example" else []


def estimators(study: Study) -> list[Wildcards]:
    """One job a target, mode and estimator."""
    names = [{"estimator": estimator} for estimator in study.influence.estimators]
    return [transfer | name for transfer, name in product(estimated(study), names)]


def removals(study: Study) -> list[Wildcards]:
    """One job a removal, whatever the targets that it is for."""
    return [{"removal": removal} for removal in study.all_removals]


def retrained(study: Study) -> list[Wildcards]:
    """One job a target and mode with counterfactuals."""
    return transfers(study) if study.counterfactuals else []


def embedded(study: Study) -> list[Wildcards]:
    """One job a study whose surrogates look at images."""
    return [{}] if study.full_models else []


def embedded_targets(study: Study) -> list[Wildcards]:
    """One job a target that surrogates look at."""
    return [{"target": target} for target in study.targets] if study.full_models else []


def surrogates(study: Study) -> list[Wildcards]:
    """One job a target, mode and surrogate."""
    names = [{"surrogate": name} for name in study.surrogate_names]
    return [transfer | name for transfer, name in product(transfers(study), names)]


def judged(study: Study) -> list[Wildcards]:
    """One job a target and mode whose surrogates are held against its influences."""
    return transfers(study) if study.surrogates else []


def once_if_judged(study: Study) -> list[Wildcards]:
    """One job a study with surrogates."""
    return [{}] if study.surrogates else []


def transferred_removals(study: Study) -> list[Wildcards]:
    """One job a removal of a target and mode."""
    return [
        {"target": target, "mode": mode, "removal": removal.name}
        for target, mode in study.transfers
        for removal in study.removals(target, mode)
    ]


@dataclass(frozen=True)
class Rule:
    """What a rule makes.

    Attributes:
        makes: the same in the words of the progress table.
        files: its outputs by the names that the rule gives them, as seen from the folder of the
            results, with wildcards in braces. The first is written last and says that a job is
            done.
        jobs: the values of the wildcards of all its jobs.
        models: whether its jobs train models: those of a shard, or the replicates of a removal.
    """

    makes: str
    files: dict[str, str]
    jobs: Callable[[Study], list[Wildcards]]
    models: bool = False


def _figure(path: str, *others: str) -> dict[str, str]:
    return {kind: f"{path}.{kind}" for kind in ("svg", "png", *others)}


SOURCES = {"table": "sources/{shard}.parquet", "weights": "sources/{shard}.safetensors"}
REPORT = "report/{target}/{mode}"
TABLES = "applications/{target}/{mode}"

# In the order in which the data flows.
RULES = {
    "convert_dataset": Rule(
        "data sets",
        {
            "sidecar": "data/{dataset}/dataset.json",
            "train": "data/{dataset}/train.beton",
            "test": "data/{dataset}/test.beton",
            "train_labels": "data/{dataset}/train.labels.npy",
            "test_labels": "data/{dataset}/test.labels.npy",
            "train_examples": "data/{dataset}/train.examples.parquet",
            "test_examples": "data/{dataset}/test.examples.parquet",
            "originals": "data/{dataset}/originals.parquet",
        },
        datasets,
    ),
    "plot_dataset": Rule("pictures of data sets", _figure("report/datasets/{dataset}"), datasets),
    "train_sources": Rule("source models", SOURCES, trained_shards, models=True),
    "import_sources": Rule("shards of source models", SOURCES, imported_shards),
    "transfer": Rule(
        "transfers",
        {"table": "transfers/{target}/{mode}/{shard}.parquet"},
        transferred_shards,
        models=True,
    ),
    "summarize": Rule("summary", {"table": "summaries/{target}/{mode}.parquet"}, transfers),
    "estimate_influence": Rule(
        "influences",
        {"table": "influences/{target}/{mode}/{estimator}.parquet"},
        estimators,
    ),
    "rank_units": Rule(
        "ranking",
        {"table": "influences/{target}/{mode}/ranking.parquet"},
        estimated,
    ),
    "measure_reliability": Rule(
        "reliability",
        {"table": "influences/{target}/{mode}/{estimator}.reliability.parquet"},
        estimators,
    ),
    "plot_accuracies": Rule("figure of accuracies", _figure("report/accuracies", "csv"), once),
    "plot_influences": Rule(
        "figure",
        {**_figure(f"{REPORT}/influences"), "csv": f"{REPORT}/ranking.csv"},
        estimated,
    ),
    "plot_reliability": Rule(
        "figure of reliability", _figure(f"{REPORT}/reliability", "csv"), estimated
    ),
    "counterfactual_source": Rule(
        "retrained source models",
        {
            "table": "counterfactuals/sources/{removal}.parquet",
            "weights": "counterfactuals/sources/{removal}.safetensors",
        },
        removals,
        models=True,
    ),
    "counterfactual_transfer": Rule(
        "their transfers",
        {"table": "counterfactuals/transfers/{target}/{mode}/{removal}.parquet"},
        transferred_removals,
        models=True,
    ),
    "summarize_counterfactual": Rule(
        "counterfactuals",
        {
            "summary": "counterfactuals/{target}/{mode}.summary.parquet",
            "table": "counterfactuals/{target}/{mode}.parquet",
        },
        retrained,
    ),
    "plot_counterfactuals": Rule("figure", _figure(f"{REPORT}/counterfactuals", "csv"), retrained),
    "embed_source": Rule(
        "source images seen by full models", {"view": "surrogates/source.safetensors"}, embedded
    ),
    "embed_target": Rule(
        "target images seen by full models",
        {"view": "surrogates/{target}/images.safetensors"},
        embedded_targets,
    ),
    "score_surrogate": Rule(
        "surrogates", {"table": "surrogates/{target}/{mode}/{surrogate}.parquet"}, surrogates
    ),
    "compare_surrogates": Rule(
        "their agreement", {"table": "surrogates/{target}/{mode}.parquet"}, judged
    ),
    "plot_surrogates": Rule(
        "figure of surrogates", _figure("report/surrogates", "csv"), once_if_judged
    ),
    "list_extremes": Rule(
        "classes",
        {"table": f"{TABLES}/classes.parquet", "csv": f"{REPORT}/classes.csv"},
        estimated,
    ),
    "compare_targets": Rule(
        "comparison of targets",
        {
            **_figure("report/opposed", "csv"),
            "table": "applications/classes.parquet",
        },
        once_if_compared,
    ),
    "find_subpopulations": Rule(
        "subpopulations",
        {
            "carriers": f"{TABLES}/carriers.parquet",
            "helped": f"{TABLES}/helped.parquet",
            "helped_csv": f"{REPORT}/helped.csv",
            "carriers_csv": f"{REPORT}/carriers.csv",
        },
        estimated,
    ),
    "debug_failures": Rule(
        "failures",
        {"table": f"{TABLES}/failures.parquet", "csv": f"{REPORT}/failures.csv"},
        estimated,
    ),
    "find_pairs": Rule(
        "pairs of images",
        {"table": f"{TABLES}/pairs.parquet", "csv": f"{REPORT}/pairs.csv"},
        estimated_of_examples,
    ),
    "draw_rulegraph": Rule("rule graph", _figure("report/rulegraph", "dot"), once),
}

# What jobs cost, measured for a plan: of source models, and of a target and mode.
CALIBRATIONS = {
    "calibrate_sources": "plan/sources.json",
    "calibrate_transfer": "plan/{target}/{mode}.json",
}


@dataclass(frozen=True)
class Job:
    """One job. Its files are named as seen from the folder of the study's results.

    Attributes:
        name: the values of its wildcards, joined as the rules join them in file names.
        files: its outputs by the names that the rule gives them.
        benchmark: the file that Snakemake writes its wall time to.
        models: how many models it trains; 0 where it trains none.
    """

    name: str
    files: dict[str, str]
    benchmark: str
    models: int = 0

    @property
    def output(self) -> str:
        """The file that says that the job is done."""
        return next(iter(self.files.values()))


@dataclass(frozen=True)
class JobGroup:
    """The jobs of one rule; of one target and mode, where the rule has them.

    Attributes:
        rule: name of the rule.
        jobs: all of them.
        transfer: target and mode, where the rule has them.
    """

    rule: str
    jobs: list[Job]
    transfer: tuple[str, str] | None = None

    @property
    def models(self) -> int:
        """How many models the jobs train; 0 where they train none."""
        return sum(job.models for job in self.jobs)


def job_groups(study: Study) -> list[JobGroup]:
    """Return all jobs of a study, as Snakemake plans them into an empty folder."""
    return [group for rule in RULES for group in groups_of(study, rule)]


def groups_of(study: Study, rule: str) -> list[JobGroup]:
    """Return the jobs of a rule, a group for each target and mode where it has them."""
    jobs: dict[tuple[str, str] | None, list[Job]] = {}
    removed = study.all_removals if RULES[rule].models else {}
    for wildcards in RULES[rule].jobs(study):
        models = study.models_per_job if RULES[rule].models else 0
        if "removal" in wildcards:
            models = len(removed[wildcards["removal"]].replicates)
        transfer = (wildcards["target"], wildcards["mode"]) if "mode" in wildcards else None
        jobs.setdefault(transfer, []).append(_job(rule, wildcards, models))
    return [JobGroup(rule, of_transfer, transfer) for transfer, of_transfer in jobs.items()]


def _job(rule: str, wildcards: Wildcards, models: int) -> Job:
    files = {name: pattern.format(**wildcards) for name, pattern in RULES[rule].files.items()}
    benchmark = "/".join(["benchmarks", rule, *wildcards.values()])
    return Job("/".join(wildcards.values()), files, f"{benchmark}.tsv", models)


def file_of(study: Study, rule: str, file: str, **wildcards: str) -> Path:
    """Return where a result of a study is.

    Args:
        study: which study.
        rule: name of the rule that makes it.
        file: the name that the rule gives it.
        wildcards: which job of the rule.
    """
    return study.folder / RULES[rule].files[file].format(**wildcards)


def data_folder(study: Study, dataset: str) -> Path:
    """Return the folder of a converted data set."""
    return file_of(study, "convert_dataset", "sidecar", dataset=dataset).parent


def calibration_of(study: Study, group: JobGroup) -> Path:
    """Return where the calibration is that tells what the jobs of a group cost."""
    if group.transfer is None:
        return study.folder / CALIBRATIONS["calibrate_sources"]
    target, mode = group.transfer
    return study.folder / CALIBRATIONS["calibrate_transfer"].format(target=target, mode=mode)
