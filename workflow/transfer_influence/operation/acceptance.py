"""Accept results of earlier code: a person vouches that the code of today computes the same."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transfer_influence.code import code_digest
from transfer_influence.config.study import Study
from transfer_influence.files import atomic
from transfer_influence.provenance import accepted_code, find_provenance
from transfer_influence.results import job_groups


@dataclass(frozen=True)
class OlderCode:
    """Results of one rule that other code than that of today has made.

    Attributes:
        rule: the rule.
        digest: of the code that made them.
        now: digest of its code of today.
        results: how many there are.
    """

    rule: str
    digest: str
    now: str
    results: int


def file_of_accepted_code(results: Path) -> Path:
    """Return where a study keeps which code was accepted."""
    return results / "accepted_code.json"


def older_code(study: Study, scripts: Path) -> Iterator[OlderCode]:
    """Yield the code, other than that of today, that results of a study were made by.

    Args:
        study: whose results to look at.
        scripts: folder of the programs, one a rule.
    """
    accepted = accepted_code(str(file_of_accepted_code(study.folder)))
    for rule in dict.fromkeys(group.rule for group in job_groups(study)):
        now = code_digest(scripts / f"{rule}.py")
        outputs = (
            study.folder / job.output
            for group in job_groups(study)
            if group.rule == rule
            for job in group.jobs
        )
        found = Counter(
            made["code"] for path in outputs if path.exists() and (made := find_provenance(path))
        )
        for digest, results in found.items():
            if accepted.get(digest, digest) != accepted.get(now, now):
                yield OlderCode(rule, digest, now, results)


def accept(study: Study, older: list[OlderCode]) -> None:
    """Keep that results of older code count as made by the code of today."""
    path = file_of_accepted_code(study.folder)
    accepted = dict(accepted_code(str(path)))
    for one in older:
        before, now = (accepted.get(digest, digest) for digest in (one.digest, one.now))
        # What was vouched for earlier is now as good as the code of today, too.
        for digest in (one.digest, before, *(key for key, of in accepted.items() if of == before)):
            accepted[digest] = now
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(accepted, indent=2, sort_keys=True) + "\n")
