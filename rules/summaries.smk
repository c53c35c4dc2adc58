# All shards of one (target, mode), checked and in one table.


rule summarize:
    input:
        transfers=expand(
            f"{results}/transfers/{{{{target}}}}/{{{{mode}}}}/{{shard}}.parquet",
            shard=study.shards,
        ),
        sources=expand(f"{results}/sources/{{shard}}.parquet", shard=study.shards),
    output:
        table=f"{results}/summaries/{{target}}/{{mode}}.parquet",
    log:
        f"{results}/logs/summarize/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/summarize/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        settings=stages.SummaryStage(
            models=study.models, failed_models=study.failed_models
        ).model_dump_json(),
        code=code("summarize.py"),
    message:
        "Put together the outcomes on {wildcards.target}, {wildcards.mode}"
    shell:
        "summarize.py --transfers {input.transfers:q} --sources {input.sources:q}"
        " --settings {params.settings:q} --output {output.table:q} --code {params.code} 2>> {log:q}"
