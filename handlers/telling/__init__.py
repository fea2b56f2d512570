"""Telling people and programs that runs and batches are over: mail, chat, webhooks."""
