"""What the API and the worker agree on: what is asked, the durable record, the outcome, the store and the queue."""
