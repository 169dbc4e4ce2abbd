"""Webhooks: from the outbox to whoever wants to be told of an ending. What is owed stays in Redis; RQ only carries tries."""
