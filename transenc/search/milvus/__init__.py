"""A store in Milvus behind the same seam as the folder's: for a corpus that outgrows one machine (extra `milvus`)."""
