"""How a call to SQS fails: one error, and what callers ask of it. No other file has SQS's codes."""

from datetime import datetime
from typing import Self

#: How SQS says that an action is not allowed, in either of its protocols.
DENIED = frozenset({"AccessDenied", "AccessDeniedException"})

#: How SQS says that there is no such queue: boto3's class, and SQS's older word.
NO_QUEUE = frozenset({"QueueDoesNotExist", "NonExistentQueue"})

#: Codes by which SQS says that a receipt handle has lost its right.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
LOST_CODES = frozenset({"InvalidParameterValue", "MessageNotInflight", "ReceiptHandleIsInvalid"})

#: Codes that no second try can change.
FINAL_CODES = DENIED | LOST_CODES

#: How SQS refuses a call for what it asks, which it looks at once it has allowed the action.
REFUSED = frozenset(
    {
        "EmptyBatchRequest",
        "InvalidParameterValue",
        "ReadCountOutOfRange",
        "ReceiptHandleIsInvalid",
    }
)

#: Stands for an error code where the lease was over before SQS was told.
LEASE_OVER = "LeaseOver"

#: Stands for an error code where SQS's answer to a batch leaves an entry out.
UNANSWERED = "Unanswered"

#: The service whose name begins the code where a queue's key refused.
KMS = "KMS"


class SqsError(Exception):
    """A call to SQS, or one entry of a batch, has failed."""

    def __init__(
        self,
        code: str,
        text: str = "",
        *,
        is_of_entry: bool = False,
        is_sender_fault: bool = False,
        at: datetime | None = None,
    ) -> None:
        # Both, so that it can be pickled.
        super().__init__(code, text)
        service, _, self.code = code.rpartition(".")
        """SQS's code, without the name of its service, which only some answers have before it; or
        the class of an error that never reached SQS."""
        self.is_of_key = service == KMS
        """Whether the key refused by which the queue is encrypted."""
        self.is_of_entry = is_of_entry
        """Whether SQS took the call, and failed this entry of it."""
        self.is_sender_fault = is_sender_fault
        """Whether SQS says of an entry that sending it again is of no use."""
        self.at = at
        """When SQS answered, by its own clock, in whole seconds; None where that is not known."""

    def __str__(self) -> str:
        return self.args[1] or self.code

    @classmethod
    def of(cls, exc: Exception) -> "SqsError":
        """The error itself; or, of any other exception, one with its class for a code, and without
        its text."""
        return exc if isinstance(exc, SqsError) else Unreached(type(exc).__name__)

    @classmethod
    def of_entry(cls, code: str, text: str = "", *, is_sender_fault: bool = False) -> Self:
        """The error of one entry of a batch."""
        return cls(code, text, is_of_entry=True, is_sender_fault=is_sender_fault)

    @property
    def has_reached(self) -> bool:
        """Whether SQS said so itself. Else nobody knows what became of the call."""
        return not isinstance(self, Unreached)

    @property
    def is_denied(self) -> bool:
        """Whether these credentials do not allow the action."""
        return self.code in DENIED

    @property
    def is_no_queue(self) -> bool:
        """Whether there is no such queue."""
        return self.code in NO_QUEUE

    @property
    def is_lost_lease(self) -> bool:
        """Whether the receipt handle has lost its right to the message."""
        return self.code in LOST_CODES

    @property
    def is_final(self) -> bool:
        """Whether no second try can change it."""
        return self.code in FINAL_CODES

    @property
    def is_refusal(self) -> bool:
        """Whether SQS refused what was asked for, and so had allowed the action."""
        return self.code in REFUSED

    @property
    def is_worth_another_try(self) -> bool:
        """Whether SQS failed this entry of a batch for a reason of its own."""
        return self.is_of_entry and not self.is_sender_fault


class Unreached(SqsError):
    """SQS was not reached, or its answer was not, or it cannot be read. What the call did is not
    known."""


#: What became of each entry of a batch, by its place in what was given; None where it is done.
Errors = list[SqsError | None]
