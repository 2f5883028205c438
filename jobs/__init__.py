"""What the API and the worker agree on: the request, the record, the outcome, the store, the queue."""
