"""The public face of Pawl: what a plug-in author imports, and nothing else.

    from pawl import Prompt, Trajectory, Verdict, Verifier

Where a name lies inside Pawl may change; that it can be had here does not. Nothing of Pawl imports this package.
"""

from orchestrator.acceptance.measurement import Evidence, Measurement
from orchestrator.acceptance.rule import AcceptanceRule, Decision
from orchestrator.prompts.rows import RowSource
from orchestrator.prompts.source import PromptSource, chat, digest_of
from policies.base.errors import InputError, PawlError
from policies.base.messages import Message
from policies.base.records import (
    Feedback,
    PolicyVersion,
    Prompt,
    RoundResult,
    Sampling,
    ScoredGroup,
    StepScore,
    Trajectory,
    Turn,
    Verdict,
)
from policies.base.seeds import derive_rng
from policies.examples.builder import Built, Candidate, PreferenceBuilder
from policies.examples.kinds import (
    PreferencePair,
    SupervisedExample,
    TokenSequence,
    UnpairedExample,
)
from policies.examples.pairs import pair_of
from policies.objectives.loss import (
    DifferenceLoss,
    Loss,
    PairLoss,
    PairTensors,
    StepTensors,
    SupervisedLoss,
    SupervisedTensors,
    UnpairedLoss,
    UnpairedTensors,
)
from policies.objectives.reference import ReferencePart, ReferencePlan, ReferenceSchedule
from workers.judge.judge import (
    BackendContext,
    Judge,
    JudgeBackend,
    JudgeJob,
    Judgement,
    Question,
    Reply,
    Unavailable,
    Usage,
)
from workers.rollout.call_format import CallFormat, Parsed, RequestedCall
from workers.rollout.engine import BatchEngine, Generation, GenerationRequest, RolloutEngine
from workers.rollout.environment import Environment, Observation
from workers.rollout.multi_turn.strategy import ConversationStrategy
from workers.rollout.strategy import RolloutJob, RolloutStrategy
from workers.rollout.tool import Tool, ToolOutput, ToolSession
from workers.training.engine import TrainingEngine, TrainingOptions, UpdateJob, UpdateOutcome
from workers.verify.answer_verifier import AnswerVerifier
from workers.verify.verifier import Verifier

__all__ = [
    "AcceptanceRule",
    "AnswerVerifier",
    "BackendContext",
    "BatchEngine",
    "Built",
    "CallFormat",
    "Candidate",
    "ConversationStrategy",
    "Decision",
    "DifferenceLoss",
    "Environment",
    "Evidence",
    "Feedback",
    "Generation",
    "GenerationRequest",
    "InputError",
    "Judge",
    "JudgeBackend",
    "JudgeJob",
    "Judgement",
    "Loss",
    "Measurement",
    "Message",
    "Observation",
    "PairLoss",
    "PairTensors",
    "Parsed",
    "PawlError",
    "PolicyVersion",
    "PreferenceBuilder",
    "PreferencePair",
    "Prompt",
    "PromptSource",
    "Question",
    "ReferencePart",
    "ReferencePlan",
    "ReferenceSchedule",
    "Reply",
    "RequestedCall",
    "RolloutEngine",
    "RolloutJob",
    "RolloutStrategy",
    "RoundResult",
    "RowSource",
    "Sampling",
    "ScoredGroup",
    "StepScore",
    "StepTensors",
    "SupervisedExample",
    "SupervisedLoss",
    "SupervisedTensors",
    "TokenSequence",
    "Tool",
    "ToolOutput",
    "ToolSession",
    "TrainingEngine",
    "TrainingOptions",
    "Trajectory",
    "Turn",
    "Unavailable",
    "UnpairedExample",
    "UnpairedLoss",
    "UnpairedTensors",
    "UpdateJob",
    "UpdateOutcome",
    "Usage",
    "Verdict",
    "Verifier",
    "chat",
    "derive_rng",
    "digest_of",
    "pair_of",
]
