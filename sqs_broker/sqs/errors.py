"""The error of a failed call to SQS, and its kinds. No other file contains SQS's error codes."""

from datetime import datetime
from typing import Self

#: The action is not allowed. The two protocols of SQS have different codes for that.
DENIED = frozenset({"AccessDenied", "AccessDeniedException"})

#: There is no such queue: the code of today, and the older one.
NO_QUEUE = frozenset({"QueueDoesNotExist", "NonExistentQueue"})

#: The receipt handle is not valid any more, so the lease is lost.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
LOST_CODES = frozenset({"InvalidParameterValue", "MessageNotInflight", "ReceiptHandleIsInvalid"})

#: A second try cannot succeed.
FINAL_CODES = DENIED | LOST_CODES

#: SQS refuses the parameters of a call. It checks them after it has allowed the action.
REFUSED = frozenset(
    {
        "EmptyBatchRequest",
        "InvalidParameterValue",
        "MessageNotInflight",
        "ReadCountOutOfRange",
        "ReceiptHandleIsInvalid",
    }
)

#: Too many messages of the queue are in flight.
OVER_LIMIT = "OverLimit"

#: SQS refuses a whole call for what one of its messages contains.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
REFUSED_TOGETHER = frozenset({"BatchRequestTooLong", "InvalidMessageContents"})

#: The credentials that signed the call are not valid, or not any more.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
BAD_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "NotAuthorized",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)

#: Used as a code if the lease was over before the report.
LEASE_OVER = "LeaseOver"

#: Used as a code if SQS's answer to a batch does not contain an entry.
UNANSWERED = "Unanswered"

#: Used as a code if a call had not ended at its deadline.
OVERDUE = "DeadlineExceeded"

#: Used as a code if a call was not made, because too many calls before it still hang.
HANGING = "TooManyHangingCalls"

#: SQS has too much to do, or has failed internally: a second try may succeed.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and
#: botocore 1.44 retries/standard.py
THROTTLED = frozenset(
    {
        "KmsThrottled",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
INTERNAL = frozenset(
    {
        "500",
        "502",
        "503",
        "504",
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    }
)

#: The call was never made: there was no connection, or boto3 refused its parameters.
NOT_MADE = frozenset(
    {
        "ConnectionRefusedError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "ParamValidationError",
        "ProxyConnectionError",
        "SSLError",
        HANGING,
    }
)

#: The service that the code begins with if the encryption key of a queue refuses a call.
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
        # Both arguments, so that it can be pickled.
        super().__init__(code, text)
        service, _, self.code = code.rpartition(".")
        """SQS's code, without the name of the service that some answers put before it. If the call
        did not reach SQS, the class of the error."""
        self.is_of_key = service == KMS
        """Whether the encryption key of the queue refused the call."""
        self.is_of_entry = is_of_entry
        """Whether SQS accepted the call, but failed this entry of it."""
        self.is_sender_fault = is_sender_fault
        """Whether SQS reports that the entry itself is wrong, so that a second try is of no use."""
        self.at = at
        """When SQS answered, by its own clock, in whole seconds; None if that is not known."""

    def __str__(self) -> str:
        return self.args[1] or self.code

    @classmethod
    def of(cls, exc: Exception) -> "SqsError":
        """The error itself. Any other exception becomes Unreached, with its class as the code and
        without its text."""
        return exc if isinstance(exc, SqsError) else Unreached(type(exc).__name__)

    @classmethod
    def of_entry(cls, code: str, text: str = "", *, is_sender_fault: bool = False) -> Self:
        """The error of one entry of a batch."""
        return cls(code, text, is_of_entry=True, is_sender_fault=is_sender_fault)

    @property
    def has_reached(self) -> bool:
        """Whether SQS itself reported the error. If not, it is not known what the call did."""
        return not isinstance(self, Unreached)

    @property
    def may_have_been_done(self) -> bool:
        """Whether SQS may have done what the call asked for."""
        if isinstance(self, NoCredentials | NotTried) or self.code in NOT_MADE:
            return False
        return not self.has_reached or self.code in INTERNAL or self.code == UNANSWERED

    @property
    def is_temporary(self) -> bool:
        """Whether the same call may succeed a moment later."""
        if isinstance(self, NoCredentials | NotTried) or self.code == "ParamValidationError":
            return False
        return not self.has_reached or self.code in INTERNAL or self.code in THROTTLED

    @property
    def has_no_credentials(self) -> bool:
        """Whether the call was not made because there are no credentials to sign it with."""
        return isinstance(self, NoCredentials)

    @property
    def is_of_credentials(self) -> bool:
        """Whether the call failed because of the credentials that it was signed with, or because
        there are none. Others may work."""
        return self.has_no_credentials or self.code in BAD_CREDENTIALS

    @property
    def is_denied(self) -> bool:
        """Whether these credentials do not allow the action."""
        return self.code in DENIED

    @property
    def is_no_queue(self) -> bool:
        """Whether there is no such queue."""
        return self.code in NO_QUEUE

    @property
    def is_over_limit(self) -> bool:
        """Whether SQS returned no message because too many are in flight."""
        return self.code == OVER_LIMIT

    @property
    def is_lost_lease(self) -> bool:
        """Whether the receipt handle is not valid any more."""
        return self.code in LOST_CODES

    @property
    def is_final(self) -> bool:
        """Whether a second try cannot succeed."""
        return self.code in FINAL_CODES

    @property
    def is_refusal(self) -> bool:
        """Whether SQS refused the parameters, which means that it had allowed the action."""
        return self.code in REFUSED

    @property
    def is_refusal_of_contents(self) -> bool:
        """Whether SQS refused a whole call for what one of its messages contains."""
        return self.code in REFUSED_TOGETHER

    @property
    def is_worth_another_try(self) -> bool:
        """Whether SQS failed this entry of a batch for an internal reason."""
        return self.is_of_entry and not self.is_sender_fault


class Unreached(SqsError):
    """The call did not reach SQS, or its answer did not arrive or cannot be read. It is not known
    what the call did."""


class NotTried(Unreached):
    """The call was not made, because its time was over before."""


class NoCredentials(Unreached):
    """The call was not made, because this process has no credentials that it can use."""


#: The error of each entry of a batch, in the order of the entries; None if it succeeded.
Errors = list[SqsError | None]


def later(before: SqsError | None, error: SqsError | None) -> SqsError | None:
    """The error of an entry after one more try. If that was not made, the one before counts."""
    return before if before is not None and isinstance(error, NotTried) else error
