import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import recipe_values

from transfer_influence.config.study import Study
from transfer_influence.operation.census import StageProgress, census
from transfer_influence.operation.pace import pace, seconds_left, seconds_left_in_all
from transfer_influence.operation.printing import duration, progress_table, title
from transfer_influence.results import JobGroup, job_groups

NOW = 1_800_000_000.0
OLD = NOW - 86400


def study_in(folder: Path, **changes: Any) -> Study:
    return Study.model_validate(
        {
            "study": "s",
            "results": str(folder),
            "models": 10,
            "models_per_job": 4,
            "source": {"dataset": "photos", "recipe": recipe_values()},
            "targets": {
                "birds": {"modes": ["fixed", "full"], "recipe": recipe_values()},
                "cars": {"modes": ["full"], "recipe": recipe_values()},
            },
            "counterfactuals": {"counts": [0, 2], "replicates": 3},
            **changes,
        }
    )


def write(path: Path, time: float = NOW, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time, time))


def write_partial(output: Path, digest: str, times: dict[int, float]) -> None:
    """Write finished models of an unfinished job, as their numbers and times."""
    folder = output.parent / ".partial" / f"{output.stem}-{digest}"
    for model, time in times.items():
        write(folder / f"{model}.parquet", time)
        write(folder / f"{model}.safetensors", time)
    os.utime(folder, (max(times.values()), max(times.values())))


def write_benchmark(study: Study, name: str, seconds: float) -> None:
    text = f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t12\n"
    write(study.results / study.study / "benchmarks" / f"{name}.tsv", text=text)


def stage_of(stages: list[StageProgress], rule: str, *transfer: str) -> StageProgress:
    (found,) = [
        stage
        for stage in stages
        if stage.group.rule == rule and (stage.group.transfer or ()) == transfer
    ]
    return found


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_in(tmp_path)


@pytest.fixture
def sources(study: Study) -> Path:
    return study.results / "s" / "sources"


def test_an_empty_folder_is_all_to_do(study):
    stages = census(study)
    assert all(stage.done == 0 and not stage.is_done for stage in stages)
    assert stage_of(stages, "train_sources").planned == 12  # shards are full
    assert stage_of(stages, "transfer", "birds", "full").planned == 12
    # none and random-2 are shared; top and bottom are each transfer's own.
    assert stage_of(stages, "counterfactual_source").planned == (2 + 3 * 2) * 3
    assert stage_of(stages, "counterfactual_transfer", "cars", "full").planned == 4 * 3
    assert stage_of(stages, "convert_dataset").planned == 3
    assert stage_of(stages, "summarize", "cars", "full").planned == 1


def test_without_counterfactuals_none_are_planned(tmp_path):
    rules = {group.rule for group in job_groups(study_in(tmp_path, counterfactuals=None))}
    assert not [rule for rule in rules if "counterfactual" in rule]


def test_finished_and_partial_shards_are_counted(study, sources):
    write(sources / "000000-000003.parquet")
    write_partial(sources / "000004-000007.parquet", "abc", {4: NOW, 6: NOW})
    write_partial(sources / "000000-000003.parquet", "abc", {0: NOW})  # finished already
    write_partial(sources / "000012-000015.parquet", "abc", {12: NOW})  # no longer planned
    write(sources / ".000008-000011.abc.parquet")
    stage = stage_of(census(study), "train_sources")
    assert (stage.finished_jobs, stage.done, stage.planned) == (1, 6, 12)


def test_of_a_partial_shard_only_finished_models_of_the_newest_settings_count(study, sources):
    output = sources / "000000-000003.parquet"
    write_partial(output, "old", {0: OLD, 1: OLD, 2: OLD})
    write_partial(output, "new", {0: NOW})
    beside = sources / ".partial" / "000000-000003-new"
    for name in ("1.safetensors", "2.claim-000000", ".3.0a1b2c34.parquet", "3.failed.json"):
        write(beside / name)
    os.utime(beside, (NOW, NOW))
    assert stage_of(census(study), "train_sources").done == 1


def test_a_removal_whose_name_begins_with_anothers_is_told_apart(study):
    folder = study.results / "s" / "counterfactuals" / "sources"
    write_partial(folder / "random-2-0.parquet", "0123", {1: OLD})
    (folder / ".partial" / "random-2-0-and-more-0123").mkdir()  # newer, and without a model yet
    assert stage_of(census(study), "counterfactual_source").done == 1


