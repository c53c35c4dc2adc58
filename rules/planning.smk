# What a study will take, before it is launched: snakemake plan --configfile config/mine.yaml

from transfer_influence.operation.estimate import stages_to_calibrate

# Jobs at a time to give the wall time for: these, and as many as GPUs are given.
at_once = {1, 2, 4, 8, 16, 32, 64}
if "gpu" in workflow.global_resources:
    at_once.add(int(workflow.global_resources["gpu"].value))


localrules:
    plan,


rule calibrate_sources:
    input:
        train=f"{results}/data/{study.source.dataset}/train.beton",
        test=f"{results}/data/{study.source.dataset}/test.beton",
        sidecar=f"{results}/data/{study.source.dataset}/dataset.json",
    output:
        calibration=f"{results}/plan/sources.json",
    log:
        f"{results}/logs/calibrate_sources.log",
    benchmark:
        f"{results}/benchmarks/calibrate_sources.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=30,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        settings=stages.source_stage(study).model_dump_json(),
        code=code("calibrate.py"),
    message:
        "Measure what a source model costs"
    shell:
        "calibrate.py --settings {params.settings:q} --data {params.data:q}"
        " --output {output.calibration:q} --code {params.code} --workers {threads}"
        " --gpus {resources.gpu} 2>> {log:q}"


rule calibrate_transfer:
    input:
        train=data_of("train.beton"),
        test=data_of("test.beton"),
        sidecar=data_of("dataset.json"),
    output:
        calibration=f"{results}/plan/{{target}}/{{mode}}.json",
    log:
        f"{results}/logs/calibrate_transfer/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/calibrate_transfer/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=30,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        settings=lambda wildcards: stages.transfer_stage(
            study, wildcards.target, wildcards.mode
        ).model_dump_json(),
        code=code("calibrate.py"),
    message:
        "Measure what a transfer to {wildcards.target}, {wildcards.mode}, costs"
    shell:
        "calibrate.py --settings {params.settings:q} --data {params.data:q}"
        " --output {output.calibration:q} --code {params.code} --workers {threads}"
        " --gpus {resources.gpu} 2>> {log:q}"


# Makes no file: it prints, as often as it is asked to.
rule plan:
    input:
        data=expand(f"{results}/data/{{dataset}}/dataset.json", dataset=study.datasets),
        # Where jobs have run before, they tell better.
        calibrations=lambda wildcards: expand(
            f"{results}/plan/{{stage}}.json", stage=stages_to_calibrate(study)
        ),
    log:
        f"{results}/logs/plan.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    params:
        settings=study.model_dump_json(),
        at_once=sorted(at_once),
    message:
        "What the study will take"
    shell:
        "plan.py --settings {params.settings:q} --at-once {params.at_once} 2>> {log:q}"
