"""The door of the API: who may call, with which bytes, and how errors are told."""
