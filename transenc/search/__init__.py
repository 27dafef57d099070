"""Search: a durable index of documents, retrieval with the bi-encoder, reranking with the cross-encoder."""
