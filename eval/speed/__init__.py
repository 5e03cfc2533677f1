"""How long things take: one part per file, `python -m eval.speed --help` lists them."""
