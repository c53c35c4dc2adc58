# The study, and what the rules of all stages need to know about it. No rules here.

import atexit
import functools
import hashlib
import json
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

checkout = Path(workflow.basedir)
sys.path.insert(0, str(checkout / "workflow"))

from transfer_influence.config.dataset import check_places, conversion_settings, find_with_parts
from transfer_influence.config.lists import list_entries
from transfer_influence.config.settings import read_yaml
from transfer_influence.config.stages import (
    AccuraciesStage,
    ComparisonStage,
    CurvesFigureStage,
    CurvesStage,
    InfluencesFigureStage,
    ReliabilityFigureStage,
    SummaryStage,
    import_stage,
    influence_stage,
    removal_stage,
    retrained_transfer_stage,
    rulegraph_stage,
    source_stage,
    transfer_stage,
)
from transfer_influence.config.study import PLURAL, check_study, check_units, shard_models
from transfer_influence.datasets.originals import state_of_originals
from transfer_influence.datasets.sidecar import read_sidecar, unit_names
from transfer_influence.errors import UserError
from transfer_influence.operation import records
from transfer_influence.operation.acceptance import file_of_accepted_code
from transfer_influence.operation.presence import at_work
from transfer_influence.operation.slurm import name_prefix
from transfer_influence.code import code_digest
from transfer_influence.subsets import listed_mask, masks_stamp, open_masks, read_units

# Jobs find the scripts, the package and the Python of this Snakemake, wherever they run.
programs = [str(checkout / "scripts"), str(Path(sys.executable).parent)]
os.environ.update(
    PATH=os.pathsep.join([*programs, os.getenv("PATH", os.defpath)]),
    PYTHONPATH=str(checkout / "workflow"),
    # Keep freed memory for the next batch: giving it back to the system and asking again takes 7 %
    # of a small model's training time on a CPU.
    MALLOC_MMAP_THRESHOLD_=str(2**25),
    MALLOC_TRIM_THRESHOLD_=str(2**28),
)

study_files = [Path(os.path.relpath(path)) for path in workflow.configfiles]
# A study's own data sets lie beside it; those that come with the workflow are always known.
dataset_folders = [
    *(path.parent / "datasets" for path in study_files),
    checkout / "config" / "datasets",
]


@functools.cache
def described(dataset):
    """Return what decides a converted data set, as JSON; cached, as it looks at the originals."""
    return conversion_settings(dataset, dataset_folders, Path(".snakemake", "listings"))


@functools.cache
def conversion_of(dataset):
    """Return the same with what has changed since the conversion, if there was one."""
    settings = json.loads(described(dataset))
    if workflow.is_main_process:  # jobs may run where the originals cannot be seen
        state, warning = state_of_originals(
            study.data_folder(dataset), dataset, dataset_folders, settings
        )
        if warning:
            logger.warning(warning)
        settings["originals"] = state
    return json.dumps(settings)


def checked_study():
    """Return the study, or stop with one sentence that says what is wrong with it."""
    try:
        for path in study_files:
            read_yaml(path)  # refuses keys that stand twice, which Snakemake lets pass
        study = check_study(config, str(study_files[-1]))
        check_images(study)
        for name in study.datasets:
            described(name)
        check_source(study)
        if workflow.is_main_process and study.source.architecture.name != "small_resnet":
            from transfer_influence.models.building import check_architecture  # slow to import

            check_architecture(study.source.architecture, study.resolutions)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return study


def check_images(study):
    """Check that the images of all data sets are there that are still to be converted."""
    if workflow.is_main_process:  # jobs may run where the originals cannot be seen
        sidecars = {name: study.data_folder(name) / "dataset.json" for name in study.datasets}
        waiting = [name for name, sidecar in sidecars.items() if not sidecar.exists()]
        check_places(waiting, dataset_folders)


def check_source(study):
    """Check the study against its files, and its source data set if that is converted."""
    source = study.source
    if source.checkpoints and workflow.is_main_process:
        check_bank(study)
    if source.subset.listed and not source.subset.listed.is_file():
        raise UserError(f"source.subset: no file {source.subset.listed}; correct the path.")
    lists = study.counterfactuals.lists.values() if study.counterfactuals else ()
    for path in lists:
        list_entries(path)
    folder = study.data_folder(source.dataset)
    try:
        units = read_sidecar(folder / "dataset.json").units(source.subset.unit)
    except UserError:
        return  # not there, or to be converted again: conversion checks
    try:
        check_units(source.dataset, source.subset.unit, units, study.least_units)
        if workflow.is_main_process and (source.subset.listed or lists):
            names = unit_names(folder, source.subset.unit)  # a million, where examples are judged
            if source.subset.listed:
                listed_mask(source.subset, names)
            for path in lists:
                read_units(path, names)
        if source.masks:
            open_masks(source.masks, study.models, units)
    except UserError as error:
        changed = f"If the data set itself has changed, delete {folder / 'dataset.json'}."
        raise UserError(f"{error} {changed}") from None


