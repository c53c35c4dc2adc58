# Figures and tables for people, all in {results}/report, and in Snakemake's own HTML report.


rule plot_dataset:
    input:
        data=f"{results}/data/{{dataset}}/train.beton",
        sidecar=f"{results}/data/{{dataset}}/dataset.json",
    output:
        svg=report(
            f"{results}/report/datasets/{{dataset}}.svg",
            caption="captions/dataset.rst",
            category="Data sets",
            labels={"data set": "{dataset}"},
        ),
        png=f"{results}/report/datasets/{{dataset}}.png",
    log:
        f"{results}/logs/plot_dataset/{{dataset}}.log",
    benchmark:
        f"{results}/benchmarks/plot_dataset/{{dataset}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        data=lambda wildcards, input: str(Path(input.sidecar).parent),
        code=code("plot_dataset.py"),
    message:
        "Draw some images of {wildcards.dataset}"
    shell:
        "plot_dataset.py --data {params.data:q} --svg {output.svg:q} --png {output.png:q}"
        " --code {params.code} 2>> {log:q}"


rule plot_accuracies:
    input:
        summaries=[
            f"{results}/summaries/{target}/{mode}.parquet" for target, mode in study.transfers
        ],
    output:
        svg=report(
            f"{results}/report/accuracies.svg",
            caption="captions/accuracies.rst",
            category="Models",
            labels={"content": "accuracies", "kind": "figure"},
        ),
        png=f"{results}/report/accuracies.png",
        csv=report(
            f"{results}/report/accuracies.csv",
            caption="captions/accuracies_table.rst",
            category="Models",
            labels={"content": "accuracies", "kind": "table"},
        ),
    log:
        f"{results}/logs/plot_accuracies.log",
    benchmark:
        f"{results}/benchmarks/plot_accuracies.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=stages.TransfersStage(transfers=study.transfers).model_dump_json(),
        code=code("plot_accuracies.py"),
    message:
        "Draw the accuracies of all models"
    shell:
        "plot_accuracies.py --settings {params.settings:q} --summaries {input.summaries:q}"
        " --svg {output.svg:q} --png {output.png:q} --csv {output.csv:q} --code {params.code}"
        " 2>> {log:q}"


rule plot_influences:
    input:
        ranking=f"{results}/influences/{{target}}/{{mode}}/ranking.parquet",
    output:
        svg=report(
            f"{results}/report/{{target}}/{{mode}}/influences.svg",
            caption="captions/influences.rst",
            category="Influences",
            labels={"target": "{target}", "mode": "{mode}", "kind": "figure"},
        ),
        png=f"{results}/report/{{target}}/{{mode}}/influences.png",
        csv=report(
            f"{results}/report/{{target}}/{{mode}}/ranking.csv",
            caption="captions/ranking_table.rst",
            category="Influences",
            labels={"target": "{target}", "mode": "{mode}", "kind": "table"},
        ),
    log:
        f"{results}/logs/plot_influences/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/plot_influences/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=lambda wildcards: stages.InfluencesFigureStage(
            title=f"{wildcards.target}, {wildcards.mode}",
            outcome=study.influence.outcome,
            unit=study.source.subset.unit,
            one_size=study.subsets_of_one_size,
        ).model_dump_json(),
        code=code("plot_influences.py"),
    message:
        "Draw the influences on {wildcards.target}, {wildcards.mode}"
    shell:
        "plot_influences.py --settings {params.settings:q} --ranking {input.ranking:q}"
        " --svg {output.svg:q} --png {output.png:q} --csv {output.csv:q} --code {params.code}"
        " 2>> {log:q}"


