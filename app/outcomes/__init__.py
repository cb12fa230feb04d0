"""What became of the registrations that the HTTP API sent: the collection `outcomes`.

A worker writes it (`observer`, `writer`), the API reads it (`reader`, `watch`). Any other program
that handles messages needs only `outcome.outcome_of` and `writer.Writer`, and no Celery. A fault of
this collection never affects a message. See docs/mongodb.md.
"""
