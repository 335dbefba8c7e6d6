"""The tables below [method] of FibecFed: those of `local.options` with the defaults that scored highest (the preset "best")."""

from __future__ import annotations

from pydantic import Field

from ..local.options import CurriculumOptions, LayerOptions, LayerRule, NeuronOptions, NeuronRule, Pace


class FibecFedCurriculum(CurriculumOptions):
    """`method.curriculum`: which examples a client trains on in a round, and in which order."""

    pace: Pace = Field(default="none", description=CurriculumOptions.model_fields["pace"].description)


class FibecFedLayers(LayerOptions):
    """`method.layers`: which layers are aggregated globally (GAL)."""

    rule: LayerRule = Field(default="agreement", description=LayerOptions.model_fields["rule"].description)


class FibecFedNeurons(NeuronOptions):
    """`method.neurons`: which neurons a client updates in the layers that are not aggregated."""

    rule: NeuronRule = Field(default="all", description=NeuronOptions.model_fields["rule"].description)
