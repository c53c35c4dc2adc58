# What people do with influences: tables for curators, from the estimator that also ranks.


rule list_extremes:
    input:
        ranking=f"{results}/influences/{{target}}/{{mode}}/ranking.parquet",
    output:
        table=f"{results}/applications/{{target}}/{{mode}}/classes.parquet",
        csv=report(
            f"{results}/report/{{target}}/{{mode}}/classes.csv",
            caption="captions/classes_table.rst",
            category="Applications",
            labels={
                "target": "{target}",
                "mode": "{mode}",
                "content": "most helpful and most harmful",
            },
        ),
    log:
        f"{results}/logs/list_extremes/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/list_extremes/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code("list_extremes.py"),
    message:
        f"List the most helpful and most harmful {units} for {{wildcards.target}}, {{wildcards.mode}}"
    shell:
        "list_extremes.py --ranking {input.ranking:q} --output {output.table:q}"
        " --csv {output.csv:q} --code {params.code} 2>> {log:q}"


rule compare_targets:
    input:
        rankings=[
            f"{results}/influences/{target}/{mode}/ranking.parquet"
            for target, mode in study.transfers
        ],
    output:
        svg=report(
            f"{results}/report/opposed.svg",
            caption="captions/opposed.rst",
            category="Applications",
            labels={"content": f"{units}, all targets", "kind": "figure"},
        ),
        table=f"{results}/applications/classes.parquet",
        png=f"{results}/report/opposed.png",
        csv=report(
            f"{results}/report/opposed.csv",
            caption="captions/opposed_table.rst",
            category="Applications",
            labels={"content": f"{units}, all targets", "kind": "table"},
        ),
    log:
        f"{results}/logs/compare_targets.log",
    benchmark:
        f"{results}/benchmarks/compare_targets.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        # 1.2 GB for 23 rankings of 1.28 million images.
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=30,
    params:
        settings=stages.ComparisonStage(
            transfers=study.transfers,
            outcome=study.influence.outcome,
            unit=study.source.subset.unit,
        ).model_dump_json(),
        code=code("compare_targets.py"),
    message:
        "Compare the influences on all targets"
    shell:
        "compare_targets.py --settings {params.settings:q} --rankings {input.rankings:q}"
        " --output {output.table:q} --svg {output.svg:q}"
        " --png {output.png:q} --csv {output.csv:q} --code {params.code} 2>> {log:q}"


rule find_subpopulations:
    input:
        influences=f"{results}/influences/{{target}}/{{mode}}/{study.ranked_by}.parquet",
        sidecar=data_of("dataset.json"),
        examples=data_of("test.examples.parquet"),
        labels=data_of("test.labels.npy"),
    output:
        carriers=f"{results}/applications/{{target}}/{{mode}}/carriers.parquet",
        helped=f"{results}/applications/{{target}}/{{mode}}/helped.parquet",
        helped_csv=report(
            f"{results}/report/{{target}}/{{mode}}/helped.csv",
            caption="captions/helped_table.rst",
            category="Applications",
            labels={
                "target": "{target}",
                "mode": "{mode}",
                "content": f"images each {unit} helps most",
            },
        ),
        carriers_csv=report(
            f"{results}/report/{{target}}/{{mode}}/carriers.csv",
            caption="captions/carriers_table.rst",
            category="Applications",
            labels={
                "target": "{target}",
                "mode": "{mode}",
                "content": f"{units} that carry each target class",
            },
        ),
    log:
        f"{results}/logs/find_subpopulations/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/find_subpopulations/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        settings=lambda wildcards: stages.judged_stage(study, wildcards.target).model_dump_json(),
        code=code("find_subpopulations.py"),
    message:
        "Find what helps which part of {wildcards.target}, {wildcards.mode}"
    shell:
        "find_subpopulations.py --settings {params.settings:q}"
        " --influences {input.influences:q} --data {params.data:q}"
        " --helped {output.helped:q} --helped-csv {output.helped_csv:q}"
        " --carriers {output.carriers:q} --carriers-csv {output.carriers_csv:q}"
        " --code {params.code} 2>> {log:q}"


rule debug_failures:
    input:
        summary=f"{results}/summaries/{{target}}/{{mode}}.parquet",
        influences=f"{results}/influences/{{target}}/{{mode}}/{study.ranked_by}.parquet",
        sidecar=data_of("dataset.json"),
        examples=data_of("test.examples.parquet"),
        labels=data_of("test.labels.npy"),
        transfers=removals_of(
            f"{results}/counterfactuals/transfers/{{target}}/{{mode}}/{{removal}}.parquet"
        ),
        sources=removals_of(f"{results}/counterfactuals/sources/{{removal}}.parquet"),
    output:
        table=f"{results}/applications/{{target}}/{{mode}}/failures.parquet",
        csv=report(
            f"{results}/report/{{target}}/{{mode}}/failures.csv",
            caption="captions/failures_table.rst",
            category="Applications",
            labels={"target": "{target}", "mode": "{mode}", "content": "wrong predictions"},
        ),
    log:
        f"{results}/logs/debug_failures/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/debug_failures/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        settings=lambda wildcards: stages.judged_stage(study, wildcards.target).model_dump_json(),
        code=code("debug_failures.py"),
    message:
        "Find what is behind wrong predictions on {wildcards.target}, {wildcards.mode}"
    shell:
        "debug_failures.py --settings {params.settings:q} --summary {input.summary:q}"
        " --influences {input.influences:q}"
        " --data {params.data:q} --transfers {input.transfers:q} --sources {input.sources:q}"
        " --output {output.table:q} --csv {output.csv:q} --code {params.code} 2>> {log:q}"


if study.source.subset.unit == "example":

    rule find_pairs:
        input:
            influences=f"{results}/influences/{{target}}/{{mode}}/{study.ranked_by}.parquet",
            source=f"{results}/data/{study.source.dataset}/dataset.json",
            source_images=f"{results}/data/{study.source.dataset}/train.beton",
            source_examples=f"{results}/data/{study.source.dataset}/train.examples.parquet",
            target=data_of("dataset.json"),
            target_images=data_of("test.beton"),
            target_examples=data_of("test.examples.parquet"),
            target_labels=data_of("test.labels.npy"),
        output:
            table=f"{results}/applications/{{target}}/{{mode}}/pairs.parquet",
            csv=report(
                f"{results}/report/{{target}}/{{mode}}/pairs.csv",
                caption="captions/pairs_table.rst",
                category="Applications",
                labels={"target": "{target}", "mode": "{mode}", "content": "pairs of images"},
            ),
        log:
            f"{results}/logs/find_pairs/{{target}}/{{mode}}.log",
        benchmark:
            f"{results}/benchmarks/find_pairs/{{target}}/{{mode}}.tsv"
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=120,
        params:
            source=lambda wildcards, input: str(Path(input.source).parent),
            target=lambda wildcards, input: str(Path(input.target).parent),
            settings=lambda wildcards: stages.judged_stage(
                study, wildcards.target
            ).model_dump_json(),
            code=code("find_pairs.py"),
        message:
            "Find pairs of source and target images for {wildcards.target}, {wildcards.mode}"
        shell:
            "find_pairs.py --settings {params.settings:q} --influences {input.influences:q}"
            " --source {params.source:q}"
            " --target {params.target:q} --output {output.table:q} --csv {output.csv:q}"
            " --code {params.code} 2>> {log:q}"
