"""The public face of Pawl: what a plug-in author imports, and nothing else.

    from pawl import Prompt, Trajectory, Verdict, Verifier

Where a name lies inside Pawl may change; that it can be had here does not. Nothing of Pawl imports this package.
"""

from orchestrator.acceptance.measurement import Evidence, Measurement
from orchestrator.acceptance.rule import AcceptanceRule, Decision
from orchestrator.prompts.rows import RowSource
from orchestrator.prompts.source import PromptSource, chat, digest_of
from policies.base.errors import InputError, PawlError
from policies.base.measured import Reduction
from policies.base.messages import Message
from policies.base.records import (
    Author,
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
from policies.base.requirements import ModelRequirement, Requirements
from policies.base.seeds import derive_rng
from policies.base.source_scores import SourceScore, scores_by_source, spread
from policies.examples.builder import Built, Candidate, PreferenceBuilder
from policies.examples.kinds import (
    PreferencePair,
    SupervisedExample,
    TokenSequence,
    UnpairedExample,
)
from policies.examples.pairs import pair_of
from policies.examples.scored_batch import TokenScores
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
    AskingJudge,
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
from workers.judge.scoring_judge import ScoringJudge, ToScore
from workers.rollout.call_format import CallFormat, Parsed, RequestedCall
from workers.rollout.engine import BatchEngine, Generation, GenerationRequest, RolloutEngine
from workers.rollout.environment import Environment, Observation
from workers.rollout.multi_turn.strategy import ConversationStrategy
from workers.rollout.strategy import RolloutJob, RolloutStrategy
from workers.rollout.tool import Tool, ToolOutput, ToolSession
from workers.scoring.combiner import Combiner, Scores
from workers.scoring.metric import Metric
from workers.training.checkpoints.trained_state import TrainedState
from workers.training.engine import (
    StepBatch,
    StepEngine,
    TrainingEngine,
    TrainingOptions,
    UpdateJob,
    UpdateOutcome,
)
from workers.training.step_loss import StepLoss
from workers.verify.answer_verifier import AnswerVerifier
from workers.verify.verifier import Verifier

__all__ = [
    "AcceptanceRule",
    "AnswerVerifier",
    "AskingJudge",
    "Author",
    "BackendContext",
    "BatchEngine",
    "Built",
    "CallFormat",
    "Candidate",
    "Combiner",
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
    "Metric",
    "ModelRequirement",
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
    "Reduction",
    "ReferencePart",
    "ReferencePlan",
    "ReferenceSchedule",
    "Reply",
    "RequestedCall",
    "Requirements",
    "RolloutEngine",
    "RolloutJob",
    "RolloutStrategy",
    "RoundResult",
    "RowSource",
    "Sampling",
    "ScoredGroup",
    "Scores",
    "ScoringJudge",
    "SourceScore",
    "StepBatch",
    "StepEngine",
    "StepLoss",
    "StepScore",
    "StepTensors",
    "SupervisedExample",
    "SupervisedLoss",
    "SupervisedTensors",
    "ToScore",
    "TokenScores",
    "TokenSequence",
    "Tool",
    "ToolOutput",
    "ToolSession",
    "TrainedState",
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
    "scores_by_source",
    "spread",
]
