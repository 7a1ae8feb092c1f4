"""The agent: one process a machine, user and bucket that fetches, uploads and outlives the job."""
