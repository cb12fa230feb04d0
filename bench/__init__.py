"""This broker and stock kombu side by side: messages a second, SQS calls a message, CPU.

Not in the wheel, and nothing in `app` imports it.
"""
