"""How much each source class helps or hurts a target, and how sure that is."""
