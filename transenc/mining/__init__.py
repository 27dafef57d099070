"""Pairs and lists to learn from, found in raw text with a bi-encoder: of sentences, or of documents to search."""

from transenc.mining.documents import mine_corpus
from transenc.mining.lists import flatten_lists, mine_lists
from transenc.mining.sentences import mine_pairs

__all__ = ["flatten_lists", "mine_corpus", "mine_lists", "mine_pairs"]
