"""Networks, their heads, and which of their parameters are trained."""
