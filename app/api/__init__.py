"""The HTTP API: takes registrations, puts them on SQS, and says what became of them.

    python -m app.api

It needs the extra `api` of this distribution. docs/http.md is its page for users.
"""
