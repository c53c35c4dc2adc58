# How much each source class helps or hurts each target, and the order that follows from it.


rule estimate_influence:
    input:
        summary=f"{results}/summaries/{{target}}/{{mode}}.parquet",
        source=f"{results}/data/{study.source.dataset}/dataset.json",
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
        mem_mb=8000,
        runtime=120,
    params:
        settings=lambda wildcards: InfluenceStage(
            unit=study.source.subset.unit,
            estimator=wildcards.estimator,
            outcome=study.influence.outcome,
        ).model_dump_json(),
        code=code("estimate_influence.py"),
    message:
        "Estimate influences on {wildcards.target}, {wildcards.mode}, by {wildcards.estimator}"
    shell:
        "estimate_influence.py --settings {params.settings:q} --summary {input.summary:q}"
        " --source {input.source:q} --output {output.table:q} --code {params.code} 2>> {log:q}"


rule rank_classes:
    input:
        influences=f"{results}/influences/{{target}}/{{mode}}/{study.influence.estimators[0]}.parquet",
    output:
        table=f"{results}/influences/{{target}}/{{mode}}/ranking.parquet",
    log:
        f"{results}/logs/rank_classes/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/rank_classes/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code("rank_classes.py"),
    message:
        "Rank the source classes for {wildcards.target}, {wildcards.mode}"
    shell:
        "rank_classes.py --influences {input.influences:q} --output {output.table:q}"
        " --code {params.code} 2>> {log:q}"
