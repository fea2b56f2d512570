"""The routes of the API, by subject: each says which call it is, and where what it does stands."""
