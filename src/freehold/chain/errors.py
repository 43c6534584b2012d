"""What can go wrong with a chain, beneath the tree of `freehold.protocol.errors`.

InvalidInput
└── WrongChain              the RPC end serves another chain than the network file names
Unavailable
└── ChainError              the RPC end did not answer; trying again can help
    ├── BadAnswer           what it answered cannot be: it does not parse, or contradicts itself
    ├── Disagreement        the RPC ends contradict each other; `details["answers"]` says what each of them said
    ├── RpcRefused          it answered with a JSON-RPC error
    │   └── Reverted        a call or transaction reverted; `reason` is what the contract said
    ├── FeeTooHigh          the chain asks for more than the cap on fees allows; nothing was sent
    ├── TransactionReplaced another transaction took the nonce of this one; it will never count
    ├── TransactionPending  neither mined nor replaced before the deadline; it may still be mined
    ├── DeploymentFailed    names what was deployed, and what was not
    └── DeepReorg           a block that counted as final is no longer part of the chain
"""

from __future__ import annotations

from freehold.protocol.errors import ChainError, InvalidInput

__all__ = [
    "BadAnswer",
    "ChainError",
    "DeepReorg",
    "DeploymentFailed",
    "Disagreement",
    "FeeTooHigh",
    "Reverted",
    "RpcRefused",
    "TransactionPending",
    "TransactionReplaced",
    "WrongChain",
]


class WrongChain(InvalidInput):
    code = "wrong_chain"
    hint = "Check the RPC address, and that the network file belongs to this chain."


class BadAnswer(ChainError):
    code = "bad_rpc_answer"
    hint = "The RPC end lies or is broken; name another one, or several, in the network file."


class Disagreement(ChainError):
    code = "rpc_disagreement"
    hint = "Find out which RPC end is wrong; with three of them, two that agree are enough."


class RpcRefused(ChainError):
    """`details["rpc_code"]` is the JSON-RPC error code."""

    code, retryable = "rpc_refused", False


class Reverted(RpcRefused):
    """`details["reason"]` is the contract's text, or 0x data that is no text; `details["data"]` the raw bytes."""

    code = "reverted"

    @property
    def reason(self) -> str:
        return str(self.details.get("reason", ""))


class FeeTooHigh(ChainError):
    code = "fee_too_high"
    hint = "Wait until the chain is less busy, or raise the cap on fees."


class TransactionReplaced(ChainError):
    code, retryable = "transaction_replaced", False
    hint = "This key is used by another process as well; give each process a key of its own."


class TransactionPending(ChainError):
    code, retryable = "transaction_pending", False
    hint = "Look up the transaction's hash before sending anything in its place."


class DeploymentFailed(ChainError):
    code, retryable = "deployment_failed", False


class DeepReorg(ChainError):
    code, retryable = "deep_reorg", False
    hint = (
        "Compare the block with other RPC ends. If this one was wrong, correct it and start again. If the chain did "
        "undo it, start again too: a member resumes from its last snapshot where that is from below the fork."
    )
