# Which source classes help, and which hurt, a downstream task.
#
# The rules stand in rules/, one file a stage, in the order the data flows. How to run is a profile
# (profiles/), what to compute is a study (config/): snakemake --configfile config/mine.yaml

from snakemake.utils import min_version

min_version("9.27")


# A study of one's own takes the place of the demo; Snakemake would merge the two.
if not workflow.overwrite_configfiles:

    configfile: f"{workflow.basedir}/config/demo.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/datasets.smk"
include: "rules/sources.smk"
include: "rules/transfers.smk"
include: "rules/summaries.smk"
include: "rules/influences.smk"
include: "rules/counterfactuals.smk"
include: "rules/surrogates.smk"
include: "rules/applications.smk"
include: "rules/report.smk"
include: "rules/planning.smk"


onstart:
    begin()


rule all:
    default_target: True
    input:
        report_parts(),
