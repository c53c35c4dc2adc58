# What cheap methods say of the source classes, held against the influences and the retraining.


rule embed_source:
    input:
        train=f"{results}/data/{study.source.dataset}/train.beton",
        sidecar=f"{results}/data/{study.source.dataset}/dataset.json",
        weights=full_models("safetensors"),
        sources=full_models("parquet"),
    output:
        view=f"{results}/surrogates/source.safetensors",
    log:
        f"{results}/logs/embed_source.log",
    benchmark:
        f"{results}/benchmarks/embed_source.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=240,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        settings=lambda wildcards: stages.embedding_stage(study, None).model_dump_json(),
        code=code("embed_images.py"),
    message:
        "Look at the source images with models that saw all classes"
    shell:
        "embed_images.py --settings {params.settings:q} --data {params.data:q}"
        " --weights {input.weights:q} --sources {input.sources:q} --output {output.view:q}"
        " --code {params.code} --workers {threads} --gpus {resources.gpu} 2>> {log:q}"


rule embed_target:
    input:
        sidecar=data_of("dataset.json"),
        train=data_of("train.beton"),
        source=f"{results}/data/{study.source.dataset}/dataset.json",
        weights=full_models("safetensors"),
        sources=full_models("parquet"),
    output:
        view=f"{results}/surrogates/{{target}}/images.safetensors",
    log:
        f"{results}/logs/embed_target/{{target}}.log",
    benchmark:
        f"{results}/benchmarks/embed_target/{{target}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=240,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        settings=lambda wildcards: stages.embedding_stage(study, wildcards.target).model_dump_json(),
        code=code("embed_images.py"),
    message:
        "Look at the training images of {wildcards.target} with models that saw all classes"
    shell:
        "embed_images.py --settings {params.settings:q} --data {params.data:q}"
        " --source {input.source:q} --weights {input.weights:q} --sources {input.sources:q}"
        " --output {output.view:q} --code {params.code} --workers {threads}"
        " --gpus {resources.gpu} 2>> {log:q}"


rule score_surrogate:
    input:
        source=f"{results}/data/{study.source.dataset}/dataset.json",
        source_view=unless_listed(f"{results}/surrogates/source.safetensors"),
        target_view=unless_listed(f"{results}/surrogates/{{target}}/images.safetensors"),
        source_labels=unless_listed(f"{results}/data/{study.source.dataset}/train.labels.npy"),
        target_labels=unless_listed(data_of("train.labels.npy")),
        listed=list_of,
    output:
        table=f"{results}/surrogates/{{target}}/{{mode}}/{{surrogate}}.parquet",
    log:
        f"{results}/logs/score_surrogate/{{target}}/{{mode}}/{{surrogate}}.log",
    benchmark:
        f"{results}/benchmarks/score_surrogate/{{target}}/{{mode}}/{{surrogate}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        # Those of the images, or the list.
        given=lambda wildcards, input: " ".join(
            f"--{name.replace('_', '-')} {quote(str(input[name]))}"
            for name in ("source_view", "target_view", "source_labels", "target_labels", "listed")
            if input[name]
        ),
        settings=lambda wildcards: stages.surrogate_stage(
            study, wildcards.surrogate
        ).model_dump_json(),
        code=code("score_surrogate.py"),
    message:
        "Rank the source classes for {wildcards.target}, {wildcards.mode}, by {wildcards.surrogate}"
    shell:
        "score_surrogate.py --settings {params.settings:q} --source {input.source:q}"
        " {params.given} --output {output.table:q} --code {params.code} 2>> {log:q}"


rule compare_surrogates:
    input:
        scores=expand(
            f"{results}/surrogates/{{{{target}}}}/{{{{mode}}}}/{{surrogate}}.parquet",
            surrogate=study.surrogate_names,
        ),
        influences=f"{results}/influences/{{target}}/{{mode}}/{study.ranked_by}.parquet",
        reliability=f"{results}/influences/{{target}}/{{mode}}/{study.ranked_by}.reliability.parquet",
        summary=f"{results}/summaries/{{target}}/{{mode}}.parquet",
        source=f"{results}/data/{study.source.dataset}/dataset.json",
        labels=data_of("test.labels.npy"),
        retrained=(
            [f"{results}/counterfactuals/{{target}}/{{mode}}.parquet"]
            if study.counterfactuals
            else []
        ),
        # What the models and their views of images cost.
        sources=expand(f"{results}/sources/{{shard}}.parquet", shard=study.shards),
        transfers=expand(
            f"{results}/transfers/{{{{target}}}}/{{{{mode}}}}/{{shard}}.parquet",
            shard=study.shards,
        ),
        full=full_models("parquet"),
        views=(
            [
                f"{results}/surrogates/source.safetensors",
                f"{results}/surrogates/{{target}}/images.safetensors",
            ]
            if study.full_models
            else []
        ),
    output:
        table=f"{results}/surrogates/{{target}}/{{mode}}.parquet",
    log:
        f"{results}/logs/compare_surrogates/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/compare_surrogates/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: int(1000 * study.influence.memory_gb * attempt),
        runtime=lambda wildcards, attempt: 240 * attempt,
        # A resource, as it changes no result.
        memory_gb=str(study.influence.memory_gb),
    params:
        settings=lambda wildcards: stages.agreement_stage(study, wildcards.target).model_dump_json(),
        code=code("compare_surrogates.py"),
    message:
        "Hold surrogates against the influences on {wildcards.target}, {wildcards.mode}"
    shell:
        "compare_surrogates.py --settings {params.settings:q} --scores {input.scores:q}"
        " --influences {input.influences:q} --reliability {input.reliability:q}"
        " --summary {input.summary:q} --source {input.source:q} --labels {input.labels:q}"
        " --retrained {input.retrained:q} --sources {input.sources:q}"
        " --transfers {input.transfers:q} --full {input.full:q} --views {input.views:q}"
        " --memory-gb {resources.memory_gb} --output {output.table:q} --code {params.code}"
        " 2>> {log:q}"


rule plot_surrogates:
    input:
        tables=[f"{results}/surrogates/{target}/{mode}.parquet" for target, mode in study.transfers],
    output:
        svg=report(
            f"{results}/report/surrogates.svg",
            caption="captions/surrogates.rst",
            category="Surrogates",
            labels={"content": "agreement per hour", "kind": "figure"},
        ),
        png=f"{results}/report/surrogates.png",
        csv=report(
            f"{results}/report/surrogates.csv",
            caption="captions/surrogates_table.rst",
            category="Surrogates",
            labels={"content": "agreement per hour", "kind": "table"},
        ),
    log:
        f"{results}/logs/plot_surrogates.log",
    benchmark:
        f"{results}/benchmarks/plot_surrogates.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=stages.TransfersStage(transfers=study.transfers).model_dump_json(),
        code=code("plot_surrogates.py"),
    message:
        "Draw how far surrogates agree with the influences"
    shell:
        "plot_surrogates.py --settings {params.settings:q} --tables {input.tables:q}"
        " --svg {output.svg:q} --png {output.png:q} --csv {output.csv:q} --code {params.code}"
        " 2>> {log:q}"