rule plot_reliability:
    input:
        tables=expand(
            f"{results}/influences/{{{{target}}}}/{{{{mode}}}}/{{estimator}}.reliability.parquet",
            estimator=study.influence.estimators,
        ),
    output:
        svg=report(
            f"{results}/report/{{target}}/{{mode}}/reliability.svg",
            caption="captions/reliability.rst",
            category="Influences",
            labels={"target": "{target}", "mode": "{mode}", "kind": "reliability"},
        ),
        png=f"{results}/report/{{target}}/{{mode}}/reliability.png",
        csv=report(
            f"{results}/report/{{target}}/{{mode}}/reliability.csv",
            caption="captions/reliability_table.rst",
            category="Influences",
            labels={"target": "{target}", "mode": "{mode}", "kind": "reliability, table"},
        ),
    log:
        f"{results}/logs/plot_reliability/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/plot_reliability/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=lambda wildcards: stages.ReliabilityFigureStage(
            title=f"{wildcards.target}, {wildcards.mode}",
            estimators=study.influence.estimators,
        ).model_dump_json(),
        code=code("plot_reliability.py"),
    message:
        "Draw the reliability on {wildcards.target}, {wildcards.mode}"
    shell:
        "plot_reliability.py --settings {params.settings:q} --tables {input.tables:q}"
        " --svg {output.svg:q} --png {output.png:q} --csv {output.csv:q} --code {params.code}"
        " 2>> {log:q}"


rule plot_counterfactuals:
    input:
        counterfactuals=f"{results}/counterfactuals/{{target}}/{{mode}}.parquet",
        summary=f"{results}/counterfactuals/{{target}}/{{mode}}.summary.parquet",
    output:
        svg=report(
            f"{results}/report/{{target}}/{{mode}}/counterfactuals.svg",
            caption="captions/counterfactuals.rst",
            category="Counterfactuals",
            labels={"target": "{target}", "mode": "{mode}", "kind": "figure"},
        ),
        png=f"{results}/report/{{target}}/{{mode}}/counterfactuals.png",
        csv=report(
            f"{results}/report/{{target}}/{{mode}}/counterfactuals.csv",
            caption="captions/counterfactuals_table.rst",
            category="Counterfactuals",
            labels={"target": "{target}", "mode": "{mode}", "kind": "table"},
        ),
    log:
        f"{results}/logs/plot_counterfactuals/{{target}}/{{mode}}.log",
    benchmark:
        f"{results}/benchmarks/plot_counterfactuals/{{target}}/{{mode}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=lambda wildcards: stages.CurvesFigureStage(
            title=f"{wildcards.target}, {wildcards.mode}", unit=study.source.subset.unit
        ).model_dump_json(),
        code=code("plot_counterfactuals.py"),
    message:
        "Draw the counterfactuals of {wildcards.target}, {wildcards.mode}"
    shell:
        "plot_counterfactuals.py --settings {params.settings:q}"
        " --counterfactuals {input.counterfactuals:q} --summary {input.summary:q}"
        " --svg {output.svg:q} --png {output.png:q} --csv {output.csv:q} --code {params.code}"
        " 2>> {log:q}"


rule draw_rulegraph:
    input:
        snakefile=checkout / "Snakefile",
        rules=sorted((checkout / "rules").glob("*.smk")),
    output:
        svg=report(
            f"{results}/report/rulegraph.svg",
            caption="captions/rulegraph.rst",
            category="Rules",
            labels={"content": "rule graph"},
        ),
        png=f"{results}/report/rulegraph.png",
        dot=f"{results}/report/rulegraph.dot",
    log:
        f"{results}/logs/draw_rulegraph.log",
    benchmark:
        f"{results}/benchmarks/draw_rulegraph.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
        # A resource, as the path should not make the picture stale.
        study=" ".join(quote(str(path)) for path in workflow.configfiles),
    params:
        settings=stages.rulegraph_stage(study).model_dump_json(),
        code=code("draw_rulegraph.py"),
    message:
        "Draw the rule graph"
    shell:
        "draw_rulegraph.py --settings {params.settings:q} --snakefile {input.snakefile:q}"
        " --rules {input.rules:q} --study {resources.study} --svg {output.svg:q}"
        " --png {output.png:q} --dot {output.dot:q} --code {params.code} 2>> {log:q}"
