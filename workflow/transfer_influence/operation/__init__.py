"""How a study is run and watched: what it plans, how far it is, what it will cost."""
