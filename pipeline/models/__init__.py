"""Contents: the models that stages take and return."""

from typing import Annotated

from pipeline.models.language_model import LanguageModel as LanguageModel
from pipeline.models.language_model import ModelSpec as ModelSpec

MonetModel = Annotated[LanguageModel, "monet"]
PeerModel = Annotated[LanguageModel, "peer"]
Int4Model = Annotated[LanguageModel, "peer-int4"]
AnyModel = Annotated[LanguageModel, "dense", "monet", "peer", "peer-int8", "peer-int4", "symbols"]
