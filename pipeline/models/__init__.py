"""Contents: the models that stages take and return."""

from typing import Annotated

from pipeline.models.language_model import LanguageModel as LanguageModel
from pipeline.models.language_model import ModelSpec as ModelSpec

DenseModel = Annotated[LanguageModel, "dense"]
MonetModel = Annotated[LanguageModel, "monet"]
PeerModel = Annotated[LanguageModel, "peer"]
Int8Model = Annotated[LanguageModel, "peer-int8"]
Int4Model = Annotated[LanguageModel, "peer-int4"]
SymbolModel = Annotated[LanguageModel, "symbols"]
