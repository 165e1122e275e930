"""The embedded model: its tokenizer, the corpus it learns from, and the recipe that trains it."""
