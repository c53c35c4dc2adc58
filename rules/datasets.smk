# Images of any kind → FFCV's .beton, and a sidecar that says what is in it.


rule convert_dataset:
    input:
        files=files_of,
    output:
        sidecar=f"{results}/data/{{dataset}}/dataset.json",
        train=f"{results}/data/{{dataset}}/train.beton",
        test=f"{results}/data/{{dataset}}/test.beton",
        train_labels=f"{results}/data/{{dataset}}/train.labels.npy",
        test_labels=f"{results}/data/{{dataset}}/test.labels.npy",
        train_examples=f"{results}/data/{{dataset}}/train.examples.parquet",
        test_examples=f"{results}/data/{{dataset}}/test.examples.parquet",
        originals=f"{results}/data/{{dataset}}/originals.parquet",
    log:
        f"{results}/logs/convert_dataset/{{dataset}}.log",
    benchmark:
        f"{results}/benchmarks/convert_dataset/{{dataset}}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=1440,
        # Resources, as neither paths nor what the study needs should convert a data set again.
        folders=" ".join(quote(str(folder)) for folder in dataset_folders),
        needs=lambda wildcards: (
            f"--unit {study.source.subset.unit} --least {study.least_units}"
            if wildcards.dataset == study.source.dataset
            else "--least 2"
        ),
    params:
        output=lambda wildcards, output: str(Path(output.sidecar).parent),
        settings=lambda wildcards: conversion_of(wildcards.dataset),
        code=code("convert_dataset.py"),
    message:
        "Convert the images of {wildcards.dataset}"
    shell:
        "convert_dataset.py --dataset {wildcards.dataset} --datasets-folder {resources.folders}"
        " {resources.needs} --output {params.output:q} --workers {threads} --code {params.code} 2>> {log:q}"
