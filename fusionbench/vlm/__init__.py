"""Vision-language models with a fusion inside: rows, training, answers, weights."""
