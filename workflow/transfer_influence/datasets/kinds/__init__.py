"""The kinds of data set, one module each: how it finds classes and images."""
