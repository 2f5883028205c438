"""Images: from registries and archives, kept once by content, shared read-only by jobs."""
