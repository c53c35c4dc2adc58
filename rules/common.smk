# The study, and what the rules of all stages need to know about it. No rules here.

import functools
import os
import re
import sys
from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

checkout = Path(workflow.basedir)
sys.path.insert(0, str(checkout / "workflow"))

from transfer_influence.checks import StudyFiles, check_files
from transfer_influence.code import code_digest
from transfer_influence.config import stages
from transfer_influence.config.dataset import find_with_parts
from transfer_influence.config.settings import read_yaml
from transfer_influence.config.study import PLURAL, check_study
from transfer_influence.errors import UserError
from transfer_influence.operation import records
from transfer_influence.operation.environment import job_environment
from transfer_influence.operation.presence import hold_until_exit
from transfer_influence.operation.slurm import name_jobs
from transfer_influence.subsets import bank_of

study_files = [Path(os.path.relpath(path)) for path in workflow.configfiles]
# A study's own data sets lie beside it; those that come with the workflow are always known.
dataset_folders = (
    *(path.parent / "datasets" for path in study_files),
    checkout / "config" / "datasets",
)


def checked_study():
    """Return the study and its files, or stop and say what is wrong with them."""
    try:
        for path in study_files:
            read_yaml(path)  # refuses keys that stand twice, which Snakemake lets pass
        study = check_study(config, str(study_files[-1]))
        files = StudyFiles(study, dataset_folders, Path(".snakemake", "listings"))
        if workflow.is_main_process:  # jobs may run where the originals cannot be seen
            check_files(files)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return study, files


study, files = checked_study()
if workflow.is_main_process:
    records.install()
results = str(study.folder)
removals = study.all_removals
unit = study.source.subset.unit
units = PLURAL[unit]
config["unit_and_units"] = [unit, units]  # for the captions, which see the config alone


os.environ.update(job_environment(study, checkout))


wildcard_constraints:
    dataset="|".join(map(re.escape, study.datasets)),
    shard=r"\d+-\d+",
    target="|".join(map(re.escape, study.targets)),
    mode="fixed|full",
    estimator="|".join(study.influence.estimators),
    removal="|".join(map(re.escape, removals)) or "none",
    surrogate="|".join(study.surrogate_names) or "none",


def begin():
    """Take hold of the study and name its jobs; before any job, and not for a dry run."""
    try:
        hold_until_exit(study.folder, "snakemake")
    except UserError as error:
        raise WorkflowError(str(error)) from None
    name_jobs(study.study, workflow.scheduler._executor)


@functools.cache
def conversion_of(dataset):
    """Return what decides a data set, and what of its originals has changed since it was converted."""
    # Jobs may run where the originals cannot be seen.
    settings, warning = files.conversion(dataset, compared=workflow.is_main_process)
    if warning:
        logger.warning(warning)
    return settings


def code(script):
    """Return the digest of the code behind a script, so that a change of it makes results stale."""
    return code_digest(checkout / "scripts" / script)


def files_of(wildcards):
    """Return the arrays, tables and lists behind a data set; `settings` says if they changed."""
    found = find_with_parts(wildcards.dataset, dataset_folders)
    return [ancient(str(file)) for settings, _ in found.values() for file in settings.files]


def data_of(name):
    """Return an input function: a file of the data set behind a target."""
    return lambda wildcards: f"{results}/data/{study.dataset_of(wildcards.target)}/{name}"


def ranking_of(wildcards):
    """Return the ranking or list a removal follows; the baseline and random removals need none."""
    removal = removals[wildcards.removal]
    if removal.listed:
        return str(removal.listed.file)
    if removal.order and removal.order in study.counterfactuals.lists:
        return str(study.counterfactuals.lists[removal.order])
    if removal.ranking is None:
        return []
    target, mode = removal.ranking
    if removal.order in study.surrogate_names:
        return f"{results}/surrogates/{target}/{mode}/{removal.order}.parquet"
    return f"{results}/influences/{target}/{mode}/ranking.parquet"


def full_models(kind):
    """Return a file of each job that trains models on all classes, as far as surrogates need."""
    return [
        f"{results}/counterfactuals/sources/{removal.name}.{kind}" for removal in study.full_models
    ]


def unless_listed(file):
    """Return an input function: `file`, a path or an input function, of a surrogate that is no list."""
    return lambda wildcards: (
        []
        if wildcards.surrogate in study.surrogates.lists
        else file(wildcards) if callable(file) else file.format(**wildcards)
    )


def list_of(wildcards):
    """Return the list that a surrogate is, if it is one."""
    if wildcards.surrogate not in study.surrogates.lists:
        return []
    return str(study.surrogates.list_of(wildcards.surrogate, wildcards.target))


def removals_of(pattern):
    """Return an input function: `pattern` for each removal of a (target, mode)."""
    return lambda wildcards: [
        pattern.format(removal=removal.name, **wildcards)
        for removal in study.removals(wildcards.target, wildcards.mode)
    ]


def report_parts():
    """Return the files that the report is made of: what `rule all` asks for."""
    parts = expand(f"{results}/report/datasets/{{dataset}}.svg", dataset=study.datasets)
    parts += [f"{results}/report/accuracies.svg", f"{results}/report/rulegraph.svg"]
    for target, mode in study.transfers:
        if study.estimates:
            parts += expand(
                f"{results}/applications/{target}/{mode}/{{table}}.parquet",
                table=["classes", "helped", "failures", *(["pairs"] if unit == "example" else [])],
            )
            parts += expand(
                f"{results}/report/{target}/{mode}/{{figure}}.svg",
                figure=["influences", "reliability"],
            )
            parts += expand(
                f"{results}/influences/{target}/{mode}/{{estimator}}.parquet",
                estimator=study.influence.estimators,
            )
        if study.counterfactuals:
            parts.append(f"{results}/report/{target}/{mode}/counterfactuals.svg")
    if study.surrogates:
        parts.append(f"{results}/report/surrogates.svg")
    if study.compares_targets:
        parts.append(f"{results}/applications/classes.parquet")
    return parts
