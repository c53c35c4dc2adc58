# How much each source class helps or hurts each target, and the order that follows from it.


rule estimate_influence:
    input:
        summary=f"{results}/summaries/{{target}}/{{mode}}.parquet",
        source=f"{results}/data/{study.source.dataset}/dataset.json",
        labels=data_of("test.labels.npy"),
    output:
        table=f"{results}/influences/{{target}}/{{mode}}/{{estimator}}.parquet",
    log:
        f"{results}/logs/estimate_influence/{{target}}/{{mode}}/{{estimator}}.log",
    benchmark:
        f"{results}/benchmarks/estimate_influence/{{target}}/{{mode}}/{{estimator}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: int(1000 * study.influence.memory_gb * attempt),
        runtime=lambda wildcards, attempt: 240 * attempt,
        # A resource, as it changes no result.
        memory_gb=str(study.influence.memory_gb),
    params:
        settings=lambda wildcards: stages.influence_stage(
            study, wildcards.target, wildcards.estimator
        ).model_dump_json(),
        code=code("estimate_influence.py"),
    message:
        "Estimate influences on {wildcards.target}, {wildcards.mode}, by {wildcards.estimator}"
    shell:
        "estimate_influence.py --settings {params.settings:q} --summary {input.summary:q}"
        " --source {input.source:q} --labels {input.labels:q} --memory-gb {resources.memory_gb}"
        " --output {output.table:q} --code {params.code} 2>> {log:q}"


rule rank_units:
    input:
        influences=f"{results}/influences/{{target}}/{{mode}}/{study.ranked_by}.parquet",
    output:
        table=f"{results}/influences/{{target}}/{{mode}}/ranking.parquet",
    log:
        f"{results}/logs/rank_units/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/rank_units/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code("rank_units.py"),
    message:
        f"Rank the source {units} for {{wildcards.target}}, {{wildcards.mode}}"
    shell:
        "rank_units.py --influences {input.influences:q} --output {output.table:q}"
        " --code {params.code} 2>> {log:q}"


rule measure_reliability:
    input:
        summary=f"{results}/summaries/{{target}}/{{mode}}.parquet",
        source=f"{results}/data/{study.source.dataset}/dataset.json",
        labels=data_of("test.labels.npy"),
    output:
        table=f"{results}/influences/{{target}}/{{mode}}/{{estimator}}.reliability.parquet",
    log:
        f"{results}/logs/measure_reliability/{{target}}/{{mode}}/{{estimator}}.log",
    benchmark:
        f"{results}/benchmarks/measure_reliability/{{target}}/{{mode}}/{{estimator}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: int(1000 * study.influence.memory_gb * attempt),
        runtime=lambda wildcards, attempt: 240 * attempt,
        # A resource, as it changes no result.
        memory_gb=str(study.influence.memory_gb),
    params:
        settings=lambda wildcards: stages.influence_stage(
            study, wildcards.target, wildcards.estimator
        ).model_dump_json(),
        code=code("measure_reliability.py"),
    message:
        "Measure the reliability on {wildcards.target}, {wildcards.mode}, by {wildcards.estimator}"
    shell:
        "measure_reliability.py --settings {params.settings:q} --summary {input.summary:q}"
        " --source {input.source:q} --labels {input.labels:q} --memory-gb {resources.memory_gb}"
        " --output {output.table:q} --code {params.code} 2>> {log:q}"
