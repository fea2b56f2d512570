"""The requests and answers of the HTTP API, by subject, for the handlers and the client."""
