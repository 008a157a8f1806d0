"""Hard negatives: near texts of queries that do not answer them, by an encoder or BM25; positives of text without labels."""
