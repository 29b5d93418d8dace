"""Fewer tokens: which stay, the tokenizer without the others, and the rows of embedding and head that are left."""