def check_bank(study):
    """Check that masks and checkpoints of all models are there."""
    source = study.source
    open_masks(source.masks, study.models)
    for model in range(study.models):
        if not source.checkpoint(model).is_file():
            raise UserError(
                f"source.checkpoints: no file {source.checkpoint(model)} for model {model} of "
                f"{study.models}; correct the path, or lower `models`."
            )


def bank_models(shard):
    """Return the models of a shard that a bank has, where the last shard may be a shorter one."""
    return [model for model in shard_models(shard) if model < study.models]


def bank_stamp(shard):
    """Return what tells that checkpoints or masks of a shard have changed."""
    models = bank_models(shard)
    files = [study.source.checkpoint(model).stat() for model in models]
    stamps = [f"{file.st_size}:{file.st_mtime_ns}" for file in files]
    digest = hashlib.sha256(" ".join(stamps).encode()).hexdigest()[:16]
    return f"files:{digest} masks:{masks_stamp(study.source.masks, models)}"


study = checked_study()
if workflow.is_main_process:
    records.install()
results = str(study.folder)
removals = study.all_removals
unit = study.source.subset.unit
units = PLURAL[unit]
config["unit_and_units"] = [unit, units]  # for the captions, which see the config alone


# How training jobs run. It changes no result, so it is no parameter, which would make results stale.
os.environ.update(
    TRANSFER_INFLUENCE_ACCEPTED_CODE=str(file_of_accepted_code(study.folder)),
    TRANSFER_INFLUENCE_FAILED_MODELS=study.failed_models,
    TRANSFER_INFLUENCE_SCRATCH=study.scratch or "",
    TRANSFER_INFLUENCE_TENSORBOARD=f"{results}/tensorboard" if study.tensorboard else "",
)


wildcard_constraints:
    dataset="|".join(map(re.escape, study.datasets)),
    shard=r"\d+-\d+",
    target="|".join(map(re.escape, study.targets)),
    mode="fixed|full",
    estimator="|".join(study.influence.estimators),
    removal="|".join(map(re.escape, removals)) or "none",


def claim_study():
    """Stop if another Snakemake is running the study; before any job."""
    claim = ExitStack()
    try:
        claim.enter_context(at_work(Path(results), "snakemake"))
    except UserError as error:
        raise WorkflowError(str(error)) from None
    atexit.register(claim.close)


def name_jobs():
    """Let the names of the study's jobs in SLURM's queue begin with its name; before any job.

    The plugin has a setting for it, but reads it before a Snakefile can say a word.
    """
    executor = workflow.scheduler._executor
    if hasattr(executor, "run_uuid"):
        executor.run_uuid = f"{name_prefix(study.study)}_{executor.run_uuid}"


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
    if removal.order in study.counterfactuals.lists:
        return str(study.counterfactuals.lists[removal.order])
    if removal.ranking is None:
        return []
    target, mode = removal.ranking
    return f"{results}/influences/{target}/{mode}/ranking.parquet"


def settings_of(wildcards):
    """Return the settings of a removal as JSON."""
    return removal_stage(study, removals[wildcards.removal]).model_dump_json()


def removals_of(pattern):
    """Return an input function: `pattern` for each removal of a (target, mode)."""
    return lambda wildcards: [
        pattern.format(removal=removal.name, **wildcards)
        for removal in study.removals(wildcards.target, wildcards.mode)
    ]


def applications_of(target, mode):
    """Return the tables of what people do with the influences on a (target, mode)."""
    names = ["classes", "helped", "failures"]
    names += ["pairs"] if study.source.subset.unit == "example" else []
    return expand(f"{results}/applications/{target}/{mode}/{{name}}.parquet", name=names)


def report_parts():
    """Return the files that the report is made of: what `rule all` asks for."""
    parts = expand(f"{results}/report/datasets/{{dataset}}.svg", dataset=study.datasets)
    parts += [f"{results}/report/accuracies.svg", f"{results}/report/rulegraph.svg"]
    for target, mode in study.transfers:
        if study.estimates:
            parts += applications_of(target, mode)
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
    if study.compares_targets:
        parts.append(f"{results}/applications/classes.parquet")
    return parts
