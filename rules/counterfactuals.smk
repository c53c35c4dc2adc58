# Retrain with classes removed, to see whether the influences tell the truth.


rule counterfactual_source:
    input:
        train=f"{results}/data/{study.source.dataset}/train.beton",
        test=f"{results}/data/{study.source.dataset}/test.beton",
        sidecar=f"{results}/data/{study.source.dataset}/dataset.json",
        ranking=ranking_of,
    output:
        table=f"{results}/counterfactuals/sources/{{removal}}.parquet",
        weights=f"{results}/counterfactuals/sources/{{removal}}.safetensors",
    log:
        f"{results}/logs/counterfactual_source/{{removal}}.log",
    benchmark:
        f"{results}/benchmarks/counterfactual_source/{{removal}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        processes=1,
        mem_mb=8000,
        runtime=720,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        ranking=lambda wildcards, input: (
            f"--ranking {quote(str(input.ranking))}" if input.ranking else ""
        ),
        settings=lambda wildcards: stages.removal_stage(
            study, removals[wildcards.removal]
        ).model_dump_json(),
        code=code("counterfactual_source.py"),
    message:
        f"Retrain source models with {units} removed: {{wildcards.removal}}"
    shell:
        "keep_log.sh {log:q} &&"
        " counterfactual_source.py --settings {params.settings:q} {params.ranking}"
        " --data {params.data:q} --weights {output.weights:q} --table {output.table:q}"
        " --code {params.code} --workers {threads} --gpus {resources.gpu}"
        " --processes {resources.processes} 2>> {log:q}"


rule counterfactual_transfer:
    input:
        sidecar=data_of("dataset.json"),
        train=data_of("train.beton"),
        test=data_of("test.beton"),
        weights=f"{results}/counterfactuals/sources/{{removal}}.safetensors",
        sources=f"{results}/counterfactuals/sources/{{removal}}.parquet",
    output:
        table=f"{results}/counterfactuals/transfers/{{target}}/{{mode}}/{{removal}}.parquet",
    log:
        f"{results}/logs/counterfactual_transfer/{{target}}/{{mode}}/{{removal}}.log",
    benchmark:
        f"{results}/benchmarks/counterfactual_transfer/{{target}}/{{mode}}/{{removal}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        processes=1,
        mem_mb=8000,
        runtime=240,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        settings=lambda wildcards: stages.retrained_transfer_stage(
            study, wildcards.target, wildcards.mode
        ).model_dump_json(),
        code=code("counterfactual_transfer.py"),
    message:
        "Transfer retrained models to {wildcards.target}, {wildcards.mode}: {wildcards.removal}"
    shell:
        "keep_log.sh {log:q} &&"
        " counterfactual_transfer.py --settings {params.settings:q} --weights {input.weights:q}"
        " --sources {input.sources:q} --data {params.data:q} --table {output.table:q}"
        " --code {params.code} --workers {threads} --gpus {resources.gpu}"
        " --processes {resources.processes} 2>> {log:q}"


rule summarize_counterfactual:
    input:
        transfers=removals_of(
            f"{results}/counterfactuals/transfers/{{target}}/{{mode}}/{{removal}}.parquet"
        ),
        sources=removals_of(f"{results}/counterfactuals/sources/{{removal}}.parquet"),
        labels=data_of("test.labels.npy"),
    output:
        summary=f"{results}/counterfactuals/{{target}}/{{mode}}.summary.parquet",
        table=f"{results}/counterfactuals/{{target}}/{{mode}}.parquet",
    log:
        f"{results}/logs/summarize_counterfactual/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/summarize_counterfactual/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=lambda wildcards: stages.curves_stage(study, wildcards.target).model_dump_json(),
        code=code("summarize_counterfactual.py"),
    message:
        "Put together the counterfactuals of {wildcards.target}, {wildcards.mode}"
    shell:
        "summarize_counterfactual.py --transfers {input.transfers:q} --sources {input.sources:q}"
        " --labels {input.labels:q} --settings {params.settings:q} --output {output.table:q}"
        " --summary {output.summary:q}"
        " --code {params.code} 2>> {log:q}"
