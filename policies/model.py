"""The base of every model of the house: frozen, and closed to keys that it does not know."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. A key that it does not know is an error, never ignored; so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
