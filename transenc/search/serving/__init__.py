"""Search over HTTP: the server, its one model worker, and the page (extra `serve`)."""