def test_jobs_of_other_sizes_are_counted_by_their_models(tmp_path):
    plan = {"orders": ["top"], "counts": [0], "replicates": 5, "replicates_per_job": 3}
    study = study_in(tmp_path, counterfactuals=plan)
    folder = study.results / "s" / "counterfactuals" / "sources"
    write(folder / "none-3.parquet", NOW)  # the last two
    write_benchmark(study, "counterfactual_source/none-3", 20)
    write_partial(folder / "none-0.parquet", "0123", {0: NOW - 30, 1: NOW - 20})
    stage = stage_of(census(study), "counterfactual_source")
    assert (stage.finished_jobs, stage.done, stage.planned) == (1, 4, 5)
    assert stage.model_seconds == pytest.approx(10)
    assert stage.moments.tolist() == [NOW - 30, NOW - 20, NOW - 10, NOW]


def test_files_of_each_rule_make_its_jobs_done(study):
    for group in job_groups(study):
        for job in group.jobs:
            write(study.results / "s" / job.output)
    assert all(stage.is_done for stage in census(study))


def test_parquet_files_need_not_be_readable(study, sources):
    write(sources / "000000-000003.parquet", text="not Parquet")
    assert stage_of(census(study), "train_sources").done == 4


def test_the_moments_of_a_finished_shard_are_spread_by_its_benchmark(study, sources):
    write(sources / "000000-000003.parquet")
    assert len(stage_of(census(study), "train_sources").moments) == 0
    write_benchmark(study, "train_sources/000000-000003", 40.0)
    stage = stage_of(census(study), "train_sources")
    assert stage.model_seconds == 10
    assert stage.moments.tolist() == [NOW - 30, NOW - 20, NOW - 10, NOW]


def test_an_unfinished_benchmark_is_passed_over(study, sources):
    write(sources / "000000-000003.parquet")
    for text in ("", "s\th:m:s\n", "s\th:m:s\n-\t-\n"):
        write(study.results / "s/benchmarks/train_sources/000000-000003.tsv", text=text)
        assert stage_of(census(study), "train_sources").model_seconds is None


def test_gaps_between_partial_models_tell_what_a_model_takes(study, sources):
    times = {4: NOW - 100, 5: NOW - 80, 6: NOW - 60}
    write_partial(sources / "000004-000007.parquet", "abc", times)
    stage = stage_of(census(study), "train_sources")
    assert stage.model_seconds == pytest.approx(20)
    assert stage.moments.tolist() == sorted(times.values())


def progress_of(moments: Any, seconds: float | None, planned: int = 1000) -> StageProgress:
    group = JobGroup("train_sources", [])
    moments = np.sort(np.asarray(moments, dtype=np.float64))
    return StageProgress(group, 0, len(moments), planned, seconds, moments)


def staggered(jobs: int, seconds: float, until: float, since: float) -> np.ndarray:
    """When models are finished by some jobs side by side that each take `seconds` a model."""
    offsets = np.arange(jobs) / jobs * seconds
    each = np.arange(since + seconds, until + 1e-6, seconds)
    moments = (each[:, None] + offsets).ravel()
    return moments[moments <= until]


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 30), (1, 2000), (8, 50), (100, 3000), (3, 0.1)])
def test_a_steady_study_has_the_rate_it_has(jobs, seconds):
    stage = progress_of(staggered(jobs, seconds, NOW, NOW - max(20 * seconds, 7200)), seconds)
    found = pace([stage], NOW)
    assert found.rate == pytest.approx(jobs / seconds, rel=0.02)
    assert found.jobs == pytest.approx(jobs, rel=0.02)


def test_in_between_two_models_the_rate_stays():
    stage = progress_of(staggered(1, 300, NOW, NOW - 7200), 300)
    assert pace([stage], NOW + 299).rate == pytest.approx(1 / 300, rel=0.01)


def test_the_first_models_show_a_rate_already():
    assert pace([progress_of([NOW - 5, NOW - 3, NOW - 1], 2)], NOW).rate == pytest.approx(0.5)


def test_a_shard_whose_models_share_one_time_shows_no_rate():
    assert pace([progress_of([], None)], NOW) is None


