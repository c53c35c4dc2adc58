# Source models, each trained on its own subset of the source data; or read from a bank of models.

if study.source.checkpoints:

    rule import_sources:
        input:
            test=f"{results}/data/{study.source.dataset}/test.beton",
            sidecar=f"{results}/data/{study.source.dataset}/dataset.json",
        output:
            table=f"{results}/sources/{{shard}}.parquet",
            weights=f"{results}/sources/{{shard}}.safetensors",
        log:
            f"{results}/logs/import_sources/{{shard}}.log",
        benchmark:
            f"{results}/benchmarks/import_sources/{{shard}}.tsv"
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
            # Only the last shard changes when there are more.
            settings=lambda wildcards: stages.import_stage(
                study, *bank_of(study, wildcards.shard)
            ).model_dump_json(),
            code=code("import_sources.py"),
        message:
            "Read source models {wildcards.shard} from checkpoints"
        shell:
            "keep_log.sh {log:q} &&"
            " import_sources.py --settings {params.settings:q} --shard {wildcards.shard}"
            " --data {params.data:q} --weights {output.weights:q} --table {output.table:q}"
            " --code {params.code} --workers {threads} --gpus {resources.gpu}"
            " --processes {resources.processes} 2>> {log:q}"

else:

    rule train_sources:
        input:
            train=f"{results}/data/{study.source.dataset}/train.beton",
            test=f"{results}/data/{study.source.dataset}/test.beton",
            sidecar=f"{results}/data/{study.source.dataset}/dataset.json",
            # What all models see, where a file lists that.
            listed=[study.source.subset.listed] if study.source.subset.listed else [],
        output:
            table=f"{results}/sources/{{shard}}.parquet",
            weights=f"{results}/sources/{{shard}}.safetensors",
        log:
            f"{results}/logs/train_sources/{{shard}}.log",
        benchmark:
            f"{results}/benchmarks/train_sources/{{shard}}.tsv"
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
            settings=stages.source_stage(study).model_dump_json(),
            code=code("train_sources.py"),
        message:
            "Train source models {wildcards.shard}"
        shell:
            "keep_log.sh {log:q} &&"
            " train_sources.py --settings {params.settings:q} --shard {wildcards.shard}"
            " --data {params.data:q} --weights {output.weights:q} --table {output.table:q}"
            " --code {params.code} --workers {threads} --gpus {resources.gpu}"
            " --processes {resources.processes} 2>> {log:q}"
