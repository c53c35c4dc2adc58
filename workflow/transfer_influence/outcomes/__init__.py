"""What a trained model leaves behind, and how it is kept: one row a model, in Parquet."""