def test_long_after_the_last_model_there_is_no_rate():
    stage = progress_of(staggered(1, 10, NOW, NOW - 600), 10)
    assert pace([stage], NOW + 3600) is None
    assert seconds_left(stage, NOW + 3600) is None


def test_what_was_before_a_pause_does_not_count():
    before = staggered(8, 10, NOW - 40_000, NOW - 41_000)
    after = staggered(2, 10, NOW, NOW - 60)
    assert pace([progress_of([*before, *after], 10)], NOW).rate == pytest.approx(0.2, rel=0.1)


def test_a_rate_is_that_of_the_last_hour():
    before = staggered(1, 100, NOW - 3600, NOW - 7200)
    first_half = staggered(6, 100, NOW - 1800, NOW - 3600)
    second_half = staggered(2, 100, NOW, NOW - 1800)
    stage = progress_of([*before, *first_half, *second_half], 100)
    assert pace([stage], NOW).rate == pytest.approx(0.04, rel=0.1)


def test_seconds_left_are_models_left_by_the_rate():
    moments = staggered(2, 10, NOW, NOW - 1000)
    stage = progress_of(moments, 10, planned=len(moments) + 60)
    assert seconds_left(stage, NOW) == pytest.approx(300, rel=0.02)


def like(stage: StageProgress, rule: str, transfer: Any, **changes: Any) -> StageProgress:
    values = {**vars(stage), "group": JobGroup(rule, [], transfer), **changes}
    return StageProgress(**values)


def test_the_end_of_all_weighs_stages_by_their_cost():
    moments = staggered(2, 100, NOW, NOW - 3000)
    done = len(moments)
    sources = progress_of(moments, 100, planned=done + 10)
    transfers = like(sources, "transfer", ("a", "full"), planned=50, done=0, model_seconds=4.0)
    transfers = like(transfers, "transfer", ("a", "full"), moments=np.empty(0))
    retrained = like(transfers, "counterfactual_source", None, planned=6, model_seconds=None)
    seconds = (10 * 100 + 50 * 4 + 6 * 100) / 2  # two jobs at a time, retraining as training
    left = seconds_left_in_all([sources, transfers, retrained], NOW)
    assert left == pytest.approx(seconds, rel=0.02)
    unknown = like(transfers, "transfer", ("b", "full"), model_seconds=None)
    assert seconds_left_in_all([sources, transfers, unknown], NOW) is None


def test_the_table_says_how_far_each_stage_is(study, sources):
    for shard, time in (("000000-000003", 3000), ("000004-000007", 1500)):
        write(sources / f"{shard}.parquet", NOW - time)
        write_benchmark(study, f"train_sources/{shard}", 1500)
    write_partial(sources / "000008-000011.parquet", "abc", {8: NOW - 1125, 9: NOW - 750})
    write(study.results / "s" / "summaries" / "cars" / "full.parquet")
    lines = [line.split() for line in progress_table(census(study), NOW).splitlines()]
    (line,) = [line for line in lines if line[:2] == ["source", "models"]]
    # One job at a time, 375 s a model; the next one is overdue by as much: 10 models in 4,125 s.
    assert line[2:6] == ["10", "12", "83", "8.7"]
    assert line[-2:] == ["14", "min"]
    assert ["cars,", "full", "done", *"––––––––––"] in lines
    (line,) = [line for line in lines if line[:2] == ["all", "models"]]
    assert line[2:4] == ["10", str(4 * 12 + 24 + 3 * 12)]
    assert line[-1] == "–"  # no transfer has shown what it costs


def test_a_finished_study_is_done_in_every_line(study):
    for group in job_groups(study):
        for job in group.jobs:
            write(study.results / "s" / job.output)
    models, steps, rest = progress_table(census(study), NOW).split("\n\n")
    assert all(line.endswith("done") for line in models.splitlines()[1:])
    assert "–" not in models + steps + rest


def test_titles_name_target_and_mode(study):
    titles = [title(stage) for stage in census(study)]
    assert "transfers: birds, full" in titles
    assert "source models" in titles


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (100, "2 min"),
        (3600, "60 min"),
        (2 * 3600 + 300, "2 h 05 min"),
        (86400 * 3 + 3600 * 4, "3 d 4 h"),
        (86400 * 45, "45 d"),
    ],
)
def test_durations_in_words(seconds, said):
    assert duration(seconds) == said
