"""How much of old rounds is kept."""

from pydantic import Field

from pipeline.settings import MOST, Settings, Size


class KeepSettings(Settings):
    """What stays of old rounds. Labels, batches, settings, numbers and the best round's model always do."""

    models: Size = Field(5, description="newest rounds whose weights stay in the campaign's folder")
    scores: int = Field(3, ge=0, le=MOST, description="newest rounds whose scores and embeddings stay")
    tracked_models: Size | None = Field(None, description="newest rounds whose model stays in MLflow; all if not given")
