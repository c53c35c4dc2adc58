"""What is finished of a study, from its files alone: names and times, hardly ever contents.

A running study may have thousands of files on a network file system, so every folder is listed
once, and nothing is looked for that may not be there.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfer_influence.config.study import Study
from transfer_influence.results import Job, JobGroup, job_groups

# Enough jobs to tell what a model takes, whose benchmarks are read.
BENCHMARKS = 20


@dataclass(frozen=True)
class StageProgress:
    """How far the jobs of one group are.

    Attributes:
        group: the jobs.
        finished_jobs: how many of them are done.
        done: models that are finished, those of unfinished jobs included; jobs, where they train
            no models.
        planned: models, or jobs, in all.
        model_seconds: what one model takes a job, None if no job has shown it.
        moments: float64 (n,), when models were finished, sorted, in seconds since the epoch. Empty
            where that is not known.
    """

    group: JobGroup
    finished_jobs: int
    done: int
    planned: int
    model_seconds: float | None
    moments: np.ndarray

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.finished_jobs == len(self.group.jobs)


def census(study: Study) -> list[StageProgress]:
    """Count what is finished, group by group, in the order in which the data flows.

    Outputs count as finished whatever settings they were made with: `snakemake -n` tells which of
    them are stale.
    """
    folders = _Folders(study.folder)
    return [
        _training_progress(group, folders) if group.models else _progress(group, folders)
        for group in job_groups(study)
    ]


def benchmark_seconds(path: Path) -> float | None:
    """Return the wall time of a job from the table that Snakemake wrote; None if there is none."""
    try:
        names, *rows = (line.split("\t") for line in path.read_text().splitlines())
        return float(rows[-1][names.index("s")])
    except (OSError, ValueError, IndexError):
        return None  # not there, or not yet written whole


class _Folders:
    """Listings of the folders below `home`, each made once."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._listed: dict[Path, dict[str, os.DirEntry[str]]] = {}

    def entries(self, folder: Path) -> dict[str, os.DirEntry[str]]:
        """Return what is in a folder, by name; nothing if there is no such folder."""
        if folder not in self._listed:
            self._listed[folder] = {}
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
                self._listed[folder] = {entry.name: entry for entry in found}
        return self._listed[folder]

    def entry(self, job: Job) -> os.DirEntry[str] | None:
        """Return a job's output, if it is there."""
        path = self.home / job.output
        return self.entries(path.parent).get(path.name)


def _progress(group: JobGroup, folders: _Folders) -> StageProgress:
    finished = sum(folders.entry(job) is not None for job in group.jobs)
    return StageProgress(group, finished, finished, len(group.jobs), None, np.empty(0))


def _training_progress(group: JobGroup, folders: _Folders) -> StageProgress:
    ended: list[tuple[float, Job]] = []
    unfinished: list[Job] = []
    for job in group.jobs:
        entry = folders.entry(job)
        time = _time(entry) if entry is not None else None
        if time is None:
            unfinished.append(job)
        else:
            ended.append((time, job))
    partial = [_partial_times(job, folders) for job in unfinished]
    ended.sort(key=lambda each: each[0])
    seconds = _model_seconds([job for _, job in ended[-BENCHMARKS:]], partial, folders)
    return StageProgress(
        group,
        finished_jobs=len(ended),
        done=sum(job.models for _, job in ended) + sum(len(times) for times in partial),
        planned=group.models,
        model_seconds=seconds,
        moments=_moments(ended, partial, seconds),
    )


def _partial_times(job: Job, folders: _Folders) -> np.ndarray:
    """Return when the finished models of an unfinished job were written, sorted."""
    output = folders.home / job.output
    mine = [
        entry
        for name, entry in folders.entries(output.parent / ".partial").items()
        if name.rpartition("-")[0] == output.stem
    ]
    # One a digest of settings; what other settings left, the job will not use.
    newest = max(mine, key=lambda entry: _time(entry) or 0, default=None)
    if newest is None:
        return np.empty(0)
    found = folders.entries(Path(newest.path)).items()
    times = [_time(entry) for name, entry in found if re.fullmatch(r"\d+\.parquet", name)]
    return np.sort([time for time in times if time is not None])[: job.models]


def _time(entry: os.DirEntry[str]) -> float | None:
    """Return when a file was written; None if it has been removed since it was listed."""
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return None


def _model_seconds(recent: list[Job], partial: list[np.ndarray], folders: _Folders) -> float | None:
    """Return what one model takes a job: the median over unfinished jobs and recent ones."""
    gaps = [np.diff(times) for times in partial]
    measured = [(job.models, benchmark_seconds(folders.home / job.benchmark)) for job in recent]
    whole = [np.full(models, each / models) for models, each in measured if each is not None]
    seconds = np.concatenate([np.empty(0), *gaps, *whole])
    return float(np.median(seconds)) if len(seconds) and np.median(seconds) > 0 else None


def _moments(
    ended: list[tuple[float, Job]], partial: list[np.ndarray], seconds: float | None
) -> np.ndarray:
    """Return when models were finished, sorted.

    A finished job left one time for all of its models, its end: they are taken to have followed
    each other at `seconds`.
    """
    if seconds is None:
        return np.empty(0)
    whole = [time - np.arange(job.models) * seconds for time, job in ended]
    return np.sort(np.concatenate([np.empty(0), *whole, *partial]))
