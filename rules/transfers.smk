# Every source model on every target: a new head, or all of the network, trained on the target.


rule transfer:
    input:
        sidecar=data_of("dataset.json"),
        train=data_of("train.beton"),
        test=data_of("test.beton"),
        weights=f"{results}/sources/{{shard}}.safetensors",
        sources=f"{results}/sources/{{shard}}.parquet",
    output:
        table=f"{results}/transfers/{{target}}/{{mode}}/{{shard}}.parquet",
    log:
        f"{results}/logs/transfer/{{target}}/{{mode}}/{{shard}}.log",
    benchmark:
        f"{results}/benchmarks/transfer/{{target}}/{{mode}}/{{shard}}.tsv"
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
        settings=lambda wildcards: stages.transfer_stage(
            study, wildcards.target, wildcards.mode
        ).model_dump_json(),
        code=code("transfer.py"),
    message:
        "Transfer source models {wildcards.shard} to {wildcards.target}, {wildcards.mode}"
    shell:
        "keep_log.sh {log:q} &&"
        " transfer.py --settings {params.settings:q} --weights {input.weights:q}"
        " --sources {input.sources:q} --data {params.data:q} --table {output.table:q}"
        " --code {params.code} --workers {threads} --gpus {resources.gpu}"
        " --processes {resources.processes} 2>> {log:q}"
