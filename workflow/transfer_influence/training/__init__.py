"""One loop for source and target models: recipe in, trained model and its evaluation out."""
